"""Heads that are trained in chunks come out as those that are trained at once."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from ovr.core.bundle import open_bundle
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.splits import make_splits
from ovr.errors import ConfigError
from ovr.training.checkpoint import read_checkpoint
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe
from tests.training.test_run import StopAt, same_bits

pytestmark = pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")

NUM_HEADS = 6
IDS = [f"c{k}" for k in range(NUM_HEADS)]
QUICK = ("backbone.hidden=[8]", "trainer.max_epochs=3", "batch_size=16", "~callback.progress", "decision=multilabel")
SIZES = {"train": 90, "val": 41, "calib": 40, "test": 40}


def drawn(*, known=0.8):
    """Return splits of several labels a row, some of them unknown; the last class has no positive validation row."""
    rng = np.random.default_rng(0)
    weight_DK, parts = rng.normal(size=(3, NUM_HEADS)), {}
    for name, num_rows in SIZES.items():
        x = rng.normal(size=(num_rows, 3))
        target_NK = x @ weight_DK + rng.normal(size=(num_rows, NUM_HEADS)) > 0.5
        if name == "val":
            target_NK[:, -1] = False
        parts[name] = (x, Labels.from_dense(target_NK, rng.random((num_rows, NUM_HEADS)) < known))
    return make_splits(Taxonomy.from_ids(IDS), InputSchema((3,)), parts)


@pytest.fixture
def train(tmp_path):
    """Return a function that trains into a folder of this name and returns it; with `stop_at` it ends before that epoch."""

    def run(name, *overrides, splits=None, resume=False, stop_at=None):
        run_dir = tmp_path / name
        recipe, _ = compose_recipe(run_dir, *QUICK, *overrides)
        splits = splits or drawn()
        if stop_at is None:
            run_training(recipe, splits, run_dir, resume=resume)
        else:
            with pytest.raises(RuntimeError, match="power cut"):
                run_training(replace(recipe, callbacks=[*recipe.callbacks, StopAt(stop_at)]), splits, run_dir)
        return run_dir

    return run


def checkpoint(run_dir, name="last"):
    return read_checkpoint(run_dir / "checkpoints" / f"{name}.ckpt")


def weights(run_dir, name="last"):
    return {key: value for key, value in checkpoint(run_dir, name)["state_dict"].items() if key.startswith("model.")}


def figures(run_dir, name):
    """Return what was logged by epoch."""
    with (run_dir / "metrics" / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def alike(a, b, *, tolerance=1e-5):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


CHUNKED = ("solver.head_step=chunked", "solver.chunk_heads=4")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("loss.pos_weight=auto", "optimizer=sgd", "optimizer.lr=0.5", "trainer.gradient_clip_val=0.1"),
        ("loss=focal", "loss.pos_weight={c1:3.0}", "optimizer=rowwise_adagrad"),
        ("loss=asymmetric", "optimizer=rowwise_adam"),
        ("loss=smoothed", "scheduler=constant"),
        ("loss=subsampled", "loss.negatives_per_positive=1000000"),
        ("sampler=class_balanced", "backbone.dropout=0.5"),
        ("head=mlp", "head.hidden=4"),
        ("backbone_grad=[c1,c4]",),
        ("backbone_grad=none", "head=mlp", "head.hidden=4"),
        ("backbone=identity", "~backbone.hidden", "~backbone.dropout"),
    ],
    ids=" ".join,
)
def test_weights_and_figures_are_those_of_dense_training(train, overrides):
    settings = [o for o in overrides if not o.startswith("~")]
    if "backbone=identity" in settings:
        pytest.skip("see the test of a backbone without weights")
    dense, chunked = train("dense", *settings), train("chunked", *CHUNKED, *settings)
    alike(dense, chunked)
    for name in ("train/loss", "val/loss", "val/macro_ap"):
        np.testing.assert_allclose(figures(chunked, name), figures(dense, name), rtol=1e-5, err_msg=name)
    assert open_bundle(chunked / "bundle").taxonomy.ids == tuple(IDS)
