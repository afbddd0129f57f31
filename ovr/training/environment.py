"""What a run ran on: recorded so that it can be repeated. Knows nothing of the run itself."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ovr.core.commit import git_state
from ovr.core.files import write_file

PACKAGES = ("ovr", "torch", "lightning", "torchmetrics", "hydra-core", "numpy", "onnx", "onnxscript", "onnxruntime", "tritonclient")


def environment() -> dict[str, Any]:
    """Return package versions, the git commit of the working directory (None outside a repository), Python, system and devices."""
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        **git_state(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else (platform.processor() or platform.machine()),
        "num_gpus": torch.cuda.device_count(),
        "num_threads": torch.get_num_threads(),
    }


def record_environment(run_dir: Path) -> None:
    """Make the run directory, if it is not there, and write `environment.json` into it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_file(run_dir / "environment.json", json.dumps(environment(), indent=2).encode())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
