"""A run with so many heads that nothing may be held for all of them and all rows; many is a few here."""

import json

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.core import scale
from ovr.core.bundle import open_bundle
from ovr.errors import ConfigError
from ovr.metric.figures import DETAILS
from ovr.training.run import run_training

pytestmark = pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")
IDS = [f"class {k:02}" for k in range(12)]


@pytest.fixture
def table(tmp_path, write_table):
    return write_table(tmp_path / "rows.csv", IDS * 20)


def test_a_large_run_gives_what_a_small_one_gives_in_shards(tmp_path, table, configure, monkeypatch):
    small = run_training(*configure(tmp_path / "small", f"data.path={table}"), tmp_path / "small")
    monkeypatch.setattr(scale, "LARGE_K", 12)
    monkeypatch.setattr(scale, "SHARD_HEADS", 5)
    monkeypatch.setattr(scale, "BLOCK_VALUES", 100)
    recipe, splits = configure(tmp_path / "large", f"data.path={table}")
    large = run_training(recipe, splits, tmp_path / "large")
    bundle = open_bundle(tmp_path / "large" / "bundle")
    assert len(bundle.shards) == 3
    assert large.test_prob_NK is None
    prob_NK = EdgePredictor(bundle.path).predict(splits.test.x, encoded=True).prob_BK
    np.testing.assert_allclose(prob_NK, small.test_prob_NK, atol=1e-5)
    assert json.loads((bundle.path / "report" / "metrics.json").read_text()) == large.report
    for name, value in large.report.items():
        assert value == pytest.approx(small.report[name], abs=1e-5)
    intervals = {name for name in small.report if name.endswith(("_low", "_high"))}
    assert set(small.report) == {*large.report, "classes", "confused_pairs", *DETAILS, *intervals}
    for one, other in zip(small.bundle.heads, bundle.heads, strict=True):
        assert (one.class_id, one.version, one.kind) == (other.class_id, other.version, other.kind)
        assert other.threshold == pytest.approx(one.threshold, abs=1e-5)
        assert other.calibration.scale == pytest.approx(one.calibration.scale, rel=1e-4)
        assert other.calibration.status == one.calibration.status
        figures = other.metrics["test"]
        assert figures == pytest.approx({name: one.metrics["test"][name] for name in figures}, abs=1e-4)


def test_calibration_rows_are_kept_as_features_and_lists(tmp_path, table, configure, monkeypatch):
    monkeypatch.setattr(scale, "LARGE_K", 12)
    recipe, splits = configure(tmp_path / "run", f"data.path={table}")
    folder = run_training(recipe, splits, tmp_path / "run").bundle.path / "calibration"
    kept = {file.stem: np.load(file) for file in folder.iterdir()}
    assert set(kept) == {"features", "positive_start", "positive_column", "unknown_start", "unknown_column"}
    assert kept["features"].shape == (len(splits.calib), 8)
    assert np.array_equal(kept["positive_column"], splits.calib.labels.positives.column_P)


def test_a_calibrator_whose_maps_shards_cannot_hold_is_refused_before_training(tmp_path, table, configure, monkeypatch):
    monkeypatch.setattr(scale, "LARGE_K", 12)
    recipe, splits = configure(tmp_path / "run", f"data.path={table}", "calibrator=auto")
    with pytest.raises(ConfigError, match=r"may give beta, isotonic; from 12 classes on.*calibrator.kinds=\[temperature,platt\]"):
        run_training(recipe, splits, tmp_path / "run")
    recipe, splits = configure(tmp_path / "run", f"data.path={table}", "calibrator=auto", "calibrator.kinds=[temperature,platt]")
    heads = run_training(recipe, splits, tmp_path / "run").bundle.heads
    assert {head.calibration.kind for head in heads} <= {"temperature", "platt"}
