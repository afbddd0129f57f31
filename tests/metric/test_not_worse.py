import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss

from ovr.errors import ConfigError, DataError
from ovr.metric.not_worse import not_worse


def heads(rng, num_positives, distances, share=0.1, correlation=0.8):
    """Probabilities of two calibrated heads whose scores of positives are `distances` higher, and the targets."""
    target_N = np.arange(round(num_positives / share)) < num_positives
    noise_N = rng.normal(size=len(target_N))
    other_N = correlation * noise_N + np.sqrt(1 - correlation**2) * rng.normal(size=len(target_N))
    logits = [
        d * (e_N + d * target_N) - d * d / 2 + np.log(share / (1 - share))
        for d, e_N in zip(distances, (noise_N, other_N), strict=True)
    ]
    return *(1 / (1 + np.exp(-logit_N)) for logit_N in logits), target_N


def compared(first_N, second_N, target_N, **more):
    return not_worse(first_N, second_N, first_N >= 0.5, second_N >= 0.5, target_N, **{"margin": 0.02, **more})


def test_the_figures_are_those_of_scikit_learn(rng):
    first_N, second_N, target_N = heads(rng, 40, (2.0, 1.5))
    found = compared(first_N, second_N, target_N)
    entropy = log_loss(target_N, np.full(len(target_N), target_N.mean()))
    for value, prob_N in (("first", first_N), ("second", second_N)):
        assert getattr(found.average_precision, value) == pytest.approx(average_precision_score(target_N, prob_N))
        assert getattr(found.information, value) == pytest.approx(1 - log_loss(target_N, prob_N) / entropy)
    right_N = [(prob_N >= 0.5) == target_N for prob_N in (first_N, second_N)]
    assert (found.first_only, found.second_only) == ((right_N[0] & ~right_N[1]).sum(), (right_N[1] & ~right_N[0]).sum())
    assert (found.num_positives, found.num_negatives) == (40, 360)


def test_heads_that_agree_are_shown_to_be_as_good_by_as_many_rows_as_are_said_to_be_needed(rng):
    outcomes = {}
    for num_positives in (1, 10, 30, 100, 300):
        prob_N, _, target_N = heads(rng, num_positives, (2.0, 2.0))
        found = compared(prob_N, prob_N, target_N)
        outcomes[num_positives] = found.outcome
        assert found.average_precision.low < 0 < found.average_precision.high
        assert found.num_needed == pytest.approx(140, rel=0.2)  # 2.8 / 0.02, and some for the others
    assert outcomes == {1: "undecided", 10: "undecided", 30: "undecided", 100: "pass", 300: "pass"}


def test_a_head_that_is_worse_by_the_margin_is_hardly_ever_shown_not_to_be(rng):
    """Average precisions of 0.9 and 0.88."""
    for num_positives in (10, 30, 100):
        drawn = [compared(*heads(rng, num_positives, (2.96, 2.835), correlation=0.95)) for _ in range(100)]
        assert sum(found.outcome == "pass" for found in drawn) <= 5
        assert -0.03 < np.mean([found.average_precision.value for found in drawn]) < -0.01


def test_a_clearly_worse_head_is_not_let_in_by_few_rows(rng):
    """Average precisions of 0.9 and 0.7."""
    let_in = dict.fromkeys((10, 30, 100), 0)
    for num_positives in let_in:
        for _ in range(60):
            found = compared(*heads(rng, num_positives, (2.96, 2.11)))
            let_in[num_positives] += found.outcome == "pass" or (found.outcome == "undecided" and found.estimate_within)
    assert let_in[10] <= 3
    assert (let_in[30], let_in[100]) == (0, 0)


def test_the_rows_that_are_needed_would_do(rng):
    def found(num_positives):
        return compared(*heads(rng, num_positives, (3.0, 3.0), correlation=0.98))

    needed = int(np.median([found(100).num_needed for _ in range(20)]))
    assert 100 < needed < 1000
    assert 0.6 <= np.mean([found(needed).outcome == "pass" for _ in range(60)]) <= 0.95


def test_decisions_that_are_shown_to_be_worse_are_worse_whatever_the_probabilities(rng):
    prob_N, _, target_N = heads(rng, 300, (3.0, 3.0))
    found = not_worse(prob_N, prob_N, prob_N >= 0.5, prob_N >= 0.97, target_N, margin=0.02)
    assert (found.decides_worse, found.outcome) == (True, "fail")
    assert found.average_precision.outcome(0.02) == "pass"
    assert not not_worse(prob_N, prob_N, prob_N >= 0.5, prob_N >= 0.97, target_N, margin=0.9).decides_worse


def test_what_cannot_be_compared_is_refused(rng):
    prob_N, _, target_N = heads(rng, 5, (2.0, 2.0))
    with pytest.raises(DataError, match="on rows of the class and of others, got 5 and 0"):
        compared(prob_N[:5], prob_N[:5], target_N[:5])
    with pytest.raises(DataError, match="within 0 and 1"):
        compared(prob_N, prob_N + 1, target_N)
    with pytest.raises(ConfigError, match="margin is 0"):
        compared(prob_N, prob_N, target_N, margin=0)
    with pytest.raises(ConfigError, match="confidence is 1"):
        compared(prob_N, prob_N, target_N, confidence=1)
