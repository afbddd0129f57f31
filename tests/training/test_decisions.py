"""Runs whose thresholds, abstention limit and calibrations come with a promise or from all heads at once."""

import json
import logging

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.core import scale
from ovr.core.bundle import open_bundle
from ovr.core.taxonomy import ClassSpec
from ovr.errors import ConfigError, DataError, TaxonomyError
from ovr.training.convex import Convex
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe


@pytest.fixture
def table(tmp_path, write_table):
    return write_table(tmp_path / "rows.csv", ["x/y", "..", "train"] * 200)


@pytest.fixture
def run(tmp_path, table):
    """Return a function of (overrides) that trains exact heads and gives result and splits."""

    def train(*overrides):
        exact = ["data=table", "data.target=label", f"data.path={table}", "solver=convex", "backbone=identity"]
        recipe, splits = compose_recipe(tmp_path / "run", *exact, *overrides)
        return run_training(recipe, splits, tmp_path / "run"), splits

    return train


def test_promises_and_what_cannot_be_promised_are_in_heads_report_log_and_answers(run, caplog):
    with caplog.at_level(logging.INFO):
        result, splits = run(
            "calibrator=joint",
            "threshold=recall_at_least",
            "threshold.recall=0.97",
            "abstention=review_rate",
            "abstention.rate=0.2",
        )
    bundle = open_bundle(result.bundle.path)
    target_NK, _ = splits.calib.labels.dense()
    for column, head in enumerate(bundle.heads):
        num_positives = int(target_NK[:, column].sum())
        assert (
            head.threshold_status == f"cannot_be_promised: n = {num_positives} positives, needs at least 135"
        )  # log(0.05 / 3) / log(0.97)
        assert head.threshold == 0.0
        assert head.calibration.kind == "joint"
        assert result.report["classes"][column]["threshold_status"] == head.threshold_status
    assert "3 of 3 thresholds are without the promise asked for: '..' cannot_be_promised: n = " in caplog.text
    assert result.report["abstention_status"] == bundle.provenance["abstention_status"] == "ok"
    num_rows = len(splits.calib)
    parted = {"calibrations": num_rows - round(num_rows / 2), "thresholds": num_rows, "abstain_below": round(num_rows / 2)}
    assert bundle.provenance["num_rows_of_calib"] == parted
    assert bundle.policy.abstain_below == result.report["abstain_below"] > 0
    assert json.loads((bundle.path / "report" / "metrics.json").read_text())["abstain_below"] == bundle.policy.abstain_below
    prediction = EdgePredictor(bundle.path).predict(splits.calib.x, encoded=True)
    abstained_N = prediction.prob_BK.max(axis=1) < np.float32(bundle.policy.abstain_below)
    np.testing.assert_array_equal(prediction.decision.abstained_B, abstained_N)
    assert 0 < abstained_N.mean() < 0.2
    for name in ("argmax_accuracy", "normalized_nll", "normalized_top_label_ece", "mean_prob_none"):
        assert {f"{name}_before", f"{name}_after"} <= result.report.keys()
    test = EdgePredictor(bundle.path).predict(splits.test.x, encoded=True)
    class_N = splits.test.labels.dense()[0].argmax(axis=1)
    assert result.report["argmax_accuracy_after"] == pytest.approx((test.prob_BK.argmax(axis=1) == class_N).mean())
    expected = -np.log(test.prob_normalized()[np.arange(len(class_N)), class_N]).mean()
    assert result.report["normalized_nll_after"] == pytest.approx(expected, rel=1e-4)


def test_conformal_classes_are_decided_with_multilabel_and_in_the_set_with_argmax(run):
    result, splits = run("threshold=conformal", "threshold.coverage=0.9", "decision=multilabel")
    prediction = EdgePredictor(result.bundle.path).predict(splits.test.x, encoded=True)
    assert prediction.prediction_set() == prediction.labels()
    target_NK, _ = splits.test.labels.dense()
    own = [splits.taxonomy.ids[k] for k in target_NK.argmax(axis=1)]
    covered = [class_id in held for class_id, held in zip(own, prediction.prediction_set(), strict=True)]
    assert np.mean(covered) > 0.8
    assert {row["threshold_status"] for row in result.report["classes"]} == {"ok"}


def test_costs_of_the_taxonomy_set_thresholds_and_go_with_the_bundle(run):
    result, _ = run("threshold=cost", "taxonomy={train: {false_negative: 4, max_ece: 0.02, owner: rail}}")
    bundle = open_bundle(result.bundle.path)
    assert dict(zip(bundle.taxonomy.ids, bundle.card.thresholds, strict=True)) == pytest.approx(
        {"..": 0.5, "train": 0.2, "x/y": 0.5}
    )
    for taxonomy in (bundle.taxonomy, EdgePredictor(bundle.path).card.taxonomy):
        assert taxonomy[taxonomy.column("train")] == ClassSpec("train", owner="rail", false_negative=4, max_ece=0.02)


def test_what_a_rule_refuses_is_told_before_any_work(run, monkeypatch):
    with pytest.raises(ConfigError, match=r"taxonomy is 3; expected fields by class id, such as {fraud: {false_negative: 50}}"):
        run("taxonomy=3")
    with pytest.raises(TaxonomyError, match=r"does not have: 'trian' \(nearest: train\)"):
        run("taxonomy={trian: {false_negative: 4}}")
    monkeypatch.setattr(Convex, "fit", lambda *_, **__: pytest.fail("the fit has begun"))
    with pytest.raises(DataError, match="joint is for rows of one class each; calibration row"):
        run("calibrator=joint", "data.source.labels.separator=/")  # "x/y" is two classes
    with pytest.raises(ConfigError, match=r"model of 3 classes does not have: 'trian' \(nearest: train\)"):
        run("threshold=cost", "threshold.costs={trian: {false_negative: 5}}")
    monkeypatch.setattr(scale, "LARGE_K", 3)
    with pytest.raises(ConfigError, match=r"Joint calibrates all heads at once, and 3 are too many .*calibrator=temperature"):
        run("calibrator=joint")
