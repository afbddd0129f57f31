"""torch.compile of a function of the dense step: what it needs of the machine, and its errors. Knows no model."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from ovr.errors import ConfigError

INSTEAD = "or use solver.compile=false"


def check_compile(trainer: Trainer) -> None:
    """Raise ConfigError where torch.compile cannot be used, with what is missing: torch itself finds out in the first step."""
    # A trial of two processes with DDP came to no end (torch 2.13, gloo).
    if trainer.world_size > 1 or isinstance(trainer.strategy, FSDPStrategy):
        kind = f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''} and {type(trainer.strategy).__name__}"
        raise ConfigError(f"solver.compile=true is for one process on one device, got {kind}; use trainer.devices=1, {INSTEAD}")
    if trainer.strategy.root_device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError(f"solver.compile=true needs Triton-lang on a GPU: pip install triton, {INSTEAD}")
        _check_compiler("C", "CC", ("gcc", "clang"))
    else:
        _check_compiler("C++", "CXX", ("clang++",) if sys.platform == "darwin" else ("g++",))
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise ConfigError(f"solver.compile=true needs Python's headers, and Python.h is not there (Debian: python3-dev); {INSTEAD}")


def compiled(losses: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the function compiled for each shape that it is called with; its parameters and buffers stay those of its module.

    In the default mode, whose results stay what they are: CUDA graphs would write the next step's losses over those that are kept.
    The function that comes back raises ConfigError where it cannot be compiled.
    """
    torch.compiler.reset()  # torch compiles a function some times a process, and not at all from there on
    made = torch.compile(losses)
    from torch._dynamo.exc import TorchDynamoException  # takes seconds, so only here

    def call(*args: object) -> Tensor:
        try:
            return made(*args)
        except TorchDynamoException as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigError(f"the training step cannot be compiled: {first}; use solver.compile=false") from error

    return call


def _check_compiler(language: str, variable: str, names: tuple[str, ...]) -> None:
    names = (os.environ[variable],) if os.environ.get(variable) else names
    if not any(shutil.which(name) for name in names):
        raise ConfigError(
            f"solver.compile=true needs a {language} compiler, and there is no {' or '.join(names)}; install one, name yours by "
            f"the environment variable {variable}, {INSTEAD}"
        )
