"""Binomial tails, against scipy's."""

import numpy as np
import pytest
from scipy import stats

from ovr.core.binomial import lower_tail, most_left_out, upper_tail


@pytest.mark.parametrize("num_trials", [0, 1, 2, 7, 40, 1000, 300_000])
def test_tails_are_those_of_the_distribution(num_trials):
    rng = np.random.default_rng(num_trials)
    prob = np.concatenate([rng.random(50), [0.5, 1e-6, 1 - 1e-6]])
    near = np.rint(num_trials * prob + rng.normal(size=53) * 3 * np.sqrt(num_trials * prob * (1 - prob))).astype(int)
    count = np.concatenate([near, rng.integers(-1, num_trials + 2, size=53)])
    prob = np.tile(prob, 2)
    expected = stats.binom.sf(count - 1, num_trials, prob)
    np.testing.assert_allclose(upper_tail(count, num_trials, prob), expected, rtol=1e-7, atol=1e-13)
    np.testing.assert_allclose(lower_tail(count, num_trials, prob), stats.binom.cdf(count, num_trials, prob), rtol=1e-7, atol=1e-13)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_as_many_are_left_out_as_the_tail_allows(share):
    num_trials = np.arange(80)
    expected = [max([j for j in range(1, n + 1) if stats.binom.cdf(j - 1, n, share) <= 0.05], default=0) for n in num_trials]
    np.testing.assert_array_equal(most_left_out(num_trials, share, 0.05), expected)
