"""Thresholds whose classes taken together are a class-conditional conformal prediction set. Knows nothing of the test split.

N = rows, K = heads
"""

from typing import Any

import numpy as np

from ovr.core.targets import check_probs
from ovr.core.thresholds import Thresholds
from ovr.threshold.cuts import check_prob
from ovr.threshold.recall_at_least import lowest_positive_thresholds


def conformal_thresholds(prob_NK: Any, target_NK: Any, mask_NK: Any, *, coverage: float, fallback: float = 0.0) -> Thresholds:
    """Return for each head the highest threshold that takes a future positive of that class with probability >= `coverage`.

    The label-conditional (Mondrian) conformal predictor of Vovk (2012, "Conditional validity of inductive conformal predictors"),
    with 1 - prob as nonconformity: of n positives the floor((1 - coverage) (n + 1))-th lowest probability. The classes at or above
    their thresholds are the prediction set of a row. The probability is over calibration rows and row together, both drawn alike;
    for these very calibration rows it may be less, see `recall_thresholds` for a promise that excludes that. Only ranks count, as
    there.
    With fewer than coverage / (1 - coverage) positives a class belongs in every set: `fallback`.

    Raises:
        ConfigError: `coverage` not strictly between 0 and 1, or `fallback` not from 0 to 1.
        DataError: probabilities that are NaN or outside [0, 1], shapes that differ, targets or mask other than 0 and 1.
    """
    _check(coverage, fallback)
    prob_NK, target_NK, mask_NK = check_probs(prob_NK, target_NK, mask_NK)
    num_positives_K = (target_NK & mask_NK).sum(axis=0, dtype=np.int64)
    # 1e-9: 0.1 * 10 must not fall short of 1 by its rounding.
    rank_K = np.floor((1.0 - coverage) * (num_positives_K + 1) + 1e-9).astype(np.int64)
    needed = int(np.ceil(1.0 / (1.0 - coverage) - 1e-9)) - 1
    return lowest_positive_thresholds(prob_NK, target_NK, mask_NK, rank_K, needed=needed, fallback=fallback)


def _check(coverage: float, fallback: float) -> None:
    check_prob("coverage", coverage, open_interval=True)
    check_prob("fallback threshold", fallback)


class Conformal:
    """Plug-in: `conformal_thresholds`; with decision=multilabel the decided classes are the prediction set."""

    promises = True

    def __init__(self, *, coverage: float, fallback: float = 0.0) -> None:
        """Take the share of each class's rows whose set holds it, and the threshold of classes with too few positives.

        Raises:
            ConfigError: `coverage` not strictly between 0 and 1, or `fallback` not from 0 to 1.
        """
        _check(coverage, fallback)
        self.coverage, self.fallback = coverage, fallback

    def fit(self, prob_NK: Any, target_NK: Any, mask_NK: Any) -> Thresholds:
        """Return thresholds (K,); arguments and errors are those of `conformal_thresholds`."""
        return conformal_thresholds(prob_NK, target_NK, mask_NK, coverage=self.coverage, fallback=self.fallback)
