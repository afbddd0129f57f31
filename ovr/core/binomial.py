"""Tails of the binomial distribution, many at a time, without scipy. Knows nothing of what is counted."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]

_SMALL = np.cumsum(np.log(np.maximum(np.arange(32), 1)))  # log n! below the reach of Stirling's series
_MAX_TERMS = 20_000  # of the continued fraction: it needs some sqrt(n)
_TINY = 1e-300


def upper_tail(count: ArrayLike, num_trials: ArrayLike, prob: ArrayLike) -> F64:
    """Return P(X >= count) for X of Binomial(num_trials, prob), elementwise over broadcast arrays, to some 12 digits.

    It is the regularised incomplete beta function I_prob(count, num_trials - count + 1), here by its continued fraction (modified
    Lentz; Press et al., "Numerical Recipes", 6.4). 1 for a count of 0 or less, 0 for one above `num_trials`.

    Args:
        count, num_trials: whole numbers; num_trials >= 0.
        prob: strictly between 0 and 1.
    """
    count, num_trials, prob = np.broadcast_arrays(
        np.asarray(count, np.float64), np.asarray(num_trials, np.float64), np.asarray(prob, np.float64)
    )
    tail = np.where(count <= 0, 1.0, 0.0)
    inside = (count > 0) & (count <= num_trials)
    if inside.any():
        tail[inside] = _incomplete_beta(count[inside], num_trials[inside] - count[inside] + 1, prob[inside])
    return tail


def lower_tail(count: ArrayLike, num_trials: ArrayLike, prob: ArrayLike) -> F64:
    """Return P(X <= count), as `upper_tail`: every failure is a success of the other kind."""
    count, num_trials = np.asarray(count), np.asarray(num_trials)
    return upper_tail(num_trials - count, num_trials, 1.0 - np.asarray(prob, np.float64))


def most_left_out(num_trials: ArrayLike, share: float, level: ArrayLike) -> NDArray[np.int64]:
    """Return the largest j with P(X <= j - 1) <= level, X of Binomial(num_trials, share); 0 where there is none.

    Of so many independent values, the share of the distribution strictly below the j-th smallest exceeds `share` with a probability
    of at most `level`, whatever the distribution (a tolerance limit; Wilks 1941).
    """
    num_trials, level = np.broadcast_arrays(np.asarray(num_trials, np.int64), np.asarray(level, np.float64))
    low, high = np.zeros(num_trials.shape, np.int64), num_trials.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits = (lower_tail(middle - 1, num_trials, share) <= level) & (middle > 0)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low


def _incomplete_beta(a: F64, b: F64, x: F64) -> F64:
    """Return I_x(a, b) for whole a, b >= 1 and 0 < x < 1."""
    mirrored = x > (a + 1) / (a + b + 2)  # there the fraction of I_{1-x}(b, a) converges fast
    a, b = np.where(mirrored, b, a), np.where(mirrored, a, b)
    log_odds = np.where(mirrored, [np.log1p(-x), np.log(x)], [np.log(x), np.log1p(-x)])
    front = np.exp(_log_factorial(a + b - 1) - _log_factorial(a - 1) - _log_factorial(b - 1) + a * log_odds[0] + b * log_odds[1])
    value = np.clip(front * _fraction(a, b, np.where(mirrored, 1 - x, x)) / a, 0.0, 1.0)
    result: F64 = np.where(mirrored, 1.0 - value, value)
    return result


def _fraction(a: F64, b: F64, x: F64) -> F64:
    c = np.ones_like(a)
    d = 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1))
    h = d.copy()
    for m in range(1, _MAX_TERMS):
        before = h
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _away_from_zero(1.0 + numerator * d)
            c = _away_from_zero(1.0 + numerator / c)
            h = h * d * c
        if (np.abs(h - before) <= 1e-15 * np.abs(h)).all():
            break
    return h


def _away_from_zero(value: F64) -> F64:
    moved: F64 = np.where(np.abs(value) < _TINY, _TINY, value)
    return moved


def _log_factorial(n: Any) -> F64:
    """Return log n! for whole n >= 0; Stirling's series from 32 on, where its error is below 1e-15."""
    large = np.maximum(n, 31.0) + 1.0
    series = (large - 0.5) * np.log(large) - large + 0.5 * np.log(2 * np.pi)
    series += (1 / 12 - (1 / 360 - 1 / (1260 * large**2)) / large**2) / large
    result: F64 = np.where(n < len(_SMALL), _SMALL[np.minimum(n, len(_SMALL) - 1).astype(np.int64)], series)
    return result
