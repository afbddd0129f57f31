"""Bundles with cohorts that are calibrated, decided and measured again."""

from dataclasses import replace

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.calibrator.cohort import CohortCalibrator, cohort_prob
from ovr.calibrator.temperature import Temperature
from ovr.core.artifact import DecisionPolicy
from ovr.core.bundle import open_bundle
from ovr.core.calibrations import Calibrations
from ovr.core.cohorts import CohortCalibrations
from ovr.core.thresholds import OK
from ovr.data.labels import Labels
from ovr.data.splits import TestRows
from ovr.errors import ArtifactError, ConfigError, DataError
from ovr.lifecycle.calibrate import PARTED, STALE, calibrate
from ovr.lifecycle.cohorts import differing, merged
from ovr.lifecycle.decide import redecide
from ovr.lifecycle.evaluate import evaluate_bundle
from ovr.lifecycle.heads import last_version, replace_heads, retire, rollback
from ovr.lifecycle.logits import KnownLogits
from ovr.lifecycle.rewrite import calibrations_of, rewritten, thresholds_of
from ovr.lifecycle.rows import LabelledLogits, NewRows, labelled_logits
from ovr.metric.calibration import ece_equal_mass
from tests.cohorts import some_cohorts
from tests.lifecycle.conftest import CLASS_IDS, NUM_ROWS, rows_of, sample_labels, torch_logits

SEX = np.array(["F", "M"] * (NUM_ROWS // 2))
CALIBRATOR = CohortCalibrator(column="sex", min_positives=5)


@pytest.fixture(scope="module")
def rows(trained):
    """Labels of women are drawn with other odds than those of men."""
    model, _ = trained()
    x = rows_of(5)
    logit_NK = torch_logits(model, x).astype(np.float32)
    target_NK, mask_NK = sample_labels(logit_NK + np.where(SEX == "F", 3.0, -3.0)[:, None], 5)
    return x, logit_NK, Labels.from_dense(target_NK, mask_NK)


@pytest.fixture(scope="module")
def made(trained, rows, tmp_path_factory):
    """The bundle without cohorts, calibrated again with them."""
    _, logit_NK, labels = rows
    labelled = LabelledLogits(KnownLogits(logit_NK), labels, {"rows": "all"}, {"sex": SEX})
    out = tmp_path_factory.mktemp("cohorts") / "bundle"
    return calibrate(trained()[1], out, labelled, calibrator=Temperature(), cohort=CALIBRATOR)


def test_a_bundle_gets_cohorts_on_new_rows(trained, rows, made):
    x, logit_NK, labels = rows
    bundle = open_bundle(made.bundle.path)
    target_NK, mask_NK = labels.dense()
    calibrations = calibrations_of(bundle)
    expected = CALIBRATOR.joined([CALIBRATOR.fit(logit_NK, target_NK, mask_NK, SEX, calibrations)])
    assert bundle.cohorts == expected
    assert made.changed_ids == CLASS_IDS
    got = EdgePredictor(bundle.path).predict_proba(x, cohort=SEX)
    prob_NK = cohort_prob(logit_NK, calibrations, expected, expected.numbers(SEX))
    np.testing.assert_allclose(got, prob_NK, atol=5e-5)
    shared = trained()[1].backbone_onnx.stat().st_ino == bundle.backbone_onnx.stat().st_ino
    assert shared


def test_figures_are_of_each_row_s_own_calibration(rows, made):
    x, logit_NK, labels = rows
    bundle, (target_NK, mask_NK) = made.bundle, labels.dense()
    evaluation = evaluate_bundle(bundle, NewRows(TestRows(x, labels, {"sex": SEX}), {"rows": "all"}))
    prob_NK = cohort_prob(logit_NK, calibrations_of(bundle), bundle.cohorts, bundle.cohorts.numbers(SEX))
    ece_K = [row["ece_after"] for row in evaluation.report["classes"]]
    np.testing.assert_allclose(ece_K, ece_equal_mass(prob_NK, target_NK, mask_NK), atol=1e-4)
    assert evaluation.report["max_abs_diff"] < 5e-5
    with pytest.raises(DataError, match=r"no cohorts of column 'sex', by which the bundle calibrates, but of none; add data"):
        evaluate_bundle(bundle, NewRows(TestRows(x, labels), {"rows": "all"}))


def test_the_column_of_the_bundle_is_that_of_the_next_calibration_and_other_classes_stay(made, rows, tmp_path):
    _, logit_NK, labels = rows
    labelled = LabelledLogits(KnownLogits(logit_NK[:200]), labels.take(np.arange(200)), {}, {"sex": SEX[:200]})
    again = calibrate(made.bundle, tmp_path / "again", labelled, calibrator=Temperature(), class_ids=["train"])
    before, after = made.bundle.cohorts, again.bundle.cohorts
    assert again.changed_ids == ("train",)
    for c in (0, 1):
        assert after.scale[c][:3] == before.scale[c][:3]
        assert after.scale[c][3] != before.scale[c][3]
    with pytest.raises(DataError, match="no cohorts of column 'sex'"):
        calibrate(made.bundle, tmp_path / "none", replace(labelled, cohorts={}), calibrator=Temperature())


def test_thresholds_are_chosen_on_each_row_s_own_calibration_and_cohorts_stay(made, rows, tmp_path):
    class Rule:
        def fit(self, prob_NK, target_NK, mask_NK):
            self.prob_NK = prob_NK
            return np.full(prob_NK.shape[1], 0.25)

    _, logit_NK, labels = rows
    bundle, rule = made.bundle, Rule()
    labelled = LabelledLogits(KnownLogits(logit_NK), labels, {}, {"sex": SEX})
    decided = redecide(bundle, tmp_path / "decided", labelled, threshold=rule, policy=bundle.policy)
    expected = cohort_prob(logit_NK, calibrations_of(bundle), bundle.cohorts, bundle.cohorts.numbers(SEX))
    np.testing.assert_allclose(rule.prob_NK, expected, atol=1e-6)
    assert decided.bundle.cohorts == bundle.cohorts
    assert (decided.bundle.path / "reference/logit.npy").stat().st_ino == (bundle.path / "reference/logit.npy").stat().st_ino


def test_a_bundle_keeps_the_cohorts_of_its_own_calibration_rows(made):
    with pytest.raises(ArtifactError, match=r"cohort\.npy"):
        labelled_logits(made.bundle, None)


def test_bundles_with_head_shards_hold_no_cohorts(sharded, tmp_path):
    _, bundle = sharded
    settings = {"calibrations": calibrations_of(bundle), "threshold_K": np.array(bundle.card.thresholds), "policy": bundle.policy}
    with pytest.raises(ArtifactError, match=r"has head shards, and those hold no calibration a cohort \(sex\)"):
        rewritten(bundle, tmp_path / "out", **settings, cohorts=some_cohorts(len(CLASS_IDS)), entry={})


def test_heads_with_another_calibration_of_a_cohort_differ():
    cohorts = some_cohorts(3)
    assert not differing(cohorts, some_cohorts(3), 3).any()
    assert not differing(None, None, 3).any()
    changed = replace(cohorts, bias=(cohorts.bias[0], (*cohorts.bias[1][:2], 9.0)))
    assert differing(cohorts, changed, 3).tolist() == [False, False, True]
    for other in (None, some_cohorts(3, column="shop"), some_cohorts(3, ("F", "x"))):
        assert differing(cohorts, other, 3).all()


def test_cohorts_that_only_one_of_two_calibrations_has_keep_the_pooled_one():
    pooled = Calibrations.identity(3)
    old, new = some_cohorts(3, ("F", "M")), some_cohorts(3, ("F", "x"), seed=1)
    both: CohortCalibrations = merged(old, new, {1}, pooled)
    assert both.names == ("F", "M", "x")
    assert both.scale[0] == (old.scale[0][0], new.scale[0][1], old.scale[0][2])
    assert both.scale[1] == (old.scale[1][0], 1.0, old.scale[1][2])
    assert both.status[1] == ("ok", "pooled", "ok")
    assert both.scale[2] == (1.0, new.scale[1][1], 1.0)
    assert merged(old, new, None, pooled) is new
    assert merged(some_cohorts(3, column="shop"), new, {0}, pooled).names == ("F", "x")


def taken(bundle, x, cohort=SEX):
    return EdgePredictor(bundle.path).predict_proba(x, cohort=cohort) >= np.float32(bundle.card.thresholds)


def test_thresholds_that_cohorts_move_apart_say_that_they_keep_no_promise(trained, made, rows, tmp_path, caplog):
    x, logit_NK, labels = rows
    assert set(thresholds_of(made.bundle).status_K) == {PARTED}  # cohorts are new: rows of each get other probabilities
    policy = DecisionPolicy("multilabel", abstain_below=0.2)
    kept = {"threshold_K": np.array(made.bundle.card.thresholds), "policy": policy, "entry": {}}
    calibrations, cohorts = calibrations_of(made.bundle), made.bundle.cohorts
    promised = rewritten(
        made.bundle, tmp_path / "ok", calibrations=calibrations, cohorts=cohorts, threshold_status_K=[OK] * 4, **kept
    ).bundle
    same = LabelledLogits(KnownLogits(logit_NK), labels, {}, {"sex": SEX})
    again = calibrate(promised, tmp_path / "same", same, calibrator=Temperature(), cohort=CALIBRATOR).bundle
    assert thresholds_of(again).status_K == (OK,) * 4
    assert "abstention_status" not in again.provenance
    # Labels of men alone change: pooled and F move otherwise than M.
    target_NK, mask_NK = labels.dense()
    flipped_NK = (SEX == "M")[:, None] & (target_NK.cumsum(axis=0) % 3 == 0)
    flipped = replace(same, labels=Labels.from_dense(target_NK ^ flipped_NK, mask_NK))
    caplog.clear()
    ids = CLASS_IDS[1:3]
    moved = calibrate(promised, tmp_path / "moved", flipped, calibrator=Temperature(), cohort=CALIBRATOR, class_ids=ids).bundle
    assert thresholds_of(moved).status_K == (OK, PARTED, PARTED, OK)
    assert f"2 thresholds no longer take the rows that they took: {ids[0]!r}, {ids[1]!r}; `ovr decide" in caplog.text
    differ_K = (taken(promised, x) != taken(moved, x)).any(axis=0)
    assert not differ_K[[0, 3]].any()
    assert differ_K[1:3].any()
    by_shop = LabelledLogits(KnownLogits(logit_NK), labels, {}, {"shop": np.where(SEX == "F", "a", "b")})
    other = CohortCalibrator(column="shop", min_positives=5)
    shops = calibrate(promised, tmp_path / "shop", by_shop, calibrator=Temperature(), cohort=other).bundle
    assert set(thresholds_of(shops).status_K) == {PARTED}
    assert calibrations_of(shops) == calibrations_of(promised)  # the pooled ones: what changed are the cohorts
    assert shops.provenance["abstention_status"] == STALE
    numbers = calibrate(promised, tmp_path / "n", flipped, calibrator=Temperature(), cohort=CALIBRATOR, thresholds="same_numbers")
    assert thresholds_of(numbers.bundle).status_K == (OK,) * 4


def test_cohorts_are_taken_off(trained, made, rows, tmp_path):
    x, logit_NK, labels = rows
    labelled = LabelledLogits(KnownLogits(logit_NK), labels, {})
    off = calibrate(made.bundle, tmp_path / "off", labelled, calibrator=Temperature(), cohort=None)
    bundle = open_bundle(off.bundle.path)
    assert bundle.cohorts is None
    assert off.changed_ids == CLASS_IDS
    plain = calibrate(trained()[1], tmp_path / "plain", labelled, calibrator=Temperature()).bundle
    assert {path.name for path in (bundle.path / "reference").iterdir()} == {"x.npy", "prob.npy"}
    np.testing.assert_array_equal(EdgePredictor(bundle.path).predict_proba(x), EdgePredictor(plain.path).predict_proba(x))
    assert calibrate(plain, tmp_path / "none", labelled, calibrator=Temperature(), cohort=None).changed_ids == ()
    own = labelled_logits(made.bundle, None, with_cohorts=False)
    assert calibrate(made.bundle, tmp_path / "own", own, calibrator=Temperature(), cohort=None).bundle.cohorts is None
    with pytest.raises(ConfigError, match="cohort=null takes the calibrations of cohorts off all heads at once; leave classes out"):
        calibrate(made.bundle, tmp_path / "some", labelled, calibrator=Temperature(), cohort=None, class_ids=["train"])


def test_a_version_that_comes_back_has_the_calibrations_of_cohorts_that_it_had(made, rows, tmp_path):
    bundle, x = made.bundle, rows[0]
    gone = retire(bundle, tmp_path / "gone", [CLASS_IDS[1]]).bundle
    assert gone.cohorts.num_heads == 3
    back = rollback(gone, tmp_path / "back", [last_version(gone, CLASS_IDS[1])]).bundle
    assert back.merkle_root == bundle.merkle_root
    order = [bundle.taxonomy.column(class_id) for class_id in back.taxonomy.ids]
    ours, theirs = (EdgePredictor(each.path).predict_proba(x, cohort=SEX) for each in (bundle, back))
    np.testing.assert_array_equal(theirs, ours[:, order])
    other = replace_heads(gone, tmp_path / "other", back, [CLASS_IDS[1]]).bundle  # as a new version, pooled
    assert other.head(CLASS_IDS[1]).version == bundle.head(CLASS_IDS[1]).version + 1
    column = other.taxonomy.column(CLASS_IDS[1])
    assert {row[column] for row in other.cohorts.status} == {"pooled"}
