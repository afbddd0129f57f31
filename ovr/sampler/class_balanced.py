"""Rows of rare classes more often. Knows neither ranks nor batches.

N = rows, K = heads, P = all positives of all rows
"""

import numpy as np
from numpy.typing import NDArray

from ovr.data.labels import Labels
from ovr.errors import ConfigError


class ClassBalanced:
    """Draws row n at a rate g_n: the largest over its positive classes of (positives of the largest class / of this) ** power.

    Rows of the largest class, and rows without a positive, have rate 1; no rate exceeds `max_repeat`. With one class a row, power 1
    and no bound in the way, every class is drawn alike (Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed
    Recognition"); with several, it is the maximum of Gupta et al. 2019 ("LVIS", repeat factors). An epoch has N rows; each comes
    floor or ceil of N g_n / sum(g) times.

    Effect on calibration: a head sees odds that are multiplied, on average, by (mean rate of its positives) / (mean rate of its
    known negatives). The logarithm of that, `log_odds_shift_K`, is added to a head's logit in training only, so that the logit
    that is served has the prior of the rows as they are (King and Zeng 2001, "Logistic Regression in Rare Events Data", equation
    7). It is exact where all negatives of a head have one rate, as with two classes. Otherwise it is right in the mean and not row
    by row: among the look-alikes of a rarer class a head stays too low, among those of a commoner one too high. That is no
    function of the head's logit, and no calibration of a head takes it out.
    """

    def __init__(self, labels: Labels, *, power: float, max_repeat: float) -> None:
        """Take the labels of the training rows, the power from 0 (all rows alike) to 1 and the largest rate, at least 1.

        Raises:
            ConfigError: a value out of its range.
        """
        if not 0 <= power <= 1:
            raise ConfigError(f"sampler.power must be from 0 to 1, got {power}")
        if not 1 <= max_repeat < float("inf"):
            raise ConfigError(f"sampler.max_repeat must be a finite number of at least 1, got {max_repeat}")
        num_positives_K = labels.num_positives_K()
        rate_K = (num_positives_K.max(initial=1) / np.maximum(num_positives_K, 1)) ** power
        self.rate_N = _largest(np.minimum(rate_K, max_repeat), labels)
        self.log_odds_shift_K = _log_odds_shift(self.rate_N, labels)

    def epoch_rows(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return row numbers (N,) with repeats, in random order."""
        # Systematic sampling over a random order: as many of each row as expected but for rounding, unlike independent draws.
        order_N = rng.permutation(len(self.rate_N))
        edge_N = np.cumsum(self.rate_N[order_N])
        step = edge_N[-1] / len(order_N)
        place_N = np.searchsorted(edge_N, (np.arange(len(order_N)) + rng.random()) * step, side="right")
        return rng.permutation(order_N[np.minimum(place_N, len(order_N) - 1)])


def _largest(rate_K: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    rate_N = np.ones(len(labels))
    np.maximum.at(rate_N, labels.positives.row_P, rate_K[labels.positives.column_P])
    return rate_N


def _log_odds_shift(rate_N: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """Return log(mean rate of positives / mean rate of known negatives) (K,); 0 for a head that lacks either."""
    counts = labels.counts()
    positive_K, unknown_K = (
        np.bincount(entries.column_P, weights=rate_N[entries.row_P], minlength=labels.num_heads)
        for entries in (labels.positives, labels.unknowns)
    )
    negative_K = rate_N.sum() - unknown_K - positive_K
    has_both_K = (counts.num_positives_K > 0) & (counts.num_negatives_K > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift_K = np.log(positive_K / counts.num_positives_K) - np.log(negative_K / counts.num_negatives_K)
    return np.where(has_both_K, shift_K, 0.0)
