"""Have two samples one distribution, and two counts one share? Knows numbers, not what they are of.

N = values before, M = values now
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.binomial import lower_tail, upper_tail
from ovr.metric.intervals import CONFIDENCE, normal_quantile

F64 = NDArray[np.float64]

_TERMS = np.arange(1, 101)


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the mean of a sample lies from that of an earlier one, in the earlier one's standard deviations, and whether the
    samples differ at all.
    """

    value: float
    low: float
    high: float
    distance: float  # Kolmogorov-Smirnov's: the largest difference of the shares at or below any value
    p: float  # that samples of one distribution are as far apart


def shift(before_N: Any, now_M: Any, *, confidence: float = CONFIDENCE) -> Shift | None:
    """Return how a sample differs from an earlier one; None of fewer than two values, or of earlier ones that are all equal.

    The interval of the mean is normal; p is that of the two-sample Kolmogorov-Smirnov test, by its limit with the correction of
    Stephens 1970. With equal values in both samples p is too high, never too low.

    Raises:
        ConfigError: `confidence` outside (0, 1).
    """
    z = normal_quantile(confidence)
    before_N, now_M = (np.sort(np.asarray(values, np.float64)) for values in (before_N, now_M))
    if min(len(before_N), len(now_M)) < 2 or before_N[0] == before_N[-1]:
        return None
    deviation = float(before_N.std(ddof=1))
    error = math.sqrt(float(before_N.var(ddof=1)) / len(before_N) + float(now_M.var(ddof=1)) / len(now_M))
    value = float(now_M.mean() - before_N.mean())
    every = np.concatenate([before_N, now_M])
    shares = [np.searchsorted(values, every, side="right") / len(values) for values in (before_N, now_M)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    low, high = ((value + sign * z * error) / deviation for sign in (-1, 1))
    return Shift(value / deviation, low, high, distance, _kolmogorov(distance, len(before_N), len(now_M)))


def share_p(count: int, num: int, other_count: int, other_num: int) -> float:
    """Return the two-sided p-value that two samples have the same share, from the count of each; 1 where nothing was counted.

    Given their sum, a count is binomial where both are Poisson (Przyborowski and Wilenski 1940); of shares the p-value is then too
    high, never too low.
    """
    total = count + other_count
    if not total or not num or not other_num:
        return 1.0
    expected = num / (num + other_num)
    tails = lower_tail(count, total, expected), upper_tail(count, total, expected)
    return min(1.0, 2 * float(np.minimum(*tails)))


def _kolmogorov(distance: float, num: int, other_num: int) -> float:
    root = math.sqrt(num * other_num / (num + other_num))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # where the series, which gives 1 to 20 digits, needs many terms
        return 1.0
    terms = (-1.0) ** (_TERMS - 1) * np.exp(-2.0 * _TERMS**2 * scaled**2)
    return float(np.clip(2.0 * terms.sum(), 0.0, 1.0))
