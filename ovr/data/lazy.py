"""Rows that are read when they are asked for: what an array of rows must have to be one, and the kinds that wrap another array.

Knows rows, not labels. Whoever takes `Inputs` goes over them with `blocks` and never makes an array of all.

N = rows, B = rows asked for
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.data.moments import Moments
from ovr.errors import DataError

BLOCK_BYTES = 1 << 24  # of float32 rows that are read at a time where all of them are gone through

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
RowNumbers = slice | I64  # a slice without a step, or numbers (B,) from 0 to N - 1 in any order, any of them several times


@runtime_checkable
class LazyArray(Protocol):
    """Rows (N, *shape) of which some are read at a time. A NumPy array is one too.

    More attributes count where they are there: `locality`, the `Locality` that rows are read well in; `moments`, the `Moments` of
    all rows, if they are known without going through them; `place`, which says where a row is, for messages.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: RowNumbers, /) -> F32: ...


Inputs = NDArray[np.float32] | LazyArray


@dataclass(frozen=True, slots=True)
class Locality:
    """Rows that are read together: group g has the rows `start_G1[g]` to before `start_G1[g + 1]`."""

    start_G1: I64
    buffer_rows: int  # of the groups that are shuffled together, and held in memory

    def ordered(self, order_N: I64, rng: np.random.Generator) -> I64:
        """Return the row numbers of an epoch, such that the rows of few groups at a time come one after the other.

        The groups are shuffled and filled into buffers of at least one group and, beyond the first, at most `buffer_rows` rows;
        buffer follows buffer, and within each the rows keep the (random) order that they have in `order_N`.
        """
        size_G = np.diff(self.start_G1)
        shuffled_G = rng.permutation(len(size_G))
        buffer_G = np.empty(len(size_G), np.int64)
        buffer, held = 0, 0
        for group in shuffled_G:
            if held and held + size_G[group] > self.buffer_rows:
                buffer, held = buffer + 1, 0
            buffer_G[group] = buffer
            held += size_G[group]
        of_row_N = buffer_G[np.searchsorted(self.start_G1, order_N, side="right") - 1]
        return order_N[np.argsort(of_row_N, kind="stable")]


@dataclass(frozen=True, slots=True)
class ArrayRows:
    """Rows of an array of any float or integer type, as float32: of a memory-mapped file only what is asked for is read."""

    array: NDArray[Any]
    name: str = "array"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """That of what is read."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: RowNumbers) -> F32:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is refused as that
            return np.array(self.array[rows], dtype=np.float32, order="C")

    def place(self, row: int) -> str:
        """Return where a row is."""
        return f"{self.name}, row {row}"


@dataclass(frozen=True, slots=True)
class SomeRows:
    """The given rows (B,) of other rows, in ascending order."""

    rows: Inputs
    number_B: I64

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, *shape)."""
        return (len(self.number_B), *self.rows.shape[1:])

    @property
    def dtype(self) -> Any:
        """That of the other rows."""
        return self.rows.dtype

    @property
    def locality(self) -> Locality | None:
        """That of the other rows; a group has those of its rows that are given."""
        whole: Locality | None = getattr(self.rows, "locality", None)
        return whole and replace(whole, start_G1=np.searchsorted(self.number_B, whole.start_G1).astype(np.int64))

    def __len__(self) -> int:
        return len(self.number_B)

    def __getitem__(self, rows: RowNumbers) -> F32:
        return self.rows[self.number_B[rows]]

    def place(self, row: int) -> str:
        """Return where a row is among the other rows."""
        return place(self.rows, int(self.number_B[row]))


@dataclass(frozen=True)
class CheckedRows:
    """Other rows, of which every one that is read is checked, and what is known of them as a whole."""

    rows: LazyArray
    schema: InputSchema
    what: str  # how messages call the rows

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the other rows."""
        return self.rows.shape

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """That of what is read."""
        return np.dtype(np.float32)

    @property
    def locality(self) -> Locality | None:
        """That of the other rows, if any."""
        return getattr(self.rows, "locality", None)

    @cached_property
    def moments(self) -> Moments:
        """Those of the other rows; they are gone through once if they do not know."""
        known: Moments | None = getattr(self.rows, "moments", None)
        return Moments.of_blocks(self[block] for block in blocks(self)) if known is None else known

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: RowNumbers) -> F32:
        """Return the rows, an array of the caller's own.

        Raises:
            DataError: a value that is not finite, naming row and column; rows of another shape than was told.
        """
        x = np.require(self.rows[rows], dtype=np.float32, requirements=["C", "W"])
        number_B = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        if x.shape != (len(number_B), *self.schema.shape):
            raise DataError(
                f"{self.what}: {len(number_B)} rows were read with shape {x.shape}; expected {(len(number_B), *self.schema.shape)}"
            )
        finite = np.isfinite(x)
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite.reshape(len(x), -1))[0])
            where, value = place(self.rows, int(number_B[row])), x.reshape(len(x), -1)[row, column]
            raise DataError(
                f"{self.what}: {where}, {self.schema.column_name(column)} holds {value}; every value must be finite "
                "(and within float32)"
            )
        return x


def place(x: Any, row: int) -> str:
    """Return how messages say where a row is."""
    where = getattr(x, "place", None)
    return f"row {row}" if where is None else str(where(row))


def in_memory(x: Any) -> bool:
    """Return whether `x` is an array of which every row is there already, and not one that is mapped to a file."""
    base = x
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(x, np.ndarray) and not isinstance(base, np.memmap)


def blocks(x: Inputs, *, block_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Yield slices of at least one row, in order, such that each takes about `block_bytes` in float32."""
    row_bytes = 4 * int(np.prod(x.shape[1:], dtype=np.int64))
    step = max(1, block_bytes // max(1, row_bytes))
    for start in range(0, len(x), step):
        yield slice(start, min(start + step, len(x)))
