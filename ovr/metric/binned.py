"""Figures of calibration that come from the sums of bins: errors with less bias, and the parts of the Brier score. Knows no rows.

A calibration error measured on few rows is too high: the noise of a bin's share never cancels. Debiased forms take it off on
average; their value may be below 0 for a calibrated head, which is what makes the mean over many heads right.

K = heads, G = bins
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovr.metric.bins import BinSums

F64 = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def ece(sums: BinSums) -> F64:
    """Return the calibration error (K,): the mean over rows of |share of positives - mean probability| of the row's bin."""
    gap_K: F64 = np.abs(sums.positive_KG - sums.prob_KG).sum(axis=1)
    return _over_rows(gap_K, sums)


def debiased_ece(sums: BinSums) -> F64:
    """Return the error (K,) less what noise is expected to add to it.

    It is the L1 form of Kumar, Liang and Ma 2019, "Verified Uncertainty Calibration", in closed form instead of a simulation:
    the share of each bin is taken as normal around the observed one, with variance share (1 - share) / rows. Bins whose rows are
    all positive or all negative are not corrected.
    """
    gap_KG = np.abs(sums.share_KG - sums.mean_prob_KG)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation_KG = np.sqrt(sums.share_KG * (1 - sums.share_KG) / sums.count_KG)
        z_KG = gap_KG / deviation_KG
        noisy_KG = deviation_KG * math.sqrt(2 / math.pi) * np.exp(-(z_KG**2) / 2) + gap_KG * _erf(z_KG / math.sqrt(2))
    corrected_KG = np.where(deviation_KG > 0, 2 * gap_KG - noisy_KG, gap_KG)
    return _weighted(corrected_KG, sums)


def debiased_squared_ece(sums: BinSums) -> F64:
    """Return the mean (K,) of the squared gaps, without bias: less share (1 - share) / (rows - 1) a bin.

    It is the L2 form of Kumar, Liang and Ma 2019 before the root, and the debiased reliability of the Brier score (Bröcker 2012,
    Ferro and Fricker 2012). A bin of one row says nothing of its noise and is not corrected.
    """
    noise_KG = sums.share_KG * (1 - sums.share_KG) / np.maximum(sums.count_KG - 1, 1)
    return _weighted((sums.share_KG - sums.mean_prob_KG) ** 2 - noise_KG, sums)


@dataclass(frozen=True, slots=True)
class BrierParts:
    """brier = reliability - resolution + uncertainty + within_variance - within_covariance, to the last digits.

    Murphy 1973, with what is lost by putting different probabilities into one bin (Stephenson, Coelho and Jolliffe 2008).
    """

    reliability_K: F64  # mean squared gap of the bins: 0 is best
    resolution_K: F64  # how far the shares of the bins lie from the head's: high is best, `uncertainty` at most
    uncertainty_K: F64  # share of positives (1 - share): a property of the rows
    within_variance_K: F64  # of the probabilities within their bins
    within_covariance_K: F64  # twice that of probability and target within their bins


def brier_parts(sums: BinSums) -> BrierParts:
    """Return the parts of the Brier score (K,); NaN for a head without a known row."""
    rate_K = _over_rows(sums.positive_KG.sum(axis=1), sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_KG = sums.prob2_KG - sums.prob_KG**2 / sums.count_KG
        covariance_KG = sums.both_KG - sums.prob_KG * sums.positive_KG / sums.count_KG
    return BrierParts(
        _weighted((sums.share_KG - sums.mean_prob_KG) ** 2, sums),
        _weighted((sums.share_KG - rate_K[:, None]) ** 2, sums),
        rate_K * (1 - rate_K),
        _over_rows(np.maximum(np.nan_to_num(variance_KG), 0.0).sum(axis=1), sums),
        _over_rows(2 * np.nan_to_num(covariance_KG).sum(axis=1), sums),
    )


def _weighted(value_KG: F64, sums: BinSums) -> F64:
    return _over_rows(np.where(sums.count_KG > 0, value_KG * sums.count_KG, 0.0).sum(axis=1), sums)


def _over_rows(total_K: F64, sums: BinSums) -> F64:
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_K: F64 = np.where(sums.num_rows_K > 0, total_K / sums.num_rows_K, np.nan)
    return mean_K
