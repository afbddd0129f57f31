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
from ovr.metric.binned import ece
from ovr.metric.bins import NUM_BINS, BinSums, bin_sums
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
    sums = bin_sums(prob_NK, target_NK, mask_NK, num_bins=num_bins)
    return ece(sums), _upper(sums, doubt)


def ece_interval(sums: BinSums, *, confidence: float = CONFIDENCE) -> tuple[F64, F64]:
    """Return (low_K, high_K), which hold the true error of each head with at least `confidence`; NaN without a known row.

    The high end is that of `ece_upper_bound`. The low one takes off how far f may rise above its mean, by the same inequality, and
    what noise adds to the mean: sum over bins of sqrt(m (1 - m) rows of the bin) / n, and sqrt(G c / n), at most, with G the bins
    that hold rows.

    Raises:
        ConfigError: `confidence` outside (0, 1).
    """
    _doubt(confidence)
    doubt = _doubt((1 + confidence) / 2)
    num_K, variance_KG, used_K = sums.num_rows_K, _variance(sums), (sums.count_KG > 0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        noise_K, variance_K = np.sqrt(variance_KG / num_K[:, None]).sum(axis=1), variance_KG.sum(axis=1)
        ece_K, low_K, high_K = ece(sums), np.zeros(len(num_K)), np.ones(len(num_K))
        for _ in range(NUM_STEPS):
            middle_K = (low_K + high_K) / 2
            most_K = middle_K + noise_K + np.sqrt(used_K * middle_K / num_K)
            possible_K = most_K + _fall(variance_K + middle_K, num_K, doubt) >= ece_K
            low_K, high_K = np.where(possible_K, low_K, middle_K), np.where(possible_K, middle_K, high_K)
    known_K = num_K > 0
    return np.where(known_K, low_K, np.nan), np.where(known_K, _upper(sums, doubt), np.nan)


def rows_needed(
    limit: float,
    prob_NK: Any,
    mask_NK: Any,
    *,
    assumed: float | F64 = 0.0,
    power: float = 0.8,
    confidence: float = CONFIDENCE,
    num_bins: int = NUM_BINS,
) -> I64:
    """Return about how many known rows (K,) it takes to bound the error of each head by `limit`.

    That many rows, with probabilities like these, give an `ece_upper_bound` of at most `limit` with probability `power` if the true
    error is `assumed` (one number, or one a head), spread over the bins: by default, if the head is perfectly calibrated. A head
    without a known row is taken to be as hard as one can be. More than 2^40 are not counted.

    Raises:
        ConfigError: `limit` outside (0, 1], `assumed` outside [0, limit), `power` or `confidence` outside (0, 1), `num_bins` below
            1.
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, a mask other than 0 and 1.
    """
    doubt = _doubt(confidence)
    if not 0 < limit <= 1:
        raise ConfigError(f"the limit of a calibration error is {limit!r}; expected above 0 and at most 1")
    assumed_K = np.asarray(assumed, dtype=np.float64)
    if not ((assumed_K >= 0) & (assumed_K < limit)).all():
        raise ConfigError(f"the assumed calibration error is {assumed!r}; expected at least 0 and below the limit of {limit}")
    if not 0 < power < 1:
        raise ConfigError(f"power is {power!r}; expected a number above 0 and below 1")
    z = NormalDist().inv_cdf(power)
    sums = bin_sums(prob_NK, np.zeros(np.shape(prob_NK), dtype=np.bool_), mask_NK, num_bins=num_bins)
    empty_K1 = sums.num_rows_K[:, None] == 0
    part_KG = np.where(empty_K1, 1 / num_bins, sums.part_KG)
    variance_KG = np.where(empty_K1, 0.25 / num_bins, _variance(sums))
    variance_K = variance_KG.sum(axis=1)
    low_K, high_K = np.zeros(len(variance_K)), np.full(len(variance_K), float(MOST_ROWS))
    while (high_K - low_K > 0.5).any():
        middle_K = (low_K + high_K) / 2
        # The mean of |error + noise|: exact where either is absent, and hardly off between.
        seen_KG = np.sqrt((assumed_K[..., None] * part_KG) ** 2 + 2 / math.pi * variance_KG / middle_K[:, None])
        seen_K = seen_KG.sum(axis=1) + z * np.sqrt(variance_K / middle_K)
        enough_K = seen_K + _fall(variance_K + limit, middle_K, doubt) <= limit
        low_K, high_K = np.where(enough_K, low_K, middle_K), np.where(enough_K, middle_K, high_K)
    num_K: I64 = np.ceil(high_K).astype(np.int64)
    return num_K


def _upper(sums: BinSums, doubt: float) -> F64:
    num_K, variance_K, ece_K = sums.num_rows_K, _variance(sums).sum(axis=1), ece(sums)
    upper_K = np.ones(len(num_K))
    with np.errstate(invalid="ignore", divide="ignore"):
        for _ in range(NUM_STEPS):
            upper_K = np.minimum(ece_K + _fall(variance_K + upper_K, num_K, doubt), 1.0)
    return np.where(num_K > 0, upper_K, 1.0)


def _variance(sums: BinSums) -> F64:
    """Return what each bin (K, G) adds to the mean variance of a target if the head is calibrated."""
    mean_KG = sums.mean_prob_KG
    variance_KG: F64 = np.where(sums.count_KG > 0, sums.part_KG * mean_KG * (1 - mean_KG), 0.0)
    return variance_KG


def _fall(variance_K: F64, num_K: NDArray[Any], doubt: float) -> F64:
    """Return how far f falls below its mean with probability exp(-doubt) at most; `variance_K` is that of one target."""
    third_K = doubt / (3 * num_K)
    fall_K: F64 = third_K + np.sqrt(third_K**2 + 2 * np.minimum(variance_K, 0.25) * doubt / num_K)
    return fall_K


def _doubt(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}; expected a number above 0 and below 1")
    return -math.log(1 - confidence)
