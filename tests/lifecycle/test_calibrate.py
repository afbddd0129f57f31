"""Calibrating a bundle again: what changes, what stays byte for byte, and what is refused."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.calibrator.apply import calibrated_prob
from ovr.calibrator.isotonic import Isotonic
from ovr.calibrator.joint import Joint
from ovr.calibrator.temperature import Temperature
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.bundle import FUSED_ONNX, MANIFEST, head_directory, open_bundle
from ovr.core.calibrations import Calibrations
from ovr.core.files import sha256_file
from ovr.data.labels import Labels
from ovr.data.splits import TestRows
from ovr.errors import ArtifactError, ConfigError, DataError, TaxonomyError
from ovr.lifecycle.calibrate import JOINED, STALE, calibrate, moved_thresholds
from ovr.lifecycle.heads import respecified
from ovr.lifecycle.logits import StoredLogits, bundle_features
from ovr.lifecycle.rewrite import calibrations_of, rewritten, thresholds_of
from ovr.lifecycle.rows import LabelledLogits, NewRows, labelled_logits
from tests.lifecycle.conftest import CLASS_IDS, rows_of, sample_labels, torch_logits

HEADS = ["linear", "mlp"]
ISOTONIC = Calibration("isotonic", status="ok", knot_logits=(-3.0, 0.0, 1.0), knot_probs=(0.1, 0.1, 0.8))
BETA = Calibration("beta", scale=0.7, bias=0.2, scale_negative=1.3, status="ok")


class Fixed:
    """A calibrator that says what it is told."""

    kinds = ()

    def __init__(self, *calibrations):
        self.calibrations = list(calibrations)

    def fit(self, logit_NK, target_NK, mask_NK):
        assert logit_NK.shape[1] == len(self.calibrations)
        return self.calibrations


def digests(bundle):
    return {path.relative_to(bundle.path).as_posix(): sha256_file(path) for path in bundle.path.rglob("*") if path.is_file()}


def new(model, seed=2):
    x = rows_of(seed)
    labels = Labels.from_dense(*sample_labels(torch_logits(model, x), seed))
    return NewRows(TestRows(x, labels), {"rows": "all", "num_rows": len(x)})


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_those_of_torch(trained, head):
    model, bundle = trained(head)
    x = rows_of(3, 300)
    logits = StoredLogits(bundle, bundle_features(bundle, x))
    got_NK = np.concatenate([logit_NC for _, logit_NC in logits], axis=1)
    np.testing.assert_allclose(got_NK, torch_logits(model, x), atol=2e-5)
    assert (len(logits), logits.num_heads) == got_NK.shape


@pytest.mark.parametrize("head", HEADS)
def test_new_rows_give_the_calibrations_that_torch_s_logits_give(trained, tmp_path, head):
    model, bundle = trained(head)
    rows = new(model)
    made = calibrate(bundle, tmp_path / "out", labelled_logits(bundle, rows), calibrator=Temperature())
    expected = Temperature().fit(torch_logits(model, rows.rows.x), *rows.rows.labels.dense())
    again = open_bundle(tmp_path / "out")
    assert made.changed_ids == CLASS_IDS
    for head_made, old, calibration in zip(again.heads, bundle.heads, expected, strict=True):
        assert head_made.calibration.scale == pytest.approx(calibration.scale, rel=1e-4)
        assert (head_made.version, head_made.metrics) == (old.version + 1, {})
    x = rows_of(4, 50)
    prob_NK = calibrated_prob(torch_logits(model, x), [head_made.calibration for head_made in again.heads])
    np.testing.assert_allclose(EdgePredictor(again.path).predict_proba(x), prob_NK, atol=2e-5)
    np.testing.assert_allclose(np.load(again.path / "reference/prob.npy"), _reference(again), atol=1e-5)


def _reference(bundle):
    return EdgePredictor(bundle.path).predict_proba(np.load(bundle.path / "reference/x.npy"))


def test_heads_of_other_kinds_of_calibration_are_served_and_a_second_step_goes_on_from_them(trained, tmp_path):
    model, bundle = trained()
    plain = calibrations_of(bundle)
    rows = labelled_logits(bundle, None)
    first = calibrate(bundle, tmp_path / "one", rows, calibrator=Fixed(BETA, ISOTONIC, plain[2], plain[3]))
    assert first.changed_ids == CLASS_IDS[:2]
    second = calibrate(first.bundle, tmp_path / "two", labelled_logits(first.bundle, new(model)), calibrator=Temperature())
    x = rows_of(4, 50)
    for made in (first, second):
        expected_NK = calibrated_prob(torch_logits(model, x), calibrations_of(made.bundle))
        np.testing.assert_allclose(EdgePredictor(made.bundle.path).predict_proba(x), expected_NK, atol=2e-5)
    assert [head.version for head in second.bundle.heads] == [3, 4, 4, 5]
    history = open_bundle(tmp_path / "two").provenance["history"]
    assert [entry["parent_bundle_sha256"] for entry in history] == [bundle.bundle_sha256, first.bundle.bundle_sha256]
    assert {entry["report_is_of_bundle_sha256"] for entry in history} == {bundle.bundle_sha256}
    assert [entry["num_changed_heads"] for entry in history] == [2, 4]


def test_the_files_of_other_heads_and_parts_stay_byte_for_byte(trained, tmp_path):
    model, bundle = trained()
    before = digests(bundle)
    made = calibrate(
        bundle, tmp_path / "out", labelled_logits(bundle, new(model)), calibrator=Temperature(), class_ids=[CLASS_IDS[1]]
    )
    assert digests(bundle) == before  # the parent is never touched
    after = digests(made.bundle)
    own = {f"{head_directory(made.bundle.heads[1])}/{name}" for name in ("head.json", "model.onnx")}
    assert before.items() - after.items() <= {(name, before[name]) for name in (MANIFEST, FUSED_ONNX, "reference/prob.npy")}
    differ = {name for name in {**before, **after} if before.get(name) != after.get(name)}
    assert differ == {MANIFEST, FUSED_ONNX, "reference/prob.npy", *own}
    assert os.path.samefile(bundle.backbone_onnx, made.bundle.backbone_onnx)
    assert [head.version for head in made.bundle.heads] == [1, 3, 3, 4]
    before_NK, after_NK = (np.load(each.path / "reference/prob.npy") for each in (bundle, made.bundle))
    np.testing.assert_array_equal(np.delete(before_NK, 1, axis=1), np.delete(after_NK, 1, axis=1))
    x = rows_of(4, 20)
    before_NK, after_NK = (EdgePredictor(each.path).predict_proba(x) for each in (bundle, made.bundle))
    np.testing.assert_array_equal(np.delete(before_NK, 1, axis=1), np.delete(after_NK, 1, axis=1))
    assert (before_NK[:, 1] != after_NK[:, 1]).all()


def test_the_same_rows_and_settings_change_nothing_but_the_history(trained, tmp_path):
    _, bundle = trained()
    made = calibrate(bundle, tmp_path / "out", labelled_logits(bundle, None), calibrator=Temperature())
    assert made.changed_ids == ()
    before, after = digests(bundle), digests(made.bundle)
    assert {name for name in before if before[name] != after[name]} == {MANIFEST, FUSED_ONNX}  # the card names the bundle
    assert before.keys() == after.keys()


@pytest.mark.parametrize("thresholds", ["same_rows", "same_numbers"])
def test_thresholds_take_the_rows_that_they_took_or_keep_their_numbers(trained, tmp_path, thresholds):
    model, bundle = trained()
    rows = labelled_logits(bundle, new(model))
    made = calibrate(bundle, tmp_path / "out", rows, calibrator=Temperature(prior_strength=0.0), thresholds=thresholds)
    x = rows_of(5)
    taken = [EdgePredictor(each.path).predict_proba(x) >= np.float32(each.card.thresholds) for each in (bundle, made.bundle)]
    assert (taken[0] == taken[1]).all() == (thresholds == "same_rows")
    assert (made.bundle.card.thresholds == bundle.card.thresholds) == (thresholds == "same_numbers")


def test_heads_of_critical_classes_that_change_without_a_gate_are_told(trained, tmp_path, caplog):
    model, bundle = trained()
    critical = respecified(bundle, tmp_path / "critical", [replace(bundle.taxonomy[1], critical=True)]).bundle
    made = calibrate(critical, tmp_path / "out", labelled_logits(critical, new(model)), calibrator=Temperature()).bundle
    step = made.provenance["history"][-1]
    assert (step["gated"], step["ungated_critical"]) == (False, [CLASS_IDS[1]])
    assert "1 heads of critical classes change and pass no gate: " in caplog.text
    assert "ungated_critical" not in critical.provenance["history"][-1]


def test_thresholds_that_take_all_rows_or_none_stay():
    before = Calibrations.of([Calibration()] * 4 + [ISOTONIC] * 2)
    after = Calibrations.of([Calibration(scale=2.0)] * 3 + [Calibration()] + [BETA] * 2)
    threshold_K = np.array([0.0, 1.5, 0.7, 0.7, 0.9, 0.5])
    moved_K, joined_K = moved_thresholds(threshold_K, before, after)
    assert not joined_K.any()
    assert moved_K[[0, 1, 3, 4]].tolist() == threshold_K[[0, 1, 3, 4]].tolist()
    assert moved_K[2] == pytest.approx(0.49 / (0.49 + 0.09), abs=1e-6)  # twice the log-odds of 0.7
    z = np.float64(0.4 / 0.7)  # where the line from (0, 0.1) to (1, 0.8) is at 0.5
    assert moved_K[5] == pytest.approx(calibrated_prob([[z]], [BETA])[0, 0], abs=1e-6)


def test_a_threshold_that_no_number_keeps_takes_no_row_more_and_says_so(trained, tmp_path, caplog):
    """Isotonic gives rows on both sides of a cut one probability; fallbacks, which decide on nothing, stay as they are."""
    model, bundle = trained()
    before = list(thresholds_of(bundle).status_K)
    before[0] = "cannot_be_promised: n = 12 positives, needs at least 29"
    first = rewritten(
        bundle,
        tmp_path / "first",
        calibrations=calibrations_of(bundle),
        threshold_K=np.array([1.0, *bundle.card.thresholds[1:]]),
        policy=DecisionPolicy("multilabel", abstain_below=0.2),
        cohorts=None,
        entry={"command": "decide"},
        threshold_status_K=before,
    ).bundle
    made = calibrate(first, tmp_path / "out", labelled_logits(first, new(model)), calibrator=Isotonic()).bundle
    status_K = thresholds_of(made).status_K
    assert (made.card.thresholds[0], status_K[0]) == (1.0, before[0])
    joined = [k for k, status in enumerate(status_K) if status == JOINED]
    assert joined
    assert "thresholds no longer take the rows that they took" in caplog.text
    x = rows_of(5)
    taken = [EdgePredictor(each.path).predict_proba(x) >= np.float32(each.card.thresholds) for each in (first, made)]
    assert not (taken[1] & ~taken[0])[:, joined].any()
    kept = [k for k, status in enumerate(status_K) if status == "ok"]
    assert kept
    assert (taken[0] == taken[1])[:, kept].all()
    assert made.provenance["abstention_status"] == STALE
    assert "abstain_below=0.2000 was chosen on other probabilities" in caplog.text


def test_a_bundle_of_shards_is_calibrated_a_shard_at_a_time(sharded, tmp_path):
    model, bundle = sharded
    same = calibrate(bundle, tmp_path / "same", labelled_logits(bundle, None), calibrator=Temperature(), class_ids=CLASS_IDS)
    rows = labelled_logits(bundle, new(model))
    made = calibrate(bundle, tmp_path / "out", rows, calibrator=Temperature(), class_ids=[CLASS_IDS[2]])
    again = open_bundle(tmp_path / "out")
    assert [head.version for head in again.heads] == [3, 3, 4, 3]
    before, after = digests(bundle), digests(made.bundle)
    second = bundle.shards[1]
    assert {name for name in after if before[name] != after[name]} == {
        MANIFEST, FUSED_ONNX, "reference/prob.npy", second.heads_file, second.onnx_file,
    }  # fmt: skip
    x = rows_of(4, 50)
    expected_NK = calibrated_prob(torch_logits(model, x), calibrations_of(again))
    np.testing.assert_allclose(EdgePredictor(again.path).predict_proba(x), expected_NK, atol=2e-5)
    # Features that the bundle keeps are torch's; ONNX Runtime's logits of them differ in the last digits.
    scale_K = calibrations_of(same.bundle).scale_K
    np.testing.assert_allclose(scale_K, calibrations_of(bundle).scale_K, rtol=1e-4)
    with pytest.raises(ArtifactError, match=r"a bundle with head shards keeps identity, temperature, platt.* calibrations only"):
        calibrate(bundle, tmp_path / "beta", rows, calibrator=Fixed(BETA, BETA))


def test_a_calibrator_of_all_heads_at_once_is_given_them(sharded, tmp_path, monkeypatch):
    _, bundle = sharded
    platt = Calibration("platt", scale=0.5, bias=0.1, status="ok")
    joint = Fixed(*[platt] * 4)
    joint.all_heads = True
    made = calibrate(bundle, tmp_path / "out", labelled_logits(bundle, None), calibrator=joint)
    assert calibrations_of(made.bundle) == Calibrations.of([platt] * 4)
    monkeypatch.setattr("ovr.core.scale.LARGE_K", 4)
    with pytest.raises(
        ConfigError, match=r"Fixed calibrates all heads at once, and 4 are too many for that \(from 4 on .*calibrator=temperature"
    ):
        calibrate(bundle, tmp_path / "more", labelled_logits(bundle, None), calibrator=joint)


def test_what_cannot_be_done_is_refused_before_any_work(trained, tmp_path):
    _, bundle = trained()
    rows = replace(labelled_logits(bundle, None), logits=None)  # which nothing here looks at
    for arguments, error, message in (
        ({"thresholds": "moved"}, ConfigError, "thresholds is 'moved'; expected same_rows or same_numbers"),
        ({"class_ids": []}, ConfigError, "classes is an empty list"),
        ({"class_ids": ["nobody"]}, TaxonomyError, "nobody"),
        ({"out": tmp_path}, ArtifactError, "exists already and is never overwritten"),
        ({"out": bundle.path / "new"}, ArtifactError, "lies within the bundle"),
        ({"calibrator": Joint()}, DataError, r"joint is for rows of one class each; calibration row \d+ has \d"),
    ):
        with pytest.raises(error, match=message):
            calibrate(bundle, **{"out": tmp_path / "out", "rows": rows, "calibrator": Fixed(), **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_whose_answers_are_not_its_heads_is_refused(trained, tmp_path):
    model, bundle = trained()
    wrong = labelled_logits(bundle, new(model))
    other = rows_of(9, 32)
    np.save(tmp_path / "x.npy", other)
    moved = type(bundle)(**{name: getattr(bundle, name) for name in bundle.__slots__})
    copy = tmp_path / "copy"
    import shutil

    shutil.copytree(bundle.path, copy)
    np.save(copy / "reference/prob.npy", 1 - np.load(copy / "reference/prob.npy"))
    object.__setattr__(moved, "path", copy)
    with pytest.raises(ArtifactError, match="the bundle's heads in ONNX Runtime gives class 'cat' on reference row 0"):
        calibrate(moved, tmp_path / "out", wrong, calibrator=Temperature())
    assert not (tmp_path / "out").exists()


def test_calibration_rows_that_are_absent_or_do_not_fit_are_named(trained, tmp_path):
    import shutil

    _, bundle = trained()
    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    broken = type(bundle)(**{name: getattr(bundle, name) for name in bundle.__slots__})
    object.__setattr__(broken, "path", copy)
    np.save(copy / "calibration/logit.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(ArtifactError, match=r"keeps logits \(3, 4\) and labels \(400, 4\) of calibration rows"):
        labelled_logits(broken, None)
    (copy / "calibration/logit.npy").unlink()
    with pytest.raises(ArtifactError, match=r"keeps no calibration rows that can be read \(logit\.npy.*; give rows with data="):
        labelled_logits(broken, None)


def test_json_of_the_manifest_tells_the_step(trained, tmp_path):
    _, bundle = trained()
    rows = LabelledLogits(*(getattr(labelled_logits(bundle, None), name) for name in ("logits", "labels")), {"rows": "mine"})
    calibrate(bundle, tmp_path / "out", rows, calibrator=Temperature(), settings={"calibrator": {"prior_strength": 5.0}})
    (entry,) = json.loads((tmp_path / "out" / MANIFEST).read_text())["provenance"]["history"]
    assert (entry["command"], entry["data"], entry["thresholds"]) == ("calibrate", {"rows": "mine"}, "same_rows")
    assert entry["calibrator"] == {"prior_strength": 5.0}
