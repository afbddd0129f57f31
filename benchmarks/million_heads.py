"""A million heads on a CPU: seconds a stage and the most memory that the process held.

One `run_training` of an identity backbone with D = 64 features and K linear heads, of which only the fit is replaced: `Planted`
gives each head the direction of its class. Calibration, evaluation and export are those of every run.

D = features, K = heads, N = rows
"""

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
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
from ovr.training.recipe import Fitted, Recipe, build_model
from ovr.training.run import TrainResult, run_training
from ovr.training.sgd import features

D = 64
NUM_ROWS = 512  # of calibration, and of test
GIB = 1 << 30


class Planted:
    """A solver that fits nothing: head k answers to the direction of class k."""

    def __init__(self, direction_KD: NDArray[np.float32]) -> None:
        self.direction_KD = direction_KD

    def fit(self, recipe: Recipe, splits: Splits, run_dir: Path, *, resume: bool) -> Fitted:
        """Return the model."""
        model = build_model(recipe, splits)
        head: Any = model.head
        with torch.no_grad():
            head.weight_KD.copy_(torch.from_numpy(self.direction_KD))
            head.bias_K.fill_(-20.0)
        return Fitted(model, lambda rows: features(model, rows, batch_size=recipe.batch_size), float("nan"), {"solver": "planted"})


def data(num_heads: int) -> tuple[Splits, NDArray[np.float32]]:
    """Return a training row of each class, other rows of random classes, and the directions (K, D) that rows scatter around."""
    rng = np.random.default_rng(0)
    direction_KD = rng.normal(size=(num_heads, D)).astype(np.float32) / np.float32(np.sqrt(D) / 5)
    columns = {name: rng.integers(0, num_heads, NUM_ROWS) for name in ("val", "calib", "test")}
    parts = {}
    for name, column_N in columns.items():
        x = direction_KD[column_N] + rng.normal(size=(NUM_ROWS, D)).astype(np.float32)
        parts[name] = x, Labels.from_columns(column_N, num_heads=num_heads)
    parts["train"] = (direction_KD, Labels.from_columns(np.arange(num_heads), num_heads=num_heads))
    taxonomy = Taxonomy.from_ids(f"class {k}" for k in range(num_heads))
    return make_splits(taxonomy, InputSchema((D,)), parts), direction_KD


def run(num_heads: int, run_dir: Path) -> TrainResult:
    """Return the result of a run into `run_dir`."""
    splits, direction_KD = data(num_heads)
    with initialize_config_dir(str(conf_dir()), version_base=None):
        cfg = compose("train", overrides=["experiment=digits", "backbone=identity", "data.normalize=none"])
    with open_dict(cfg):
        cfg.paths.run_dir = str(run_dir)
    recipe, _ = prepare(cfg)
    result = run_training(replace(recipe, solver=Planted(direction_KD)), splits, run_dir)
    assert result is not None
    return result


def measure(quick: bool) -> Iterator[Row]:
    """Yield seconds a stage, sizes, and the peak of memory."""
    torch.set_num_threads(1)
    num_heads = 12_000 if quick else 1_000_000
    note = f"D={D}, {NUM_ROWS} rows of calibration and of test"

    def row(what: str, value: float, unit: str, note: str = "") -> Row:
        return Row(what, "-", num_heads, value, None, unit, None, note)

    with tempfile.TemporaryDirectory() as folder:
        result = run(num_heads, Path(folder) / "run")
        for stage, seconds in result.seconds.items():
            if stage != "fit":
                yield row(stage, seconds, "s wall", note)
        yield row("peak of memory", peak_bytes() / GIB, "GiB", "of the whole process, until the bundle is written")
        path = result.bundle.path
        yield row("bundle", sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / GIB, "GiB")
        opened: list[ModelBundle] = []
        yield row("opening the bundle", seconds_of(lambda: opened.append(open_bundle(path))), "s wall", "every digest is checked")
        class_id = f"class {num_heads // 2}"
        alone = seconds_of(lambda: export_onnx(opened[0], Path(folder) / "one", class_ids=[class_id]))
        yield row("one head as a file of its own", alone, "s wall", "by its id, checked against the reference rows")
        yield row("peak of memory", peak_bytes() / GIB, "GiB", "of the whole process, at its end")


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
