"""Reliability and precision-recall curves, against scikit-learn and the definition."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve

from ovr.core import ranking
from ovr.errors import ConfigError, DataError
from ovr.metric.calibration import ece_equal_mass
from ovr.metric.curves import precision_recall, reliability
from ovr.metric.intervals import wilson


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def sample(rng, num_rows=200, num_heads=5, num_levels=10**9):
    prob_NK = np.floor(rng.random((num_rows, num_heads)) ** 2 * num_levels) / num_levels
    return prob_NK, rng.random(prob_NK.shape) < prob_NK, rng.random(prob_NK.shape) < np.linspace(0.3, 1.0, num_heads)


def test_wilson_is_that_of_scipy():
    successes, trials = np.array([0, 1, 5, 10, 3]), np.array([10, 10, 10, 10, 400])
    for confidence in (0.9, 0.95, 0.999):
        low, high = wilson(successes, trials, confidence=confidence)
        for i, (s, n) in enumerate(zip(successes, trials, strict=True)):
            expected = binomtest(int(s), int(n)).proportion_ci(confidence, method="wilson")
            assert (low[i], high[i]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert np.isnan(wilson(0, 0)).all()
    with pytest.raises(ConfigError, match=r"confidence is 1; expected a number above 0 and below 1"):
        wilson(1, 2, confidence=1)


def test_without_ties_reliability_is_the_quantile_curve_of_scikit_learn(rng):
    prob_N, target_N = rng.random(150), rng.random(150) < 0.4
    got = reliability(prob_N[:, None], target_N[:, None], np.ones((150, 1)), num_bins=10)
    share_G, mean_G = calibration_curve(target_N, prob_N, n_bins=10, strategy="quantile")
    np.testing.assert_array_equal(got.count_KG, np.full((1, 10), 15))
    np.testing.assert_allclose(got.share_KG[0], share_G, atol=1e-12)
    np.testing.assert_allclose(got.mean_prob_KG[0], mean_G, atol=1e-12)
    assert (got.low_KG <= got.share_KG).all()
    assert (got.share_KG <= got.high_KG).all()


@pytest.mark.parametrize("num_levels", [3, 12, 10**9])
def test_the_gaps_of_a_reliability_curve_are_the_calibration_error(rng, monkeypatch, num_levels):
    prob_NK, target_NK, mask_NK = sample(rng, num_levels=num_levels)
    whole = reliability(prob_NK, target_NK, mask_NK)
    gap_KG = np.abs(whole.share_KG - whole.mean_prob_KG) * whole.count_KG
    np.testing.assert_allclose(
        np.nansum(gap_KG, axis=1) / mask_NK.sum(axis=0), ece_equal_mass(prob_NK, target_NK, mask_NK), atol=1e-12
    )
    np.testing.assert_array_equal(whole.count_KG == 0, np.isnan(whole.share_KG))
    assert (np.diff(whole.mean_prob_KG[-1][whole.count_KG[-1] > 0]) > 0).all()
    monkeypatch.setattr(ranking, "BLOCK_VALUES", 300)
    np.testing.assert_array_equal(reliability(prob_NK, target_NK, mask_NK).share_KG, whole.share_KG)


def test_heads_without_a_known_row_have_empty_curves():
    for mask_NK in (np.array([[1, 0]]), np.zeros((0, 2))):
        prob_NK = np.full(mask_NK.shape, 0.5)
        got = reliability(prob_NK, np.zeros(mask_NK.shape), mask_NK, num_bins=3)
        assert (got.count_KG[1] == 0).all()
        assert np.isnan(got.low_KG[1]).all()
        assert [len(line) for line in precision_recall(prob_NK, np.zeros(mask_NK.shape), mask_NK)[1]] == [0, 0, 0]


@pytest.mark.parametrize("num_levels", [4, 10**9])
def test_precision_recall_curves_are_those_of_scikit_learn(rng, num_levels):
    prob_NK, target_NK, mask_NK = sample(rng, num_levels=num_levels)
    for k, (threshold_P, precision_P, recall_P) in enumerate(precision_recall(prob_NK, target_NK, mask_NK)):
        known = mask_NK[:, k]
        precision, recall, threshold = precision_recall_curve(target_NK[known, k], prob_NK[known, k])
        exact = {t: (p, r) for t, p, r in zip(threshold, precision, recall, strict=False)}
        np.testing.assert_allclose([exact[t] for t in threshold_P], np.stack([precision_P, recall_P], axis=1), rtol=1e-12)
        assert set(recall_P) == set(recall[:-1])
        assert (threshold_P[0], threshold_P[-1]) == (threshold[-1], threshold[0])


def test_long_curves_are_thinned_evenly_over_recall(rng):
    prob_NK, target_NK, mask_NK = sample(rng, num_rows=5000, num_heads=1)
    mask_NK = np.ones_like(mask_NK)
    ((threshold_P, _, recall_P),) = precision_recall(prob_NK, target_NK, mask_NK, max_points=50)
    assert 40 <= len(recall_P) <= 50
    assert (np.diff(threshold_P) < 0).all()
    assert np.diff(recall_P).max() < 2 / 49
    assert recall_P[-1] == 1
    assert threshold_P[-1] == prob_NK.min()


def test_a_head_without_a_positive_has_no_recall():
    ((threshold_P, precision_P, recall_P),) = precision_recall([[0.2], [0.8], [0.5]], [[0], [0], [0]], [[1], [1], [1]])
    np.testing.assert_array_equal(threshold_P, [0.8, 0.2])
    np.testing.assert_array_equal(precision_P, [0, 0])
    assert np.isnan(recall_P).all()


def test_wrong_settings_and_values_are_refused():
    with pytest.raises(ConfigError, match="num_bins is 0; expected at least 1"):
        reliability([[0.5]], [[1]], [[1]], num_bins=0)
    with pytest.raises(ConfigError, match="max_points is 1; expected at least 2"):
        precision_recall([[0.5]], [[1]], [[1]], max_points=1)
    with pytest.raises(DataError, match=r"probability of row 0, head column 0 is 1.5"):
        reliability([[1.5]], [[1]], [[1]])
