"""Adaptive and debiased calibration errors and the parts of the Brier score, against brute force, simulation and netcal."""

import math

import numpy as np
import pytest

from ovr.errors import ConfigError
from ovr.metric.binned import brier_parts, debiased_ece, debiased_squared_ece, ece
from ovr.metric.bins import bin_sums
from ovr.metric.calibration import brier, ece_adaptive, ece_equal_mass, ece_equal_width, mass_sums
from ovr.metric.calibration_bound import ece_interval


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def sample(rng, num_rows=200, num_heads=5, num_levels=10**9):
    prob_NK = np.floor(rng.random((num_rows, num_heads)) ** 2 * num_levels) / num_levels
    return prob_NK, rng.random(prob_NK.shape) < prob_NK**0.8, rng.random(prob_NK.shape) < np.linspace(0.3, 1.0, num_heads)


def bins_of(prob_n, num_bins):
    """Return the rows of each bin of equal mass that has one."""
    ranked = np.sort(prob_n)
    edges = [ranked[g * len(prob_n) // num_bins] for g in range(num_bins)]
    bin_n = np.array([sum(p >= edge for edge in edges) for p in prob_n])
    return [bin_n == g for g in np.unique(bin_n)]


@pytest.mark.parametrize("num_levels", [4, 40, 10**9])
def test_the_parts_of_the_brier_score_add_up_and_are_those_of_the_definition(rng, num_levels):
    prob_NK, target_NK, mask_NK = sample(rng, num_levels=num_levels)
    parts = brier_parts(bin_sums(prob_NK, target_NK, mask_NK))
    total_K = parts.reliability_K - parts.resolution_K + parts.uncertainty_K
    np.testing.assert_allclose(
        total_K + parts.within_variance_K - parts.within_covariance_K, brier(prob_NK, target_NK, mask_NK), atol=1e-12
    )
    for k in range(prob_NK.shape[1]):
        p, y = prob_NK[mask_NK[:, k], k], target_NK[mask_NK[:, k], k]
        bins = bins_of(p, 15)
        assert parts.reliability_K[k] == pytest.approx(sum(b.mean() * (y[b].mean() - p[b].mean()) ** 2 for b in bins), abs=1e-12)
        assert parts.resolution_K[k] == pytest.approx(sum(b.mean() * (y[b].mean() - y.mean()) ** 2 for b in bins), abs=1e-12)
        assert parts.uncertainty_K[k] == pytest.approx(y.var())
        assert parts.within_variance_K[k] == pytest.approx(sum(b.mean() * p[b].var() for b in bins), abs=1e-12)


@pytest.mark.parametrize("num_levels", [4, 10**9])
def test_debiased_errors_are_those_of_the_papers(rng, num_levels):
    prob_NK, target_NK, mask_NK = sample(rng, num_levels=num_levels)
    sums = bin_sums(prob_NK, target_NK, mask_NK)
    squared_K, absolute_K = debiased_squared_ece(sums), debiased_ece(sums)
    for k in range(prob_NK.shape[1]):
        p, y = prob_NK[mask_NK[:, k], k], target_NK[mask_NK[:, k], k]
        squared = absolute = 0.0
        for b in bins_of(p, 15):
            share, gap, n = y[b].mean(), abs(y[b].mean() - p[b].mean()), b.sum()
            squared += b.mean() * (gap**2 - share * (1 - share) / (n - 1))
            noisy = np.abs(p[b].mean() - rng.normal(share, math.sqrt(share * (1 - share) / n), 100_000))
            absolute += b.mean() * (gap - (noisy.mean() - gap))
        assert squared_K[k] == pytest.approx(squared, abs=1e-12)
        assert absolute_K[k] == pytest.approx(absolute, abs=2e-3)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_debiasing_takes_the_noise_off_on_average(rng, shift):
    prob_ND = np.repeat(np.sort(rng.uniform(0.2, 0.6, 300))[:, None], 2000, axis=1)
    sums = bin_sums(prob_ND, rng.random(prob_ND.shape) < prob_ND + shift, np.ones(prob_ND.shape), num_bins=10)
    assert debiased_squared_ece(sums).mean() == pytest.approx(shift**2, abs=5e-4)
    plain, debiased = ece(sums).mean() - shift, debiased_ece(sums).mean() - shift
    assert plain > 0.008
    assert abs(debiased) < 0.75 * plain


@pytest.mark.parametrize("num_levels", [3, 25, 10**9])
def test_the_adaptive_error_has_the_most_bins_that_rise(rng, num_levels):
    prob_NK, target_NK, mask_NK = sample(rng, num_levels=num_levels)
    ece_K, num_bins_K = ece_adaptive(prob_NK, target_NK, mask_NK)
    for k in range(prob_NK.shape[1]):
        p, y = prob_NK[mask_NK[:, k], k], target_NK[mask_NK[:, k], k]
        expected = 0
        while expected < min(100, len(p)) and (np.diff([y[b].mean() for b in bins_of(p, expected + 1)]) >= 0).all():
            expected += 1
        assert num_bins_K[k] == expected
        at_K = ece_equal_mass(prob_NK, target_NK, mask_NK, num_bins=expected)
        assert ece_K[k] == pytest.approx(at_K[k], abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_the_interval_of_the_adaptive_error_holds_the_error_in_its_bins(rng, shift):
    prob_ND = np.repeat(np.sort(rng.uniform(0.1, 0.6, 500))[:, None], 200, axis=1)
    rows = prob_ND, rng.random(prob_ND.shape) < prob_ND + shift, np.ones(prob_ND.shape)
    even, sums, _ = mass_sums(*rows)
    np.testing.assert_array_equal(even.both_KG, bin_sums(*rows).both_KG)
    low_D, high_D = ece_interval(sums, confidence=1 - 0.05 / 100)
    assert ((low_D <= shift) & (shift <= high_D)).mean() >= 0.99  # a shift of all is the error in any bins
    assert (high_D < shift + 0.3).all()


def test_heads_of_few_rows_have_as_many_bins_and_those_of_none_have_nan():
    prob_NK, mask_NK = np.array([[0.1, 0.2], [0.4, 0.2]]), np.array([[1, 0], [1, 0]])
    ece_K, num_bins_K = ece_adaptive(prob_NK, [[0, 0], [1, 0]], mask_NK)
    assert ece_K[0] == pytest.approx((0.1 + 0.6) / 2)
    assert num_bins_K.tolist() == [2, 1]
    sums = bin_sums(prob_NK, [[0, 0], [1, 0]], mask_NK)
    for figure_K in (ece_K, debiased_ece(sums), debiased_squared_ece(sums), brier_parts(sums).resolution_K):
        assert np.isnan(figure_K).tolist() == [False, True]
    with pytest.raises(ConfigError, match="num_bins is 0; expected at least 1"):
        ece_adaptive(prob_NK, prob_NK > 1, mask_NK, max_bins=0)


def netcal_defines(prob_N, target_N, edges):
    """Return ECE (bins weighted by their rows; Naeini et al. 2015) and ACE (all bins alike; Neumann et al. 2018) as netcal's
    documentation has them, by histograms over its edges. netcal itself brings gpytorch, pyro and tensorboard along, which no
    other test needs, and takes seconds to import."""
    count, positives, total = (np.histogram(prob_N, edges, weights=w)[0] for w in (np.ones(len(prob_N)), 1.0 * target_N, prob_N))
    gap = np.abs(positives - total)
    return gap.sum() / len(prob_N), (gap / count).mean()


def sample_of_netcal(rng, num_bins=10):
    """Return rows, bins of equal width, and bins of equal mass as netcal has them."""
    prob_N = rng.random(150)
    quantiles = np.quantile(prob_N, np.linspace(0, 1, num_bins + 1))
    return prob_N, rng.random(150) < 0.4, np.linspace(0, 1, num_bins + 1), quantiles


def test_errors_are_those_that_netcal_defines(rng):
    for _ in range(20):
        prob_N, target_N, widths, quantiles = sample_of_netcal(rng)
        columns = prob_N[:, None], target_N[:, None], np.ones((150, 1))
        expected, _ = netcal_defines(prob_N, target_N, widths)
        assert ece_equal_width(*columns, num_bins=10)[0] == pytest.approx(expected, abs=1e-12)
        _, even = netcal_defines(prob_N, target_N, quantiles)
        assert ece_equal_mass(*columns, num_bins=10)[0] == pytest.approx(even, abs=1e-12)  # 15 rows a bin either way


def test_netcal_defines_what_it_gives(rng):
    metrics = pytest.importorskip("netcal.metrics", reason="the oracle of the benchmarks (extra `bench`)")
    prob_N, target_N, widths, quantiles = sample_of_netcal(rng)
    expected, _ = netcal_defines(prob_N, target_N, widths)
    assert metrics.ECE(10).measure(prob_N, target_N.astype(int)) == pytest.approx(expected, abs=1e-9)
    _, even = netcal_defines(prob_N, target_N, quantiles)
    assert metrics.ACE(10, equal_intervals=False).measure(prob_N, target_N.astype(int)) == pytest.approx(even, abs=2e-3)
