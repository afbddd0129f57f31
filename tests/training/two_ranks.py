"""Run as a script by each of two processes: train heads together, one run after the other.

python -m tests.training.two_ranks DIRECTORY RUN ...
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ovr.errors import TrainingError
from ovr.training import sgd
from tests.training.conftest import compose_recipe
from tests.training.test_chunked import drawn
from tests.training.test_diverged import with_a_far_row

QUICK = (
    "backbone.hidden=[8,8]",
    "backbone.dropout=0",
    "trainer.max_epochs=3",
    "scheduler.T_max=3",
    "~callback.progress",
    "decision=multilabel",
)
ALONE = ("batch_size=12",)
TWO = ("batch_size=6", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
DDP = ("trainer=ddp", *TWO)
FSDP = ("trainer=fsdp", "trainer.strategy.unit_weights=20", *TWO)
FROZEN = ("init_from=first/bundle", "frozen_heads=[c0,c3]", "backbone_grad=[c0,c1,c2]", "trainer.gradient_clip_val=null")
CHUNKED = ("solver.head_step=chunked", "solver.chunk_heads=2")
ONE_EPOCH = "trainer.max_epochs=1"
RUNS: dict[str, tuple[str, ...]] = {
    "ddp_2": (*DDP, "trainer.gradient_clip_val=0.5"),
    "fsdp_2": (*FSDP, *FROZEN),
    "mixed": (*FSDP, *FROZEN, "trainer.precision=bf16-mixed", ONE_EPOCH),
    "fsdp_2_to_1": (*FSDP, *FROZEN, ONE_EPOCH),
    "fsdp_1_to_2": (*FSDP, *FROZEN),
    "chunked_2_to_1": (*DDP, *CHUNKED, ONE_EPOCH),
    "chunked_1_to_2": (*DDP, *CHUNKED),
    "ddp_diverged": (*DDP, "data.normalize=none"),
    "fsdp_diverged": (*FSDP, "data.normalize=none"),
}


def fit(run_dir: Path, *overrides: str, resume: bool = False) -> None:
    """Train into a directory, without what comes after the fit."""
    recipe, _ = compose_recipe(run_dir, *QUICK, *overrides)
    recipe.solver.fit(recipe, drawn(), run_dir, resume=resume)


def diverge(run_dir: Path, *overrides: str) -> None:
    """Train on rows of which one overflows, and keep what this process says of it."""
    recipe, _ = compose_recipe(run_dir, *QUICK, *overrides)
    with pytest.raises(TrainingError) as caught:
        recipe.solver.fit(recipe, with_a_far_row(), run_dir, resume=False)
    (run_dir / f"said_by_{os.environ['LOCAL_RANK']}.txt").write_text(str(caught.value))


def start(folder: Path, *names: str) -> "list[subprocess.Popen[str]]":
    """Start both processes, in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.training.two_ranks", str(folder), *names]
    return [
        subprocess.Popen(command, env={**env, "LOCAL_RANK": str(rank)}, cwd=folder, stdout=-1, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]


def main(folder: Path, names: list[str]) -> None:
    """Make the runs; one that has a checkpoint goes on from it."""
    check = sgd.check_fsdp
    for name in names:
        # On a CPU there is no autocast for CUDA: the step is in float32, and what FSDP casts is cast.
        sgd.check_fsdp = (lambda *_: None) if name == "mixed" else check
        if name.endswith("_diverged"):
            diverge(folder / name, *RUNS[name])
        else:
            fit(folder / name, *RUNS[name], resume=(folder / name / "checkpoints" / "last.ckpt").is_file())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
