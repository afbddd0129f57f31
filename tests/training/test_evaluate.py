import numpy as np
import pytest
import torch

from ovr.calibrator.apply import calibrated_logit, calibrated_prob
from ovr.core import scale
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.decision.decide import decide
from ovr.head.linear import Linear
from ovr.metric.at_k import PrecisionAt
from ovr.metric.calibration import ece_equal_mass, nll, top_label
from ovr.metric.classification import accuracy, confusion
from ovr.training.blocks import LogitBlocks
from ovr.training.evaluate import evaluate

N, D, K = 60, 4, 13
PROPENSITY_K = np.linspace(0.1, 1, K)
POLICIES = [DecisionPolicy(), DecisionPolicy(abstain_below=0.6), DecisionPolicy(mode="multilabel", abstain_below=0.7)]


@pytest.fixture
def case(rng):
    torch.manual_seed(0)
    heads = Linear(D, num_heads=K)
    with torch.no_grad():
        heads.weight_KD[5] = heads.weight_KD[4]  # two heads that always tie
        heads.bias_K[5] = heads.bias_K[4]
        heads.weight_KD.mul_(4)
    z_ND = rng.normal(size=(N, D)).astype(np.float32)
    target_NK = rng.random((N, K)) < 0.3
    target_NK[:, 7] = False
    mask_NK = rng.random((N, K)) < 0.98
    calibrations = [Calibration(scale=0.5 + k % 3, bias=0.1 * (k % 3), status="ok") for k in range(K)]
    calibrations[5] = calibrations[4]
    calibrations[8] = Calibration("beta", 0.5, 0.1, "ok", scale_negative=1.5)
    calibrations[9] = Calibration("isotonic", status="ok", knot_logits=(-4.0, -1.0, 2.0), knot_probs=(0.01, 0.2, 0.7))
    return LogitBlocks(heads, z_ND, num_heads=K), target_NK, mask_NK, calibrations, rng.random(K)


def report(case, policy, **settings):
    logits, target_NK, mask_NK, calibrations, threshold_K = case
    labels = Labels.from_dense(target_NK, mask_NK)
    evaluation = evaluate(
        logits,
        labels,
        calibrations=calibrations,
        threshold_K=threshold_K,
        policy=policy,
        small_K=np.arange(K) < 2,
        propensity_K=PROPENSITY_K,
        **settings,
    )
    return evaluation.report(Taxonomy.from_ids(map(str, range(K))), calibrations)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_report_is_what_the_whole_matrix_gives(case, policy):
    logits, target_NK, mask_NK, calibrations, threshold_K = case
    ((_, logit_NK),) = logits
    prob_NK = calibrated_prob(logit_NK, calibrations)
    decision = decide(prob_NK.astype(np.float32), threshold_K=threshold_K, policy=policy)
    got = report(case, policy)
    assert (got["num_rows"], got["abstained"]) == (N, decision.abstained_B.sum())
    assert got["accuracy"] == accuracy(decision.label_BK, target_NK, mask_NK)
    assert got["top_label_ece_after"] == ece_equal_mass(*top_label(prob_NK, target_NK, mask_NK))[0]
    at = PrecisionAt(N, PROPENSITY_K, most=5)
    at.update(prob_NK, target_NK, mask_NK, first_column=0)
    for k in (1, 3, 5):
        assert got.get(f"precision_at_{k}") == (at.precision(k) if policy.mode == "multilabel" else None)
        assert got.get(f"ps_precision_at_{k}") == (at.ps_precision(k) if policy.mode == "multilabel" else None)
        for name in (f"precision_at_{k}", f"ps_precision_at_{k}") if policy.mode == "multilabel" else ():
            assert got[f"{name}_low"] < got[name] < got[f"{name}_high"] < got[name] + 0.3
    counts = confusion(decision.label_BK, target_NK, mask_NK)
    assert got["num_small_classes"] == 2
    assert [row["small"] for row in got["classes"]] == [True, True, *[False] * (K - 2)]
    columns = {
        "positives": counts.num_positives_K,
        "recall": counts.recall_K,
        "ece_after": ece_equal_mass(prob_NK, target_NK, mask_NK),
        "nll_after": nll(calibrated_logit(logit_NK, calibrations), target_NK, mask_NK),
        "threshold": threshold_K,
    }
    assert [row["calibration_kind"] for row in got["classes"]] == [c.kind for c in calibrations]
    assert [row["temperature"] for row in got["classes"]] == [1 / c.scale if c.is_affine else None for c in calibrations]
    for name, value_K in columns.items():
        assert [row[name] for row in got["classes"]] == [None if np.isnan(value) else value for value in value_K]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_report_does_not_depend_on_the_size_of_a_block(case, policy, monkeypatch):
    whole = report(case, policy)
    monkeypatch.setattr(scale, "BLOCK_VALUES", 3 * N)
    assert len(list(case[0])) == 5
    blocks = report(case, policy)
    assert whole.keys() == blocks.keys()
    for name, value in whole.items():
        if name in ("confused_pairs", "cohorts"):
            assert str(blocks[name]) == str(value)
        elif name != "classes":
            assert blocks[name] == pytest.approx(value, abs=1e-6)
    for one, other in zip(whole["classes"], blocks["classes"], strict=True):
        assert [one[name] for name in ("rows", "positives", "recall")] == [other[name] for name in ("rows", "positives", "recall")]
        assert one["nll_after"] == pytest.approx(other["nll_after"], abs=1e-6)


def test_confused_pairs_and_cohorts_are_told_by_class_id(case):
    cohort_N = np.where(np.arange(N) % 3 == 0, "old", "new")
    got = report(case, POLICIES[0], cohorts={"age": cohort_N})
    pairs = got["confused_pairs"]
    positives = {row["class_id"]: row["positives"] for row in got["classes"]}
    missed = sum(row["positives"] - row["true_positives"] for row in got["classes"])
    assert sum(pair["rows"] for pair in pairs["instead"]) + pairs["nothing"] == missed  # one class is decided on a row
    assert all(pair["share"] == pair["rows"] / positives[pair["class_id"]] for pair in pairs["instead"])
    assert (len(pairs["instead"]), pairs["num_rows_left_out"]) == (pairs["num_instead"], 0)
    assert [cohort["cohort"] for cohort in got["cohorts"]["age"]["cohorts"]] == ["new", "old"]
    assert sum(cohort["classes"][3]["rows"] for cohort in got["cohorts"]["age"]["cohorts"]) == got["classes"][3]["rows"]
    assert got["cohorts"]["age"]["gaps"][3]["class_id"] == "3"
    assert "cohorts" not in report(case, POLICIES[0])


def test_very_many_heads_have_no_intervals(case, monkeypatch):
    full = report(case, POLICIES[0])
    monkeypatch.setattr(scale, "LARGE_K", K)
    got = report(case, POLICIES[0])
    assert "confused_pairs" not in got
    assert not [name for name in (*got, *got["classes"][0]) if name.endswith(("_low", "_high"))]
    assert {name: full[name] for name in got if name != "classes"} == {
        name: value for name, value in got.items() if name != "classes"
    }
    assert full["accuracy_low"] <= full["accuracy"] <= full["accuracy_high"]
    assert full["top_label_ece_after_low"] <= full["top_label_ece_after"] <= full["top_label_ece_after_high"]
