"""Abstention limits: the promised rate over draws from a known distribution."""

import numpy as np
import pytest

from ovr.abstention.review_rate import ReviewRate
from ovr.abstention.target_risk import TargetRisk
from ovr.errors import ConfigError
from tests.threshold.draws import draws, most_violations, true_precision_and_recall

NUM_DRAWS = 300
SHAPE = {"steep": 3.0, "shift": -1.0}  # right rows are common


def limits(rule, *, num_rows):
    highest_NR, right_NR = draws(num_rows=num_rows, num_draws=NUM_DRAWS, **SHAPE)
    known_N = np.ones(num_rows, np.bool_)
    return [rule.fit(highest_NR[:, r], right_NR[:, r], known_N) for r in range(NUM_DRAWS)]


def test_the_risk_is_kept_as_often_as_promised():
    found = limits(TargetRisk(risk=0.1, delta=0.1), num_rows=400)
    assert np.mean([limit.status_K == ("ok",) for limit in found]) > 0.9
    limit_R = np.array([limit.threshold_K[0] for limit in found])
    assert (true_precision_and_recall(limit_R, **SHAPE)[0] < 0.9).sum() <= most_violations(NUM_DRAWS, 0.1)


def test_no_more_rows_are_sent_to_people_than_promised():
    found = limits(ReviewRate(rate=0.1, delta=0.1), num_rows=200)
    limit_R = np.array([limit.threshold_K[0] for limit in found])
    fresh = np.random.default_rng(9).normal(size=200_000)
    share_R = np.searchsorted(np.sort(1 / (1 + np.exp(-fresh))), limit_R) / len(fresh)
    broken = int((share_R > 0.1).sum())
    assert 0 < broken <= most_violations(NUM_DRAWS, 0.1)


def test_what_cannot_be_promised_is_said():
    few = np.full(12, 0.9, np.float32), np.ones(12, np.bool_), np.ones(12, np.bool_)
    risk = TargetRisk(risk=0.1).fit(*few)
    assert risk.status_K[0].startswith("cannot_be_promised: n = 12 rows decided rightly, needs at least ")
    assert risk.threshold_K.tolist() == [1.0]
    rate = ReviewRate(rate=0.1).fit(*few)
    assert (rate.status_K, rate.threshold_K.tolist()) == (("cannot_be_promised: n = 12 rows, needs at least 29",), [0.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TargetRisk(risk=0), "risk is 0; expected a number between 0 and 1"),
        (lambda: TargetRisk(risk=0.1, delta=1), "delta is 1; expected a number between 0 and 1"),
        (lambda: TargetRisk(risk=0.1, fallback=-1), "fallback is -1; expected a probability"),
        (lambda: ReviewRate(rate=5), "rate is 5; expected a number between 0 and 1"),
        (lambda: ReviewRate(rate=0.1, delta=0.0), r"delta is 0.0; expected a number between 0 and 1"),
        (lambda: ReviewRate(rate=0.1, fallback="no"), "fallback is 'no'; expected a probability"),
    ],
)
def test_settings_that_promise_nothing_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
