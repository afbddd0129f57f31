from dataclasses import replace

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.abstention.promises import SAME_ROWS, SAME_THRESHOLDS
from ovr.abstention.review_rate import ReviewRate
from ovr.abstention.target_risk import TargetRisk
from ovr.calibrator.apply import calibrated_prob
from ovr.calibrator.isotonic import Isotonic
from ovr.core.artifact import DecisionPolicy
from ovr.core.bundle import FUSED_ONNX, MANIFEST, head_directory, open_bundle
from ovr.core.thresholds import Thresholds
from ovr.data.leakage import row_digests
from ovr.data.overlap import CALIBRATION, read_digests
from ovr.errors import ArtifactError, ConfigError
from ovr.lifecycle.calibrate import calibrate
from ovr.lifecycle.decide import STALE, redecide
from ovr.lifecycle.rewrite import calibrations_of
from ovr.lifecycle.rows import labelled_logits
from ovr.threshold.conformal import Conformal
from ovr.threshold.max_f_beta import MaxFBeta, max_f_beta_thresholds
from tests.lifecycle.conftest import CLASS_IDS, rows_of
from tests.lifecycle.test_calibrate import digests, new

FILES = ("head.json", "model.onnx")
POLICY = DecisionPolicy(mode="multilabel", abstain_below=0.1, top_k=2)


def test_thresholds_are_chosen_on_the_rows_that_the_bundle_keeps(trained, tmp_path):
    _, bundle = trained()
    made = redecide(bundle, tmp_path / "out", labelled_logits(bundle, None), threshold=MaxFBeta(), policy=POLICY)
    logit_NK, target_NK, mask_NK = (np.load(bundle.path / f"calibration/{name}.npy") for name in ("logit", "target", "mask"))
    prob_NK = calibrated_prob(logit_NK, calibrations_of(bundle)).astype(np.float32)
    again = open_bundle(tmp_path / "out")
    assert list(again.card.thresholds) == max_f_beta_thresholds(prob_NK, target_NK, mask_NK).threshold_K.tolist()
    assert again.policy == POLICY
    assert made.changed_ids == CLASS_IDS
    assert [head.version for head in again.heads] == [head.version + 1 for head in bundle.heads]
    x = rows_of(4, 30)
    before, after = EdgePredictor(bundle.path), EdgePredictor(again.path)
    np.testing.assert_array_equal(before.predict_proba(x), after.predict_proba(x))
    labels = after.predict(x).decision.label_BK
    highest = after.predict_proba(x).max(axis=1) >= 0.1
    expected = (after.predict_proba(x) >= np.float32(again.card.thresholds)) & highest[:, None]
    np.testing.assert_array_equal(labels, expected)


def test_some_thresholds_change_those_heads_alone_and_answers_stay_as_they_are(trained, tmp_path):
    model, bundle = trained()
    rows = labelled_logits(bundle, new(model))
    made = redecide(bundle, tmp_path / "out", rows, threshold=MaxFBeta(), policy=bundle.policy, class_ids=[CLASS_IDS[3]])
    before, after = digests(bundle), digests(made.bundle)
    own = {f"{head_directory(made.bundle.heads[3])}/{name}" for name in ("head.json", "model.onnx")}
    assert {name for name in {**before, **after} if before.get(name) != after.get(name)} == {MANIFEST, FUSED_ONNX, *own}
    assert made.bundle.card.thresholds[:3] == bundle.card.thresholds[:3]
    (entry,) = made.bundle.provenance["history"]
    assert (entry["command"], entry["num_changed_heads"]) == ("decide", 1)


def test_what_is_not_named_stays(trained, tmp_path):
    _, bundle = trained()
    rows = labelled_logits(bundle, None)
    policy = replace(POLICY, abstain_below=0.3)
    first = redecide(bundle, tmp_path / "first", rows, policy=policy).bundle
    assert (first.policy, first.card.thresholds) == (policy, bundle.card.thresholds)
    assert first.provenance["abstention_status"] == "constant"
    second = redecide(first, tmp_path / "second", rows, threshold=MaxFBeta(beta=3.0)).bundle
    assert second.policy == policy
    assert second.card.thresholds != first.card.thresholds
    third = redecide(second, tmp_path / "third", rows, abstention=ReviewRate(rate=0.2)).bundle
    assert (third.policy.mode, third.card.thresholds) == (policy.mode, second.card.thresholds)
    assert third.provenance["abstention_status"] != "constant"
    with pytest.raises(ConfigError, match="there is nothing to choose; give decision=, threshold= or abstention="):
        redecide(third, tmp_path / "fourth", rows)


def test_another_policy_alone_changes_no_head(sharded, tmp_path):
    _, bundle = sharded
    rows = labelled_logits(bundle, None)

    threshold_K = iter(np.split(np.array(bundle.card.thresholds), 2))  # a shard at a time

    class Same:
        def fit(self, prob_NK, target_NK, mask_NK):
            return next(threshold_K)

    made = redecide(bundle, tmp_path / "out", rows, threshold=Same(), policy=POLICY)
    assert (made.changed_ids, open_bundle(tmp_path / "out").policy) == ((), POLICY)
    assert digests(bundle).keys() == digests(made.bundle).keys()
    changed = redecide(bundle, tmp_path / "more", rows, threshold=MaxFBeta(), policy=POLICY).bundle
    before, after = digests(bundle), digests(changed)
    assert {name for name in after if before[name] != after[name]} == {
        MANIFEST, FUSED_ONNX, *(shard.heads_file for shard in bundle.shards),
    }  # fmt: skip


def test_a_place_that_is_taken_is_refused(trained, tmp_path):
    _, bundle = trained()
    with pytest.raises(ArtifactError, match="exists already"):
        redecide(bundle, tmp_path, labelled_logits(bundle, None), threshold=MaxFBeta(), policy=POLICY)


class Promised:
    """A rule that cannot promise anything of one class, and knows which."""

    def of_classes(self, taxonomy, columns):
        self.here = taxonomy.ids[columns]
        return self

    def fit(self, prob_NK, target_NK, mask_NK):
        status_K = tuple("ok" if class_id != CLASS_IDS[1] else "cannot_be_promised: n = 3" for class_id in self.here)
        return Thresholds(np.full(len(status_K), 0.25), status_K)


class Half:
    """An abstention rule: half of the rows are not decided on."""

    def fit(self, highest_N, right_N, known_N):
        return Thresholds(np.array([np.median(highest_N)], np.float32).astype(np.float64), ("ok",))


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_what_is_said_of_a_threshold_is_kept_and_the_limit_is_chosen_with_it(trained, sharded, tmp_path, kind, caplog):
    _, bundle = trained() if kind == "files" else sharded
    rows = labelled_logits(bundle, None)
    made = redecide(bundle, tmp_path / "out", rows, threshold=Promised(), policy=POLICY, abstention=Half()).bundle
    again = open_bundle(tmp_path / "out")
    said = [head.threshold_status for head in again.heads]
    assert said == ["ok", "cannot_be_promised: n = 3", "ok", "ok"]
    assert "1 of 4 thresholds are without the promise asked for" in caplog.text
    prob_NK = np.concatenate([calibrated_prob(logit_NC, calibrations_of(made)[block]) for block, logit_NC in rows.logits], axis=1)
    assert again.provenance["history"][-1]["abstention_status"] == "ok"
    assert again.policy.abstain_below == pytest.approx(np.median(prob_NK.max(axis=1)), abs=1e-6)
    later = redecide(again, tmp_path / "later", rows, threshold=Promised(), policy=POLICY)
    assert (later.changed_ids, later.bundle.policy) == ((), POLICY)


def told(model, bundle):
    """Return new rows with what `new_rows` tells of them."""
    rows = new(model)
    digest_N = row_digests(rows.rows.x)
    num_calibrated_on = int(np.isin(digest_N, read_digests(bundle.path, CALIBRATION)).sum())
    return replace(rows, record={**rows.record, "num_calibrated_on": num_calibrated_on}, digest_N=digest_N)


def test_rows_that_the_model_was_calibrated_on_bear_no_promise_and_others_do(trained, tmp_path):
    model, bundle = trained()
    own, others = labelled_logits(bundle, None), labelled_logits(bundle, told(model, bundle))
    rules = {"threshold": Conformal(coverage=0.8), "abstention": ReviewRate(rate=0.2)}

    def said(base, rows, name, **rules):
        made = redecide(base, tmp_path / name, rows, **rules).bundle
        return {head.threshold_status for head in made.heads}, made.provenance["abstention_status"]

    assert said(bundle, own, "own", **rules) == ({"ok"}, SAME_ROWS)  # temperatures leave ranks within a head
    assert said(bundle, others, "others", **rules) == ({"ok"}, "ok")
    tied = calibrate(bundle, tmp_path / "tied", own, calibrator=Isotonic()).bundle
    assert said(tied, own, "tied own", **rules) == ({SAME_ROWS}, SAME_ROWS)
    assert said(tied, others, "tied others", **rules) == ({"ok"}, "ok")
    on_others = calibrate(bundle, tmp_path / "on others", others, calibrator=Isotonic()).bundle
    again = labelled_logits(on_others, told(model, on_others))
    assert again.record["num_calibrated_on"] == len(again.logits)
    assert said(on_others, again, "again", **rules) == ({SAME_ROWS}, SAME_ROWS)


def test_a_risk_is_promised_of_decisions_by_thresholds_that_were_chosen_on_other_rows(trained, tmp_path):
    model, bundle = trained()
    rows, risk = labelled_logits(bundle, told(model, bundle)), TargetRisk(risk=0.9)
    both = redecide(bundle, tmp_path / "both", rows, threshold=MaxFBeta(), abstention=risk).bundle
    assert both.provenance["abstention_status"] == SAME_THRESHOLDS
    alone = redecide(bundle, tmp_path / "alone", rows, abstention=risk).bundle
    assert alone.provenance["abstention_status"] == "ok"


def test_a_limit_is_stale_where_other_thresholds_decide(trained, tmp_path):
    model, bundle = trained()
    rows = labelled_logits(bundle, told(model, bundle))
    made = redecide(bundle, tmp_path / "limit", rows, abstention=ReviewRate(rate=0.2)).bundle
    later = redecide(made, tmp_path / "later", rows, threshold=MaxFBeta(beta=3.0)).bundle
    assert (later.policy, later.provenance["abstention_status"]) == (made.policy, STALE)
    assert later.provenance["history"][-1]["abstention_status"] == STALE
    same = redecide(later, tmp_path / "same", rows, threshold=MaxFBeta(beta=3.0), abstention=ReviewRate(rate=0.2)).bundle
    argmax = redecide(same, tmp_path / "argmax", rows, policy=replace(same.policy, mode="argmax")).bundle
    assert argmax.provenance["abstention_status"] == "constant"
    again = redecide(argmax, tmp_path / "again", rows, threshold=MaxFBeta()).bundle
    assert again.provenance["abstention_status"] == "constant"
