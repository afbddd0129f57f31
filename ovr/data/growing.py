"""Arrays that grow at their end while a file is read: in memory, or in temporary files that are mapped.

N = rows
"""

import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 1 << 17
FIRST_ROWS = 1 << 14  # of a mapped array, before it first doubles


class Held:
    """An array (N,) in memory."""

    def __init__(self) -> None:
        self._chunks: list[NDArray[Any]] = []
        self._first_small = self._num_small = 0  # the first chunk that is no block yet, and the rows from there

    def append(self, chunk: NDArray[Any]) -> None:
        """Add rows; small chunks are joined, because the allocator gives only large arrays back when they are let go of."""
        self._chunks.append(chunk)
        self._num_small += len(chunk)
        if self._num_small >= BLOCK_ROWS:
            self._chunks[self._first_small :] = [np.concatenate(self._chunks[self._first_small :])]
            self._first_small, self._num_small = len(self._chunks), 0

    def map(self, values_V: NDArray[Any]) -> None:
        """Put `values_V[i]` in place of each i."""
        self._chunks = [values_V[chunk] for chunk in self._chunks]

    def result(self, dtype: Any) -> NDArray[Any]:
        """Return all rows, which are let go of."""
        chunks, self._chunks = self._chunks, []
        return np.concatenate([np.zeros(0, dtype), *chunks])


class Mapped:
    """The same in a file without a name, which is gone with the array; one mapping and no open file each."""

    def __init__(self) -> None:
        self._array: NDArray[Any] | None = None
        self._num_rows = 0

    def append(self, chunk: NDArray[Any]) -> None:
        """Add rows."""
        before, start = self._array, self._num_rows
        self._num_rows += len(chunk)
        if before is None or len(before) < self._num_rows:
            self._array = _mapped(max(FIRST_ROWS, 2 * self._num_rows), chunk.dtype)
            if before is not None:
                self._array[:start] = before[:start]
        assert self._array is not None
        self._array[start : self._num_rows] = chunk

    def map(self, values_V: NDArray[Any]) -> None:
        """Put `values_V[i]` in place of each i."""
        if self._array is not None:
            before, self._array = self._array, _mapped(len(self._array), values_V.dtype)
            for start in range(0, self._num_rows, BLOCK_ROWS):
                here = slice(start, min(start + BLOCK_ROWS, self._num_rows))
                self._array[here] = values_V[before[here]]

    def result(self, dtype: Any) -> NDArray[Any]:
        """Return all rows, which are let go of."""
        array, self._array = self._array, None
        return np.zeros(0, dtype) if array is None else array[: self._num_rows]


def _mapped(num_rows: int, dtype: Any) -> NDArray[Any]:
    with tempfile.TemporaryFile() as file:  # the mapping outlives the handle; what is never written takes no room
        return np.asarray(np.memmap(file, dtype, "w+", shape=(num_rows,)))
