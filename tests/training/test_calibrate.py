"""What is promised holds through calibration and the choice of rows for it, over draws from known distributions.

N = rows, K = heads; R = draws, each a head of its own
"""

from types import SimpleNamespace

import numpy as np
import pytest

from ovr.abstention.promises import SAME_ROWS, SAME_THRESHOLDS
from ovr.abstention.review_rate import ReviewRate
from ovr.abstention.target_risk import TargetRisk
from ovr.calibrator.apply import calibrated_prob
from ovr.calibrator.cohort import CohortCalibrator, cohort_prob
from ovr.calibrator.identity import Identity
from ovr.calibrator.isotonic import Isotonic
from ovr.calibrator.platt import Platt
from ovr.calibrator.temperature import Temperature
from ovr.core.artifact import DecisionPolicy
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.threshold.max_f_beta import MaxFBeta
from ovr.threshold.precision_at_least import PrecisionAtLeast
from ovr.threshold.recall_at_least import RecallAtLeast
from ovr.training.calibrate import calibrate
from tests.threshold.draws import most_violations

DELTA = 0.1
ARGMAX, MULTILABEL = DecisionPolicy(mode="argmax"), DecisionPolicy(mode="multilabel")


class Logits:
    """Logits as `LogitBlocks` gives them, in one block."""

    def __init__(self, logit_NK):
        self.logit_NK, self.num_heads = logit_NK, logit_NK.shape[1]

    def __len__(self):
        return len(self.logit_NK)

    def __iter__(self):
        yield slice(0, self.num_heads), self.logit_NK

    def take(self, rows_B):
        return Logits(self.logit_NK[rows_B])


def calibrated(logit_NK, target_NK, calibrator, *, share, threshold=None, abstention=None, policy=ARGMAX, cohort_N=None, seed=0):
    recipe = SimpleNamespace(
        calibrator=calibrator,
        cohort=CohortCalibrator(column=None if cohort_N is None else "shop"),
        threshold=threshold or MaxFBeta(),
        abstention=abstention,
        policy=policy,
        promise_share=share,
        seed=seed,
    )
    rows = SimpleNamespace(labels=Labels.from_dense(target_NK), cohorts={} if cohort_N is None else {"shop": cohort_N})
    taxonomy = Taxonomy.from_ids([f"c{k}" for k in range(logit_NK.shape[1])])
    return calibrate(recipe, Logits(logit_NK), rows, taxonomy)


def of_one_class(rng, num_rows, num_heads=40):
    """Return logits and classes of rows of one class each."""
    class_N = rng.integers(0, num_heads, num_rows)
    logit_NK = rng.normal(-3, 1.5, (num_rows, num_heads))
    logit_NK[np.arange(num_rows), class_N] += 5
    return logit_NK.astype(np.float32), class_N


@pytest.mark.parametrize("rule", [TargetRisk(risk=0.1, delta=DELTA), ReviewRate(rate=0.1, delta=DELTA)])
def test_a_limit_by_the_highest_of_many_heads_is_kept_on_rows_that_calibrated_none_of_them(rule):
    num_draws, rng = 120, np.random.default_rng(1)
    fresh_NK, fresh_class_N = of_one_class(rng, 4000)
    broken, found = {0.0: 0, 0.5: 0}, {0.0: set(), 0.5: []}
    for seed in range(num_draws):
        logit_NK, class_N = of_one_class(rng, 400)
        for share, num_rows in ((0.5, 400), (0.0, 200)):  # calibrated on 200 rows either way
            target_NK = np.eye(40, dtype=bool)[class_N[:num_rows]]
            made = calibrated(logit_NK[:num_rows], target_NK, Platt(), share=share, abstention=rule, seed=seed)
            prob_NK = calibrated_prob(fresh_NK, made.calibrations).astype(np.float32)
            taken_N = prob_NK.max(axis=1) >= made.policy.abstain_below
            risk = (prob_NK.argmax(axis=1) != fresh_class_N)[taken_N].mean() if taken_N.any() else 0.0
            broken[share] += (risk if isinstance(rule, TargetRisk) else (~taken_N).mean()) > 0.1
            if share:
                assert made.num_rows == {"calibrations": 200, "thresholds": 400, "abstain_below": 200}
                found[share].append(made.abstention_status)
            elif made.abstention_status == SAME_ROWS:
                found[share].add(SAME_ROWS)
            else:
                assert made.abstention_status.startswith("cannot_be_promised: n = ")  # no cut passes
    assert broken[0.5] <= most_violations(num_draws, DELTA)
    assert found[0.5].count("ok") > 0.3 * num_draws
    assert broken[0.0] > most_violations(num_draws, DELTA)
    assert found[0.0] == {SAME_ROWS}


@pytest.mark.parametrize(
    "rule", [PrecisionAtLeast(precision=0.8, delta=DELTA, over="class"), RecallAtLeast(recall=0.8, over="class")]
)
@pytest.mark.parametrize("by_cohort", [False, True])
def test_a_threshold_is_kept_though_isotonic_makes_ties_and_cohorts_move_apart(rule, by_cohort):
    num_draws, rng = 300, np.random.default_rng(2)
    calibrator = Temperature() if by_cohort else Isotonic()

    def drawn(num_rows):
        score_NR = rng.normal(size=(num_rows, num_draws)).astype(np.float32)
        return score_NR, rng.random(score_NR.shape) < 1 / (1 + np.exp(-2 * score_NR)), rng.choice(["north", "south"], num_rows)

    score_NR, target_NR, shop_N = drawn(240)
    made = calibrated(score_NR, target_NR, calibrator, share=0.5, threshold=rule, cohort_N=shop_N if by_cohort else None)
    fresh_NR, fresh_target_NR, shop_N = drawn(4000)
    number_N = made.cohorts.numbers(shop_N) if by_cohort else None
    taken_NR = cohort_prob(fresh_NR, made.calibrations, made.cohorts, number_N).astype(np.float32) >= made.thresholds.threshold_K
    hits_R = (taken_NR & fresh_target_NR).sum(axis=0)
    of_R = taken_NR.sum(axis=0) if isinstance(rule, PrecisionAtLeast) else fresh_target_NR.sum(axis=0)
    ok_R = np.array([status == "ok" for status in made.thresholds.status_K])
    assert made.num_rows == {"calibrations": 120, "thresholds": 120, "abstain_below": 240}
    assert ok_R.mean() > 0.4
    assert (ok_R & (hits_R < 0.8 * of_R)).sum() <= most_violations(num_draws, rule.delta)


@pytest.mark.parametrize(
    ("calibrator", "settings", "num_rows", "status", "limit_status"),
    [
        (Identity(), {"abstention": ReviewRate(rate=0.2)}, (300, 300, 300), "ok", "ok"),
        (Platt(), {"threshold": RecallAtLeast(recall=0.5)}, (300, 300, 300), "ok", "constant"),
        (Isotonic(), {"threshold": RecallAtLeast(recall=0.5)}, (180, 120, 300), "ok", "constant"),
        (Isotonic(), {"threshold": RecallAtLeast(recall=0.5), "share": 0}, (300, 300, 300), SAME_ROWS, "constant"),
        (Isotonic(), {"threshold": RecallAtLeast(recall=0.5), "share": 0.001}, (300, 300, 300), SAME_ROWS, "constant"),
        (Isotonic(), {"threshold": MaxFBeta()}, (300, 300, 300), "ok", "constant"),
        (Identity(), {"abstention": TargetRisk(risk=0.9), "policy": MULTILABEL}, (180, 180, 120), "ok", "ok"),
        (
            Isotonic(),
            {"threshold": RecallAtLeast(recall=0.5), "abstention": TargetRisk(risk=0.9), "policy": MULTILABEL},
            (180, 120, 120),
            "ok",
            SAME_THRESHOLDS,
        ),
        (Temperature(), {"abstention": ReviewRate(rate=0.2), "share": 0}, (300, 300, 300), "ok", SAME_ROWS),
    ],
)
def test_rows_are_kept_where_a_promise_needs_them_and_else_its_status_says_so(calibrator, settings, num_rows, status, limit_status):
    rng = np.random.default_rng(3)
    logit_NK = rng.normal(size=(300, 3)).astype(np.float32)
    target_NK = rng.random(logit_NK.shape) < 1 / (1 + np.exp(-3 * logit_NK))
    made = calibrated(logit_NK, target_NK, calibrator, **{"share": 0.4, **settings})
    assert tuple(made.num_rows.values()) == num_rows
    assert set(made.thresholds.status_K) == {status}
    assert made.abstention_status == limit_status
