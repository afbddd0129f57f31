import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import DecisionPolicy
from ovr.core.bundle import FUSED_ONNX, MANIFEST, head_directory, open_bundle
from ovr.decision.threshold import MaxF1, max_f1_thresholds
from ovr.errors import ArtifactError
from ovr.lifecycle.decide import redecide
from ovr.lifecycle.rewrite import calibrations_of
from ovr.lifecycle.rows import labelled_logits
from tests.lifecycle.conftest import CLASS_IDS, rows_of
from tests.lifecycle.test_calibrate import digests, new

FILES = ("head.json", "model.onnx")
POLICY = DecisionPolicy(mode="multilabel", abstain_below=0.1, top_k=2)


def test_thresholds_are_chosen_on_the_rows_that_the_bundle_keeps(trained, tmp_path):
    _, bundle = trained()
    made = redecide(bundle, tmp_path / "out", labelled_logits(bundle, None), threshold=MaxF1(), policy=POLICY)
    logit_NK, target_NK, mask_NK = (np.load(bundle.path / f"calibration/{name}.npy") for name in ("logit", "target", "mask"))
    prob_NK = calibrated_prob(logit_NK, calibrations_of(bundle)).astype(np.float32)
    again = open_bundle(tmp_path / "out")
    assert list(again.card.thresholds) == max_f1_thresholds(prob_NK, target_NK, mask_NK).tolist()
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
    made = redecide(bundle, tmp_path / "out", rows, threshold=MaxF1(), policy=bundle.policy, class_ids=[CLASS_IDS[3]])
    before, after = digests(bundle), digests(made.bundle)
    own = {
        f"{head_directory(head)}/{name}" for head in (bundle.heads[3], made.bundle.heads[3]) for name in ("head.json", "model.onnx")
    }
    assert {name for name in {**before, **after} if before.get(name) != after.get(name)} == {MANIFEST, FUSED_ONNX, *own}
    assert made.bundle.card.thresholds[:3] == bundle.card.thresholds[:3]
    (entry,) = made.bundle.provenance["history"]
    assert (entry["command"], entry["num_changed_heads"]) == ("decide", 1)


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
    changed = redecide(bundle, tmp_path / "more", rows, threshold=MaxF1(), policy=POLICY).bundle
    before, after = digests(bundle), digests(changed)
    assert {name for name in after if before[name] != after[name]} == {
        MANIFEST, FUSED_ONNX, *(shard.heads_file for shard in bundle.shards),
    }  # fmt: skip


def test_a_place_that_is_taken_is_refused(trained, tmp_path):
    _, bundle = trained()
    with pytest.raises(ArtifactError, match="exists already"):
        redecide(bundle, tmp_path, labelled_logits(bundle, None), threshold=MaxF1(), policy=POLICY)
