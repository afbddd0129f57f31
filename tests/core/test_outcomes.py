"""Probabilities of whole outcomes, against adding up all 2^K of them."""

from itertools import product

import numpy as np
import pytest

from ovr.core.outcomes import log_odds, prob_none, prob_none_exclusive, prob_normalized


def outcomes_of(prob_K):
    """Return the probability of each set of classes, if they are independent."""
    return {
        bits: float(np.prod([p if bit else 1 - p for bit, p in zip(bits, prob_K, strict=True)]))
        for bits in product((0, 1), repeat=len(prob_K))
    }


@pytest.mark.parametrize("num_heads", [1, 2, 5])
def test_every_outcome_is_what_independent_classes_give(num_heads):
    prob_BK = np.random.default_rng(num_heads).random((20, num_heads))
    none_B, exclusive_B, normalized_BK = prob_none(prob_BK), prob_none_exclusive(prob_BK), prob_normalized(prob_BK)
    for b in range(20):
        every = outcomes_of(prob_BK[b])
        none = every[(0,) * num_heads]
        single = [every[tuple(int(j == k) for j in range(num_heads))] for k in range(num_heads)]
        assert none_B[b] == pytest.approx(none, rel=1e-9)
        assert exclusive_B[b] == pytest.approx(none / (none + sum(single)), rel=1e-9)
        np.testing.assert_allclose(normalized_BK[b], np.array(single) / sum(single), rtol=1e-9)


def test_normalised_probabilities_sum_to_1_and_keep_the_order():
    prob_BK = np.random.default_rng(0).random((50, 30)).astype(np.float32) ** 8
    normalized_BK = prob_normalized(prob_BK)
    np.testing.assert_allclose(normalized_BK.sum(axis=1), 1.0)
    np.testing.assert_array_equal(np.argsort(normalized_BK, axis=1), np.argsort(prob_BK, axis=1))


def test_certain_probabilities_stay_finite():
    prob_BK = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=np.float32)
    assert np.isfinite(log_odds(prob_BK)).all()
    np.testing.assert_allclose(prob_none(prob_BK), [1.0, 0.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(prob_none_exclusive(prob_BK), [1.0, 0.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(prob_normalized(prob_BK), [[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]], atol=1e-7)
