"""Draws of calibration rows from a known distribution, each a head of its own, and what their thresholds truly give."""

import numpy as np
from scipy import stats

GRID = np.linspace(-7, 7, 4001)


def draws(*, num_rows, num_draws, steep, shift, seed=0):
    """Return prob (N, R) and target (N, R): score s ~ N(0, 1), positive with probability sigmoid(steep (s - shift))."""
    rng = np.random.default_rng(seed)
    score_NR = rng.normal(size=(num_rows, num_draws))
    target_NR = rng.random((num_rows, num_draws)) < _sigmoid(steep * (score_NR - shift))
    return _sigmoid(score_NR), target_NR


def true_precision_and_recall(threshold_R, *, steep, shift):
    """Return the population's precision and recall (R,) of prob >= threshold."""
    density = stats.norm.pdf(GRID)
    positive = density * _sigmoid(steep * (GRID - shift))
    above, hits = np.cumsum(density[::-1])[::-1], np.cumsum(positive[::-1])[::-1]
    clipped = np.clip(threshold_R, 1e-12, 1 - 1e-12)
    at = np.clip(np.searchsorted(GRID, np.log(clipped / (1 - clipped))), 0, len(GRID) - 1)
    return hits[at] / above[at], hits[at] / hits[0]


def most_violations(num_draws, delta):
    """Return how many of the draws may break a promise that each breaks with probability delta: more is a 1 in 1,000 event."""
    return int(stats.binom.ppf(0.999, num_draws, delta))


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))
