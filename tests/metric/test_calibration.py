"""Calibration errors, Brier score and likelihood, against brute force and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from ovr.calibrator.apply import calibrated_prob
from ovr.core import ranking
from ovr.core.artifact import Calibration
from ovr.errors import ConfigError, DataError
from ovr.metric.calibration import brier, ece_equal_mass, ece_equal_width, nll, top_label


def error_of_bins(bin_n, prob_n, target_n):
    """Return the calibration error by its definition, whatever the bins."""
    return sum(abs(target_n[bin_n == g].mean() - prob_n[bin_n == g].mean()) * (bin_n == g).mean() for g in np.unique(bin_n))


def equal_mass_bins(prob_n, num_bins):
    """Return the bin of each row: how many of the lower edges it reaches."""
    ranked = np.sort(prob_n)
    edges = [ranked[g * len(prob_n) // num_bins] for g in range(num_bins)]
    return np.array([sum(p >= edge for edge in edges) for p in prob_n])


def equal_width_bins(prob_n, num_bins):
    return np.array([max(g for g in range(num_bins) if p >= g / num_bins) for p in prob_n])


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def sample(rng, num_rows=200, num_heads=6, num_levels=10**9):
    prob_NK = np.floor(rng.random((num_rows, num_heads)) ** 3 * num_levels) / num_levels
    return prob_NK, rng.random(prob_NK.shape) < prob_NK**0.7, rng.random(prob_NK.shape) < np.linspace(0.2, 1.0, num_heads)


@pytest.mark.parametrize("num_levels", [2, 4, 10, 10**9])
@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 500])
@pytest.mark.parametrize(("error", "bins"), [(ece_equal_mass, equal_mass_bins), (ece_equal_width, equal_width_bins)])
def test_calibration_errors_are_those_of_the_definition(rng, error, bins, num_bins, num_levels):
    prob_NK, target_NK, mask_NK = sample(rng, num_levels=num_levels)
    got_K = error(prob_NK, target_NK, mask_NK, num_bins=num_bins)
    for k in range(prob_NK.shape[1]):
        prob_n, target_n = prob_NK[mask_NK[:, k], k], target_NK[mask_NK[:, k], k]
        assert got_K[k] == pytest.approx(error_of_bins(bins(prob_n, num_bins), prob_n, target_n), abs=1e-12)


def test_equal_mass_without_ties_splits_the_sorted_rows_evenly(rng):
    prob_N, target_N = np.sort(rng.random(150)), rng.random(150) < 0.5
    expected = sum(abs(t.mean() - p.mean()) for p, t in zip(np.split(prob_N, 15), np.split(target_N, 15), strict=True)) / 15
    assert ece_equal_mass(prob_N[:, None], target_N[:, None], np.ones((150, 1)))[0] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("error", [ece_equal_mass, ece_equal_width])
def test_the_order_of_rows_and_the_blocks_of_heads_change_nothing(rng, monkeypatch, error):
    prob_NK, target_NK, mask_NK = sample(rng, num_levels=7)
    got_K = error(prob_NK, target_NK, mask_NK)
    order = rng.permutation(len(prob_NK))
    monkeypatch.setattr(ranking, "BLOCK_VALUES", 300)
    np.testing.assert_allclose(error(prob_NK[order], target_NK[order], mask_NK[order]), got_K, rtol=1e-12)


@pytest.mark.parametrize("error", [ece_equal_mass, ece_equal_width])
def test_fewer_rows_than_bins_each_have_their_own(error):
    prob_NK, target_NK = np.array([[0.1], [0.4], [0.95]]), np.array([[0], [1], [1]])
    assert error(prob_NK, target_NK, np.ones((3, 1)))[0] == pytest.approx((0.1 + 0.6 + 0.05) / 3)
    assert error([[0.25]], [[0]], [[1]])[0] == 0.25


def test_perfect_probabilities_have_no_error(rng):
    target_NK = rng.random((50, 2)) < 0.5
    for error in (ece_equal_mass, ece_equal_width, brier):
        np.testing.assert_array_equal(error(target_NK.astype(np.float32), target_NK, np.ones((50, 2))), [0.0, 0.0])


def test_heads_without_a_known_row_have_nan():
    for mask_NK in (np.array([[1, 0]]), np.zeros((0, 2))):
        prob_NK = np.full(mask_NK.shape, 0.5)
        for figure in (ece_equal_mass, ece_equal_width, brier, nll):
            assert np.isnan(figure(prob_NK, np.zeros(mask_NK.shape), mask_NK)[1])
    assert np.isnan(ece_equal_mass(*top_label(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2))))[0])


def test_brier_and_likelihood_are_those_of_scikit_learn(rng):
    logit_NK = rng.normal(size=(200, 4)) * 4
    target_NK, mask_NK = rng.random((200, 4)) < 0.3, rng.random((200, 4)) < 0.7
    scale_K, bias_K = np.array([0.5, 1.0, 2.0, 0.1]), np.array([0.0, -1.0, 0.5, 0.0])
    calibrations = [Calibration("platt", scale, bias) for scale, bias in zip(scale_K, bias_K, strict=True)]
    prob_NK = calibrated_prob(logit_NK, calibrations)
    brier_K, nll_K = brier(prob_NK, target_NK, mask_NK), nll(logit_NK, target_NK, mask_NK, scale_K=scale_K, bias_K=bias_K)
    for k in range(4):
        known = mask_NK[:, k]
        assert brier_K[k] == pytest.approx(brier_score_loss(target_NK[known, k], prob_NK[known, k]), rel=1e-12)
        assert nll_K[k] == pytest.approx(log_loss(target_NK[known, k], prob_NK[known, k]), rel=1e-9)


def test_the_likelihood_of_extreme_logits_is_exact():
    got_K = nll([[800.0, -800.0, 1e4]], [[0, 1, 1]], [[1, 1, 1]])
    np.testing.assert_array_equal(got_K, [800.0, 800.0, 0.0])
    assert nll([[40.0]], [[1]], [[1]])[0] == pytest.approx(np.exp(-40.0), rel=1e-12)


def test_the_top_label_is_the_first_highest_of_a_row():
    prob_NK = np.array([[0.2, 0.9, 0.9], [0.6, 0.1, 0.3], [0.5, 0.2, 0.1]])
    target_NK, mask_NK = np.array([[0, 0, 1], [1, 0, 0], [1, 0, 0]]), np.array([[1, 1, 1], [1, 0, 0], [0, 1, 1]])
    confidence_N1, right_N1, known_N1 = top_label(prob_NK, target_NK, mask_NK)
    np.testing.assert_array_equal(confidence_N1[:, 0], [0.9, 0.6, 0.5])
    np.testing.assert_array_equal(right_N1[:, 0], [False, True, False])
    np.testing.assert_array_equal(known_N1[:, 0], [True, True, False])
    assert ece_equal_mass(confidence_N1, right_N1, known_N1)[0] == pytest.approx((0.9 + 0.4) / 2)


def test_top_label_error_is_that_of_the_definition(rng):
    prob_NK = rng.dirichlet(np.full(5, 0.3), size=400)
    target_NK = np.eye(5)[rng.integers(0, 5, 400)]
    confidence_N, right_N = prob_NK.max(axis=1), target_NK[np.arange(400), prob_NK.argmax(axis=1)]
    expected = error_of_bins(equal_mass_bins(confidence_N, 15), confidence_N, right_N)
    got_1 = ece_equal_mass(*top_label(prob_NK, target_NK, np.ones((400, 5))))
    assert got_1[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("error", [ece_equal_mass, ece_equal_width])
def test_no_bins_and_values_that_are_no_probabilities_are_refused(error):
    with pytest.raises(ConfigError, match="num_bins is 0; expected at least 1"):
        error([[0.5]], [[1]], [[1]], num_bins=0)
    with pytest.raises(DataError, match=r"probability of row 0, head column 0 is 1.5; expected 0 to 1"):
        error([[1.5]], [[1]], [[1]])
