"""Sparse rows kept as lists of values, and made dense a few at a time. Knows neither files nor labels.

N = rows, B = rows asked for, P = values of all rows, E = values of some rows
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovr.input.sparse import SparseRows

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Csr:
    """Row n has `value_P[start_N1[n] : start_N1[n + 1]]` for the features `index_P[...]`, which rise within a row."""

    start_N1: I64
    index_P: NDArray[np.int32]
    value_P: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.start_N1) - 1

    def num_values_N(self) -> I64:
        """Return how many values other than 0 each row has."""
        num_before_P1 = np.concatenate([[0], np.cumsum(self.value_P != 0)])
        return np.diff(num_before_P1[self.start_N1]).astype(np.int64)

    def take(self, rows_B: I64) -> "Csr":
        """Return the given rows."""
        start_B, num_B = self.start_N1[rows_B], self.start_N1[rows_B + 1] - self.start_N1[rows_B]
        start_B1 = np.concatenate([[0], np.cumsum(num_B)]).astype(np.int64)
        place_E = np.repeat(start_B - start_B1[:-1], num_B) + np.arange(start_B1[-1])
        return Csr(start_B1, self.index_P[place_E], self.value_P[place_E])


@dataclass(frozen=True, slots=True)
class EncodedCsr:
    """The rows as an encoder makes them, (N, max_tokens, 2) float32: each is made when it is asked for."""

    csr: Csr
    encoder: SparseRows

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, max_tokens, 2)."""
        return (len(self.csr), *self.encoder.tensor.shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """That of what is made."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.csr)

    def __getitem__(self, rows: slice | I64) -> NDArray[np.float32]:
        """Return the rows of a slice or of row numbers (B,), (B, max_tokens, 2)."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        part = self.csr.take(np.asarray(rows, dtype=np.int64))
        return self.encoder.padded(part.start_N1, part.index_P, part.value_P)
