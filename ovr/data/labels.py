"""Partly known 0/1 targets, kept as lists of positives. Knows columns, not class ids.

N = rows, B = batch, K = heads, P = all positives of all rows
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovr.core.counts import ClassCounts
from ovr.errors import DataError


@dataclass(frozen=True, slots=True)
class Labels:
    """Targets (N, K): row n's positives are `column_P[start_N1[n] : start_N1[n + 1]]`; everything else known is negative."""

    start_N1: NDArray[np.int64]
    column_P: NDArray[np.int32]
    num_heads: int
    unknown_NK: NDArray[np.bool_] | None = None  # None: every target is known

    @classmethod
    def from_columns(cls, column_N: NDArray[np.integer], *, num_heads: int) -> "Labels":
        """Return multi-class labels: one positive a row, all other classes known to be negative.

        Raises:
            DataError: a column outside 0 .. num_heads - 1.
        """
        column_N = np.asarray(column_N)
        outside = np.flatnonzero((column_N < 0) | (column_N >= num_heads))
        if outside.size:
            row = int(outside[0])
            raise DataError(f"row {row} has label column {column_N[row]}; expected 0 to {num_heads - 1}")
        return cls(np.arange(len(column_N) + 1, dtype=np.int64), column_N.astype(np.int32), num_heads)

    @classmethod
    def from_dense(cls, target_NK: NDArray[np.bool_], mask_NK: NDArray[np.bool_] | None = None) -> "Labels":
        """Return labels from bool targets (N, K); where `mask_NK` is False the target is unknown, whatever it holds."""
        unknown_NK = None if mask_NK is None or mask_NK.all() else ~mask_NK
        known_positive_NK = target_NK if unknown_NK is None else target_NK & ~unknown_NK
        start_N1 = np.concatenate([[0], np.cumsum(known_positive_NK.sum(axis=1))]).astype(np.int64)
        return cls(start_N1, np.nonzero(known_positive_NK)[1].astype(np.int32), target_NK.shape[1], unknown_NK)

    def __len__(self) -> int:
        return len(self.start_N1) - 1

    def dense(self, rows_B: NDArray[np.int64] | None = None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return bool (target_BK, mask_BK) of the given rows, or of all."""
        rows_B = np.arange(len(self)) if rows_B is None else rows_B
        start_B, num_B = self.start_N1[rows_B], self.start_N1[rows_B + 1] - self.start_N1[rows_B]
        target_BK = np.zeros((len(rows_B), self.num_heads), dtype=bool)
        within = np.arange(num_B.sum()) - np.repeat(np.cumsum(num_B) - num_B, num_B)
        target_BK[np.repeat(np.arange(len(rows_B)), num_B), self.column_P[np.repeat(start_B, num_B) + within]] = True
        mask_BK = np.ones_like(target_BK) if self.unknown_NK is None else ~self.unknown_NK[rows_B]
        return target_BK, mask_BK

    def take(self, rows_B: NDArray[np.int64]) -> "Labels":
        """Return the labels of the given rows."""
        return Labels.from_dense(*self.dense(rows_B))

    def num_positives_K(self) -> NDArray[np.int64]:
        """Return how many rows are positive for each head."""
        return np.bincount(self.column_P, minlength=self.num_heads)

    def counts(self) -> ClassCounts:
        """Return how many rows are known positive and known negative for each head."""
        num_positives_K = self.num_positives_K()
        num_unknown_K = 0 if self.unknown_NK is None else self.unknown_NK.sum(axis=0)
        return ClassCounts(num_positives_K, len(self) - num_unknown_K - num_positives_K)
