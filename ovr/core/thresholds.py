"""One threshold a head, with what is to be said of it. Knows nothing of how thresholds are chosen.

K = heads
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

OK = "ok"
NO_POSITIVE = "no_positive"  # no known positive among the calibration rows: the rule's fallback stands
NOT_PROMISED = "cannot_be_promised"  # begins the status of a head whose rows do not bear the promise asked for, with the reason


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds (K,) float64, each a float32 number, and a status a head: `OK`, `NO_POSITIVE`, or `NOT_PROMISED` with its
    reason, such as "cannot_be_promised: n = 12 positives, needs at least 29"."""

    threshold_K: NDArray[np.float64]
    status_K: tuple[str, ...]

    @classmethod
    def of(cls, value: "Thresholds | ArrayLike") -> "Thresholds":
        """Return what a rule gave; a rule that returns numbers alone says nothing against them."""
        if isinstance(value, Thresholds):
            return value
        threshold_K = np.asarray(value, dtype=np.float64)
        return cls(threshold_K, (OK,) * len(threshold_K))

    @classmethod
    def joined(cls, parts: Sequence["Thresholds"]) -> "Thresholds":
        """Return the thresholds of all parts, one part after the other."""
        return cls(np.concatenate([part.threshold_K for part in parts]), tuple(s for part in parts for s in part.status_K))

    def __len__(self) -> int:
        return len(self.threshold_K)

    def columns_without_promise(self) -> list[int]:
        """Return the columns of the heads that have a threshold without the promise that was asked for."""
        return [column for column, status in enumerate(self.status_K) if status.startswith(NOT_PROMISED)]
