"""What the known rows of each head can say at all: their counts, and whether a rising map of the logit fits them. Knows no fit.

N = rows, K = heads
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import Calibration, CalibrationStatus

Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Known:
    """One entry a head."""

    num_rows_K: NDArray[np.int64]
    num_positives_K: NDArray[np.int64]
    separable_K: Bool  # a logit parts all positives from all negatives
    increasing_K: Bool  # the mean logit of the positives is above that of the negatives

    @property
    def both_K(self) -> Bool:
        """Whether there are rows of both classes."""
        return (self.num_positives_K > 0) & (self.num_positives_K < self.num_rows_K)

    def status(self, column: int, *, at_bound: bool = False) -> CalibrationStatus:
        """Return the status of a head's fit.

        `no_rows`; `one_class`; `not_increasing`: the likelihood would have probabilities fall where the logit rises, and the best
        map that does not is a flat one, or at a bound; `separable`: a logit parts positives and negatives; `at_bound`; `ok`.
        """
        if self.num_rows_K[column] == 0:
            return "no_rows"
        if not self.both_K[column]:
            return "one_class"
        if not self.increasing_K[column]:
            return "not_increasing"
        if self.separable_K[column]:
            return "separable"
        return "at_bound" if at_bound else "ok"

    def untouched(self, column: int) -> Calibration:
        """Return the identity for a head that cannot be fitted, with the reason."""
        return Calibration(
            "identity",
            status=self.status(column),
            num_rows=int(self.num_rows_K[column]),
            num_positives=int(self.num_positives_K[column]),
        )


def known(logit_NK: NDArray[np.floating[Any]], target_NK: Bool, mask_NK: Bool) -> Known:
    """Return what is known of arrays that `check_targets` has passed.

    The slope of a logistic regression on the logit is positive exactly where `increasing_K` is.
    """
    positive_NK, negative_NK = target_NK & mask_NK, mask_NK & ~target_NK
    num_rows_K, num_positives_K = mask_NK.sum(axis=0), positive_NK.sum(axis=0)
    least_K = np.min(logit_NK, axis=0, where=positive_NK, initial=np.inf)
    most_K = np.max(logit_NK, axis=0, where=negative_NK, initial=-np.inf)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        gap_K = np.sum(logit_NK, axis=0, where=positive_NK, dtype=np.float64) / num_positives_K - np.sum(
            logit_NK, axis=0, where=negative_NK, dtype=np.float64
        ) / (num_rows_K - num_positives_K)
    return Known(num_rows_K, num_positives_K, least_K > most_K, gap_K > 0)
