"""Rows that are read when they are asked for: the same training as on the same rows in memory."""

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe

QUICK = ("trainer.max_epochs=2", "batch_size=16", "~callback.progress", "deterministic=true", "trainer.deterministic=true")
SOLVERS = {
    "convex": ("backbone=identity", "solver=convex", "solver.cache_dir=features"),
    "mlp": ("backbone=mlp", "backbone.hidden=[8]"),
    "chunked": ("backbone=mlp", "backbone.hidden=[8]", "solver.head_step=chunked"),
}


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    """Write the same rows as npy, which is read lazily, and as npz."""
    monkeypatch.chdir(tmp_path)
    y = np.arange(200) % 4
    x = (rng.normal(size=(200, 5)) + 2 * rng.normal(size=(4, 5))[y]).astype(np.float16)
    np.save("x.npy", x)
    np.save("y.npy", y)
    np.savez("d.npz", x=x, y=y)
    return {"npy": ("data.path=x.npy", "data.labels=y.npy"), "npz": ("data.path=d.npz",)}


@pytest.mark.parametrize("solver", SOLVERS)
def test_training_on_lazy_rows_gives_the_weights_of_rows_in_memory(tmp_path, files, solver):
    probs, x = [], np.load(tmp_path / "x.npy").astype(np.float32)
    for kind, where in files.items():
        recipe, splits = compose_recipe(tmp_path / kind, "data=features", *where, *QUICK, *SOLVERS[solver])
        assert isinstance(splits.train.x, np.ndarray) == (kind == "npz")
        result = run_training(recipe, splits, tmp_path / kind)
        assert result.report["accuracy"] > (0.5 if solver == "convex" else 0)
        probs.append(EdgePredictor(tmp_path / kind / "bundle").predict(x).prob_BK)
    np.testing.assert_array_equal(*probs)
    if solver == "convex":  # one set of features: they belong to the rows, wherever these lie
        assert len(list((tmp_path / "features").iterdir())) == 4
