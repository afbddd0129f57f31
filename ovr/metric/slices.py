"""Figures of cohorts, such as the values of a column "sex", and the gaps between them. Knows nothing of what a cohort is.

Gaps are those of fairlearn: demographic parity compares the share of rows that a class is decided on, equalized odds the true and
the false positive rate, and takes the wider of the two gaps (Agarwal et al. 2018, Hardt, Price and Srebro 2016). Cohorts for which
a rate is undefined, having no positive row, say, are left out of its gap.

N = rows, K = heads, C = heads of one block, A = cohorts
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.targets import check_probs
from ovr.errors import DataError
from ovr.metric.classification import Counts, check_decisions
from ovr.metric.draws import ratio
from ovr.metric.intervals import CONFIDENCE, wilson

F64 = NDArray[np.float64]

RATES = ("decided_rate", "precision", "recall", "false_positive_rate", "false_negative_rate")


@dataclass(frozen=True, slots=True)
class Slices:
    """Counts and mean probabilities of each cohort (A, K), in the order of their names."""

    names: tuple[str, ...]
    counts: Counts  # arrays (A, K)
    prob_sum_AK: F64  # over known rows

    def shares(self) -> dict[str, tuple[F64, F64, F64]]:
        """Return (value, low, high), each (A, K), of every figure that is a share of rows, with Wilson's interval."""
        proportions = {"decided_rate": (self.counts.num_decided_K, self.counts.num_rows_K), **self.counts.proportions()}
        return {name: (ratio(top, bottom), *wilson(top, bottom)) for name, (top, bottom) in proportions.items()}

    @property
    def mean_prob_AK(self) -> F64:
        """The mean probability of a cohort's rows: beside its share of positives it tells calibration in the large."""
        return ratio(self.prob_sum_AK, self.counts.num_rows_K)

    @property
    def share_AK(self) -> F64:
        """The share of positives."""
        return ratio(self.counts.num_positives_K, self.counts.num_rows_K)


@dataclass(frozen=True, slots=True)
class Gaps:
    """Between the cohorts of each head (K,): 0 and 1 where they are alike; NaN where fewer than two have the rate."""

    demographic_parity_difference_K: F64  # highest less lowest share decided on
    demographic_parity_ratio_K: F64  # lowest over highest
    equalized_odds_difference_K: F64  # the larger of the differences of recall and false positive rate
    equalized_odds_ratio_K: F64  # the smaller of their ratios
    recall_difference_K: F64  # "equal opportunity"
    false_positive_rate_difference_K: F64


def slices(label_NK: Any, prob_NK: Any, target_NK: Any, mask_NK: Any, *, cohort_N: Any) -> Slices:
    """Return the figures of each cohort.

    Args:
        label_NK: the decisions, bool or 0 and 1.
        cohort_N: the name of each row's cohort; a missing value is a name of its own, such as "".

    Raises:
        DataError: not one cohort a row; what `check_probs` and `confusion` refuse.
    """
    prob_NK, _, _ = check_probs(prob_NK, target_NK, mask_NK)
    label_NK, target_NK, mask_NK = check_decisions(label_NK, target_NK, mask_NK)
    cohort_N = np.asarray(cohort_N)
    if cohort_N.shape != (len(label_NK),):
        raise DataError(f"cohorts have shape {cohort_N.shape}; expected ({len(label_NK)},), one a row")
    names, place_N = np.unique(cohort_N.astype(np.str_), return_inverse=True)
    order_N = np.argsort(place_N, kind="stable")
    starts_A = np.searchsorted(place_N[order_N], np.arange(len(names)))
    label_NK, target_NK, mask_NK = label_NK[order_N], target_NK[order_N], mask_NK[order_N]

    def total(value_NK: NDArray[Any]) -> NDArray[Any]:
        if not len(names):
            return np.zeros((0, value_NK.shape[1]), dtype=np.int64)
        return np.add.reduceat(value_NK, starts_A, axis=0, dtype=np.float64 if value_NK.dtype.kind == "f" else np.int64)

    decided_NK, positive_NK = label_NK & mask_NK, target_NK & mask_NK
    counts = Counts(total(mask_NK), total(positive_NK), total(decided_NK), total(decided_NK & positive_NK))
    return Slices(tuple(names.tolist()), counts, total(np.where(mask_NK, prob_NK[order_N].astype(np.float64), 0.0)))


def gaps(found: Slices) -> Gaps:
    """Return the gaps between the cohorts."""
    decided, recall, fpr = (
        (_difference(value_AK), _ratio(value_AK))
        for value_AK in (found.shares()[name][0] for name in ("decided_rate", "recall", "false_positive_rate"))
    )
    return Gaps(*decided, np.fmax(recall[0], fpr[0]), np.fmin(recall[1], fpr[1]), recall[0], fpr[0])


def gap_intervals(found: Slices, *, confidence: float = CONFIDENCE) -> dict[str, tuple[F64, F64]]:
    """Return (low_K, high_K) of the differences of `Gaps` that are of one rate; NaN where fewer than two cohorts have it.

    The interval of each pair's difference is Newcombe's (1998, "Interval estimation for the difference between independent
    proportions", method 10), corrected for the number of pairs (Bonferroni); the gap is at least the largest low end and at most
    the largest high end. A small cohort with a wide interval so widens that of the gap, also if its rate is not at an end.

    Raises:
        ConfigError: `confidence` outside (0, 1).
    """
    proportions = {"demographic_parity": (found.counts.num_decided_K, found.counts.num_rows_K), **found.counts.proportions()}
    names = ("demographic_parity", "recall", "false_positive_rate")
    return {f"{name}_difference": _gap_interval(*proportions[name], confidence) for name in names}


def _gap_interval(top_AK: NDArray[Any], bottom_AK: NDArray[Any], confidence: float) -> tuple[F64, F64]:
    num_cohorts, num_heads = top_AK.shape
    num_pairs = max(1, num_cohorts * (num_cohorts - 1) // 2)
    low_AK, high_AK = wilson(top_AK, bottom_AK, confidence=1 - (1 - confidence) / num_pairs)
    rate_AK = ratio(top_AK, bottom_AK)
    low_K, high_K = np.full(num_heads, np.nan), np.full(num_heads, np.nan)
    for a in range(num_cohorts):
        for b in range(num_cohorts):
            if a != b:
                difference_K = rate_AK[a] - rate_AK[b]
                low_ab = difference_K - np.hypot(rate_AK[a] - low_AK[a], high_AK[b] - rate_AK[b])
                high_ab = difference_K + np.hypot(high_AK[a] - rate_AK[a], rate_AK[b] - low_AK[b])
                low_K, high_K = np.fmax(low_K, np.maximum(low_ab, 0.0)), np.fmax(high_K, high_ab)
    return low_K, np.minimum(high_K, 1.0)


def joined(parts: list[Slices]) -> Slices:
    """Return the slices of all heads from those of consecutive blocks of heads, all of the same rows."""
    names = ("num_rows_K", "num_positives_K", "num_decided_K", "true_positives_K")
    counts = Counts(*(np.concatenate([getattr(part.counts, name) for part in parts], axis=1) for name in names))
    return Slices(parts[0].names, counts, np.concatenate([part.prob_sum_AK for part in parts], axis=1))


def _extremes(rate_AK: F64) -> tuple[F64, F64]:
    """Return the lowest and highest rate (K,) of the cohorts that have one; NaN where fewer than two do."""
    some_AK = ~np.isnan(rate_AK)
    low_K, high_K = (
        np.where(some_AK, rate_AK, np.inf).min(axis=0, initial=np.inf),
        np.where(some_AK, rate_AK, -np.inf).max(axis=0, initial=-np.inf),
    )
    enough_K = some_AK.sum(axis=0) > 1
    return np.where(enough_K, low_K, np.nan), np.where(enough_K, high_K, np.nan)


def _difference(rate_AK: F64) -> F64:
    low_K, high_K = _extremes(rate_AK)
    return high_K - low_K


def _ratio(rate_AK: F64) -> F64:
    """Return lowest over highest; 1 where both are 0: the cohorts are alike."""
    low_K, high_K = _extremes(rate_AK)
    with np.errstate(invalid="ignore"):
        ratio_K: F64 = np.where(high_K == 0, 1.0, low_K / high_K)
    return ratio_K
