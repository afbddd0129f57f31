"""The page's modules in Node, which is on most machines that build pages; elsewhere these tests are skipped."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("core_cases.mjs")

needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="node is not installed: the page's predictor cannot be run outside a browser"
)


def plain(value: Any) -> Any:
    """Return what JSON can hold: numbers that are not finite as the driver reads them."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$number": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def run(cases: list[dict[str, Any]], folder: Path) -> list[Any]:
    """Return what the page's modules answer to each case."""
    (folder / "cases.json").write_text(json.dumps(plain(cases)))
    done = subprocess.run(["node", DRIVER, folder / "cases.json"], capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
