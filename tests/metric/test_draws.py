"""Draws of rows, against what is known of means."""

import numpy as np
import pytest

from ovr.errors import ConfigError
from ovr.metric import draws
from ovr.metric.draws import RowDraws, quantiles, ratio


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_the_draws_of_a_mean_spread_as_its_standard_error(rng):
    value_NC, mask_NC = rng.exponential(size=(3000, 3)), rng.random((3000, 3)) < np.array([0.1, 0.5, 1.0])
    rows = RowDraws(3000, num_draws=2000)
    mean_RC = ratio(rows.sums(np.where(mask_NC, value_NC, 0.0)), rows.sums(mask_NC))
    for c in range(3):
        known_n = value_NC[mask_NC[:, c], c]
        assert mean_RC[:, c].std() == pytest.approx(known_n.std() / np.sqrt(len(known_n)), rel=0.08)
    low_C, high_C = quantiles(mean_RC, confidence=0.9)
    np.testing.assert_allclose(low_C, np.quantile(mean_RC, 0.05, axis=0))
    np.testing.assert_allclose(high_C, np.quantile(mean_RC, 0.95, axis=0))


def test_many_rows_are_drawn_in_groups_with_the_same_spread(rng, monkeypatch):
    value_NC = rng.normal(3.0, 1.0, size=(5001, 1))
    monkeypatch.setattr(draws, "MAX_GROUPS", 500)
    rows = RowDraws(5001, num_draws=2000)
    mean_RC = ratio(rows.sums(value_NC), rows.sums(np.ones((5001, 1))))
    assert mean_RC.mean() == pytest.approx(value_NC.mean(), abs=2e-3)
    assert mean_RC.std() == pytest.approx(1 / np.sqrt(5001), rel=0.1)


def test_a_seed_repeats_and_a_head_ignores_the_others(rng):
    value_NC = rng.random((50, 4))
    whole_RC = RowDraws(50, seed=3).sums(value_NC)
    np.testing.assert_allclose(RowDraws(50, seed=3).sums(value_NC[:, 1:2])[:, 0], whole_RC[:, 1], rtol=1e-6)
    assert not np.array_equal(RowDraws(50, seed=4).sums(value_NC), whole_RC)


def test_undefined_draws_are_left_out():
    value_RC = np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, np.nan]])
    low_C, high_C = quantiles(value_RC, confidence=0.5)
    assert (low_C[0], high_C[0]) == (1.5, 2.5)
    assert np.isnan([low_C[1], high_C[1]]).all()
    assert RowDraws(0).sums(np.zeros((0, 2))).tolist() == [[0, 0]] * draws.NUM_DRAWS


def test_too_few_draws_and_no_confidence_are_refused():
    with pytest.raises(ConfigError, match="the number of draws is 1; expected at least 2"):
        RowDraws(5, num_draws=1)
    with pytest.raises(ConfigError, match=r"confidence is 0; expected a number above 0 and below 1"):
        quantiles(np.zeros((2, 1)), confidence=0)
