"""A million heads on a CPU: seconds a stage and the most memory that a process held.

Two epochs of an identity backbone with D = 64 features and K linear heads. A process that trains is killed when the first epoch has
its checkpoint; this one resumes from it, and goes on to the bundle. A whole epoch would take hours (a million rows, so that each
class has one): each stops after some steps, and validates.

D = features, K = heads, N = rows
"""

import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from benchmarks.report import Row, main  # first: it pins the number of threads
from ovr.cli.main import conf_dir
from ovr.cli.train import prepare
from ovr.core.bundle import ModelBundle, open_bundle
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.splits import Splits, make_splits
from ovr.export.standalone import export_onnx
from ovr.training.run import TrainResult, run_training

D = 64
NUM_ROWS = 512  # of validation, of calibration and of test
NUM_STEPS, BATCH_SIZE = 5, 256
OVERRIDES = [
    "backbone=identity",
    "data.normalize=none",
    "optimizer=rowwise_adagrad",
    "trainer.max_epochs=2",
    f"+trainer.limit_train_batches={NUM_STEPS}",
    f"batch_size={BATCH_SIZE}",
    "allow_small_classes=true",  # one row of each
    "max_leakage=null",
    "~callback.progress",
]
GIB = 1 << 30
ROOT = Path(__file__).parents[1]


def data(num_heads: int) -> Splits:
    """Return a training row of each class, and other rows of random classes near the training row of theirs."""
    rng = np.random.default_rng(0)
    direction_KD = rng.normal(size=(num_heads, D)).astype(np.float32) / np.float32(np.sqrt(D) / 5)
    columns = {name: rng.integers(0, num_heads, NUM_ROWS) for name in ("val", "calib", "test")}
    parts = {}
    for name, column_N in columns.items():
        x = direction_KD[column_N] + rng.normal(size=(NUM_ROWS, D)).astype(np.float32)
        parts[name] = x, Labels.from_columns(column_N, num_heads=num_heads)
    parts["train"] = (direction_KD, Labels.from_columns(np.arange(num_heads), num_heads=num_heads))
    taxonomy = Taxonomy.from_ids(f"class {k}" for k in range(num_heads))
    return make_splits(taxonomy, InputSchema((D,)), parts)


def run(num_heads: int, run_dir: Path, *, resume: bool = False) -> TrainResult:
    """Return the result of a run into `run_dir`."""
    with initialize_config_dir(str(conf_dir()), version_base=None):
        cfg = compose("train", overrides=["experiment=digits", *OVERRIDES])
    with open_dict(cfg):
        cfg.paths.run_dir = str(run_dir)
    recipe, _ = prepare(cfg)
    result = run_training(recipe, data(num_heads), run_dir, resume=resume)
    assert result is not None
    return result


def killed_after_an_epoch(num_heads: int, run_dir: Path) -> int:
    """Run in a process of its own, which is killed when its first checkpoint is there; return the most bytes that it held.

    Raises:
        SystemExit: it ended before.
    """
    call = f"from pathlib import Path; from benchmarks.million_heads import run; run({num_heads}, Path({str(run_dir)!r}))"
    with subprocess.Popen([sys.executable, "-c", call], cwd=ROOT) as process:
        while not (run_dir / "checkpoints" / "last.ckpt").is_file():
            if process.poll() is not None:
                raise SystemExit(f"the first epoch ended with {process.returncode}, without a checkpoint")
            time.sleep(0.05)
        (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        process.kill()
    return int(peak) * 1024


def measure(quick: bool) -> Iterator[Row]:
    """Yield seconds a stage, sizes, and the peak of memory."""
    torch.set_num_threads(1)
    num_heads = 12_000 if quick else 1_000_000
    note = f"D={D}, {NUM_ROWS} rows of calibration and as many of test"

    def row(what: str, value: float, unit: str, note: str = "") -> Row:
        return Row(what, "-", num_heads, value, None, unit, None, note)

    with tempfile.TemporaryDirectory() as folder:
        run_dir, peaks = Path(folder) / "run", []
        began = seconds_of(lambda: peaks.append(killed_after_an_epoch(num_heads, run_dir)))
        epoch = f"{NUM_STEPS} steps of {BATCH_SIZE} rows, validation, checkpoint"
        yield row("first epoch", began, "s wall", f"{epoch}; with the start of the process and its data")
        yield row("peak of memory", peaks[0] / GIB, "GiB", "of the process that made the first epoch and its checkpoint")
        result = run(num_heads, run_dir, resume=True)
        for stage, seconds in result.seconds.items():
            yield row(stage, seconds, "s wall", f"resumed from the checkpoint: {epoch}" if stage == "fit" else note)
        yield row("peak of memory", peak_bytes() / GIB, "GiB", "of the process that resumed, until the bundle is written")
        path = result.bundle.path
        yield row("bundle", sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / GIB, "GiB")
        opened: list[ModelBundle] = []
        yield row("opening the bundle", seconds_of(lambda: opened.append(open_bundle(path))), "s wall", "every digest is checked")
        class_id = f"class {num_heads // 2}"
        alone = seconds_of(lambda: export_onnx(opened[0], Path(folder) / "one", class_ids=[class_id]))
        yield row("one head as a file of its own", alone, "s wall", "by its id, checked against the reference rows")
        yield row("peak of memory", peak_bytes() / GIB, "GiB", "of the same process, at its end")


def seconds_of(call: Callable[[], Any]) -> float:
    """Return how long `call` takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_bytes() -> int:
    """Return the most resident memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(measure, __doc__ or "")
