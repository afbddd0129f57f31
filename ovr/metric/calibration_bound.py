"""How large a head's calibration error can be, given what few rows show of it, and how many rows would tell. Knows no contract.

The measured error f = sum over bins of |sum of (target - prob)| / n is above the true one on average: noise never cancels in it. So
an upper bound needs no more than how far f may fall below its own mean. Given the probabilities, the targets are independent, and
one of them moves f by at most 1/n; Freedman's inequality (1975; Bernstein's for martingales) then says of the true error c

    P(f <= c - s) <= exp(-s^2 / (2 V + 2 s / (3 n))),   V <= (A + c) / n,   A = mean over rows of m (1 - m),

with m the mean probability of the row's bin: the variance of a target is at most m (1 - m) plus how far off m is. The bound is the
largest c that this does not contradict. It holds for any number of rows and any probabilities, and no normal distribution is
assumed. It is about the error in these bins, at these rows' probabilities: what cancels within a bin stays hidden, as in every ECE.

N = rows, K = heads, G = bins
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ConfigError
from ovr.metric.bins import NUM_BINS, MassBins, mass_bins
from ovr.metric.intervals import CONFIDENCE

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

NUM_STEPS = 60  # each halves what is left of the way to the bound, or better
MOST_ROWS = 1 << 40


def ece_upper_bound(
    prob_NK: Any, target_NK: Any, mask_NK: Any, *, confidence: float = CONFIDENCE, num_bins: int = NUM_BINS
) -> tuple[F64, F64]:
    """Return (ece_K, upper_K): the calibration error with bins of equal mass, and what the true one is at most; in [0, 1].

    In at least `confidence` of all draws of a head's targets the true error is at or below the bound, each head on its own; for K
    heads together give 1 - (1 - confidence) / K. A head without a known row has NaN and a bound of 1.

    Raises:
        ConfigError: `num_bins` below 1, `confidence` outside (0, 1).
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    doubt = _doubt(confidence)
    ece_parts, upper_parts = [], []
    for bins in mass_bins(prob_NK, target_NK, mask_NK, num_bins=num_bins):
        prob_CN, num_C = bins.ranked.score_CN.astype(np.float64), bins.ranked.num_known_C
        with np.errstate(invalid="ignore", divide="ignore"):
            variance_C = _variance(bins).sum(axis=1)
            ece_C = np.abs(bins.sums(bins.ranked.target_CN - prob_CN)).sum(axis=1) / num_C
            upper_C = np.ones(len(num_C))
            for _ in range(NUM_STEPS):
                upper_C = np.minimum(ece_C + _fall(variance_C + upper_C, num_C, doubt), 1.0)
        ece_parts.append(ece_C)
        upper_parts.append(np.where(num_C > 0, upper_C, 1.0))
    return np.concatenate(ece_parts), np.concatenate(upper_parts)


def rows_needed(
    limit: float,
    prob_NK: Any,
    mask_NK: Any,
    *,
    ece: float = 0.0,
    power: float = 0.8,
    confidence: float = CONFIDENCE,
    num_bins: int = NUM_BINS,
) -> I64:
    """Return about how many known rows (K,) it takes to bound the error of each head by `limit`.

    That many rows, with probabilities like these, give an `ece_upper_bound` of at most `limit` with probability `power` if the true
    error is `ece`, spread over the bins: by default, if the head is perfectly calibrated. A head without a known row is taken to be
    as hard as one can be. More than 2^40 are not counted.

    Raises:
        ConfigError: `limit` outside (0, 1], `ece` outside [0, limit), `power` or `confidence` outside (0, 1), `num_bins` below 1.
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, a mask other than 0 and 1.
    """
    doubt = _doubt(confidence)
    if not 0 < limit <= 1:
        raise ConfigError(f"the limit of a calibration error is {limit!r}; expected above 0 and at most 1")
    if not 0 <= ece < limit:
        raise ConfigError(f"the assumed calibration error is {ece!r}; expected at least 0 and below the limit of {limit}")
    if not 0 < power < 1:
        raise ConfigError(f"power is {power!r}; expected a number above 0 and below 1")
    z = NormalDist().inv_cdf(power)
    parts = []
    for bins in mass_bins(prob_NK, np.zeros(np.shape(prob_NK), dtype=np.bool_), mask_NK, num_bins=num_bins):
        num_C = bins.ranked.num_known_C
        variance_CG = _variance(bins)
        empty_C = num_C == 0
        variance_CG[empty_C] = 0.25 / num_bins
        part_CG = np.where(empty_C[:, None], 1 / num_bins, bins.count_CG / np.maximum(num_C, 1)[:, None])
        variance_C = variance_CG.sum(axis=1)
        low_C, high_C = np.zeros(len(num_C)), np.full(len(num_C), float(MOST_ROWS))
        while (high_C - low_C > 0.5).any():
            middle_C = (low_C + high_C) / 2
            # The mean of |error + noise|: exact where either is absent, and hardly off between.
            seen_CG = np.sqrt((ece * part_CG) ** 2 + 2 / math.pi * variance_CG / middle_C[:, None])
            seen_C = seen_CG.sum(axis=1) + z * np.sqrt(variance_C / middle_C)
            enough_C = seen_C + _fall(variance_C + limit, middle_C, doubt) <= limit
            low_C, high_C = np.where(enough_C, low_C, middle_C), np.where(enough_C, middle_C, high_C)
        parts.append(np.ceil(high_C).astype(np.int64))
    return np.concatenate(parts)


def _variance(bins: MassBins) -> F64:
    """Return what each bin (C, G) adds to the mean variance of a target if the head is calibrated."""
    count_CG = bins.count_CG
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_CG = np.clip(bins.sums(bins.ranked.score_CN.astype(np.float64)) / count_CG, 0.0, 1.0)
        variance_CG: F64 = np.where(count_CG > 0, count_CG / bins.ranked.num_known_C[:, None] * mean_CG * (1 - mean_CG), 0.0)
    return variance_CG


def _fall(variance_K: F64, num_K: NDArray[Any], doubt: float) -> F64:
    """Return how far f falls below its mean with probability exp(-doubt) at most; `variance_K` is that of one target."""
    third_K = doubt / (3 * num_K)
    fall_K: F64 = third_K + np.sqrt(third_K**2 + 2 * np.minimum(variance_K, 0.25) * doubt / num_K)
    return fall_K


def _doubt(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}; expected a number above 0 and below 1")
    return -math.log(1 - confidence)
