"""How many training rows each head has: what automatic weights, rates and samplers are made from. Knows columns, not class ids.

K = heads
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovr.errors import DataError


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Rows that are known to be positive and known to be negative, for each head; unknown ones are in neither."""

    num_positives_K: NDArray[np.int64]
    num_negatives_K: NDArray[np.int64]

    def __post_init__(self) -> None:
        positives, negatives = self.num_positives_K, self.num_negatives_K
        if positives.shape != negatives.shape or positives.ndim != 1:
            raise DataError(f"counts of positives {positives.shape} and of negatives {negatives.shape}; expected (K,) twice")
        if (positives < 0).any() or (negatives < 0).any():
            raise DataError("a count of rows is below 0")

    def base_rate_K(self) -> NDArray[np.float64]:
        """Return the share of positives among the known rows (K,), in [0, 1]; 1/2 where none is known."""
        num_known_K = self.num_positives_K + self.num_negatives_K
        return np.where(num_known_K > 0, self.num_positives_K / np.maximum(num_known_K, 1), 0.5)

    def base_logit_K(self) -> NDArray[np.float64]:
        """Return the log odds of the base rate (K,), finite: half a row is added on either side."""
        logit_K: NDArray[np.float64] = np.log(self.num_positives_K + 0.5) - np.log(self.num_negatives_K + 0.5)
        return logit_K

    def negatives_per_positive_K(self) -> NDArray[np.float64]:
        """Return the ratio (K,); infinity without a positive row, 1 where no row is known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio_K = self.num_negatives_K / self.num_positives_K
        return np.where(np.isnan(ratio_K), 1.0, ratio_K)
