"""Entries of a sparse 0/1 matrix, kept as lists of columns. Knows nothing of what an entry stands for.

N = rows, B = batch, P = all entries of all rows, E = entries of some rows
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Entries:
    """Row n has its entries in the columns `column_P[start_N1[n] : start_N1[n + 1]]`, ascending."""

    start_N1: I64
    column_P: NDArray[np.int32]

    @classmethod
    def none(cls, num_rows: int) -> "Entries":
        """Return a matrix without an entry."""
        return cls(np.zeros(num_rows + 1, np.int64), np.zeros(0, np.int32))

    @classmethod
    def of(cls, flag_NK: NDArray[np.bool_]) -> "Entries":
        """Return the entries of a bool matrix."""
        start_N1 = np.concatenate([[0], np.cumsum(flag_NK.sum(axis=1))]).astype(np.int64)
        return cls(start_N1, np.nonzero(flag_NK)[1].astype(np.int32))

    def __len__(self) -> int:
        return len(self.start_N1) - 1

    @property
    def row_P(self) -> I64:
        """The row of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.start_N1))

    def of_rows(self, rows_B: I64) -> tuple[I64, I64]:
        """Return (row_E, column_E) of the given rows, row by row; a row is counted by its position in `rows_B`."""
        start_B, num_B = self.start_N1[rows_B], self.start_N1[rows_B + 1] - self.start_N1[rows_B]
        within_E = np.arange(num_B.sum()) - np.repeat(np.cumsum(num_B) - num_B, num_B)
        column_E = self.column_P[np.repeat(start_B, num_B) + within_E]
        return np.repeat(np.arange(len(rows_B)), num_B), column_E.astype(np.int64)

    def of_columns(self, start: int, stop: int) -> tuple[I64, I64]:
        """Return (row_E, column_E) of the columns from `start` to before `stop`, column by column, the rows of each ascending."""
        row_P, column_P = self._by_column
        here = slice(*np.searchsorted(column_P, (start, stop)))
        return row_P[here], column_P[here].astype(np.int64)

    def take(self, rows_B: I64) -> "Entries":
        """Return the given rows."""
        num_B = self.start_N1[rows_B + 1] - self.start_N1[rows_B]
        start_B1 = np.concatenate([[0], np.cumsum(num_B)]).astype(np.int64)
        return Entries(start_B1, self.of_rows(rows_B)[1].astype(np.int32))

    def first_columns(self, num_columns: int) -> "Entries":
        """Return the entries in the columns below `num_columns`."""
        kept_P = self.column_P < num_columns
        start_N1 = np.concatenate([[0], np.cumsum(kept_P)])[self.start_N1].astype(np.int64)
        return Entries(start_N1, self.column_P[kept_P])

    @cached_property
    def _by_column(self) -> tuple[I64, NDArray[np.int32]]:
        order_P = np.argsort(self.column_P, kind="stable")
        return self.row_P[order_P], self.column_P[order_P]
