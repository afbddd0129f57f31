"""Partly known 0/1 targets, kept as lists of positives and of unknowns. Knows columns, not class ids.

N = rows, B = batch, K = heads, C = heads of a block of columns, P = positives, U = unknown targets
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovr.core.counts import ClassCounts
from ovr.data.entries import Entries
from ovr.errors import DataError

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labels:
    """Targets (N, K): what is neither positive nor unknown is known to be negative. No entry is both."""

    positives: Entries
    unknowns: Entries
    num_heads: int

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
        positives = Entries(np.arange(len(column_N) + 1, dtype=np.int64), column_N.astype(np.int32))
        return cls(positives, Entries.none(len(column_N)), num_heads)

    @classmethod
    def from_dense(cls, target_NK: NDArray[np.bool_], mask_NK: NDArray[np.bool_] | None = None) -> "Labels":
        """Return labels from bool targets (N, K); where `mask_NK` is False the target is unknown, whatever it holds."""
        if mask_NK is None:
            return cls(Entries.of(target_NK), Entries.none(len(target_NK)), target_NK.shape[1])
        return cls(Entries.of(target_NK & mask_NK), Entries.of(~mask_NK), target_NK.shape[1])

    def __len__(self) -> int:
        return len(self.positives)

    def dense(self, rows_B: I64 | None = None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return bool (target_BK, mask_BK) of the given rows, or of all."""
        rows_B = np.arange(len(self)) if rows_B is None else rows_B
        target_BK, mask_BK = self._blank(len(rows_B), self.num_heads)
        target_BK[self.positives.of_rows(rows_B)] = True
        mask_BK[self.unknowns.of_rows(rows_B)] = False
        return target_BK, mask_BK

    def columns(self, columns: slice) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return bool (target_NC, mask_NC) of the heads in `columns` (start and stop only), of all rows."""
        start, stop, _ = columns.indices(self.num_heads)
        target_NC, mask_NC = self._blank(len(self), stop - start)
        for entries, flag_NC, value in ((self.positives, target_NC, True), (self.unknowns, mask_NC, False)):
            row_E, column_E = entries.of_columns(start, stop)
            flag_NC[row_E, column_E - start] = value
        return target_NC, mask_NC

    def some_columns(self, column_C: I64) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return bool (target_NC, mask_NC) of the heads in the given columns, ascending, of all rows."""
        target_NC, mask_NC = self._blank(len(self), len(column_C))
        if len(column_C):
            for entries, flag_NC, value in ((self.positives, target_NC, True), (self.unknowns, mask_NC, False)):
                row_E, column_E = entries.of_columns(int(column_C[0]), int(column_C[-1]) + 1)
                place_E = np.searchsorted(column_C, column_E)
                here_E = column_C[place_E] == column_E
                flag_NC[row_E[here_E], place_E[here_E]] = value
        return target_NC, mask_NC

    def sparse(self, rows_B: I64) -> tuple[I64, I64, I64, I64]:
        """Return (row_P, column_P, row_U, column_U) of the given rows, each pair sorted by column and then row.

        A row is counted by its position in `rows_B`.
        """
        lists: list[I64] = []
        for entries in (self.positives, self.unknowns):
            row_E, column_E = entries.of_rows(rows_B)
            order_E = np.argsort(column_E, kind="stable")
            lists += [row_E[order_E], column_E[order_E]]
        return lists[0], lists[1], lists[2], lists[3]

    def take(self, rows_B: I64) -> "Labels":
        """Return the labels of the given rows."""
        return Labels(self.positives.take(rows_B), self.unknowns.take(rows_B), self.num_heads)

    def num_positives_K(self) -> I64:
        """Return how many rows are positive for each head."""
        return np.bincount(self.positives.column_P, minlength=self.num_heads)

    def first_heads(self, num_heads: int) -> "Labels":
        """Return the labels of the heads in the first columns alone."""
        return Labels(self.positives.first_columns(num_heads), self.unknowns.first_columns(num_heads), num_heads)

    def classes_of_rows(self) -> tuple[I64, NDArray[np.bool_]]:
        """Return how many classes each row is known to have (N,), and whether all its labels are known (N,)."""
        return np.diff(self.positives.start_N1), np.diff(self.unknowns.start_N1) == 0

    def counts(self) -> ClassCounts:
        """Return how many rows are known positive and known negative for each head."""
        num_positives_K = self.num_positives_K()
        num_unknown_K = np.bincount(self.unknowns.column_P, minlength=self.num_heads)
        return ClassCounts(num_positives_K, len(self) - num_unknown_K - num_positives_K)

    @staticmethod
    def _blank(num_rows: int, num_heads: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return np.zeros((num_rows, num_heads), dtype=bool), np.ones((num_rows, num_heads), dtype=bool)
