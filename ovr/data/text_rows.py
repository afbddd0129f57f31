"""Rows of texts while they are read and divided: some forty bytes a row beside the text, no Python object. Knows no format.

N = rows, B = some of them
"""

from array import array
from collections.abc import Hashable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ovr.data.label_cells import Ids

I64 = NDArray[np.int64]


class Joined(Sequence[str]):
    """Texts that are kept one after the other as UTF-8, and made when they are asked for."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = array("q", [0])
        self._taken: I64 | None = None  # rows of the buffer; None: all of them

    def append(self, text: str) -> None:
        """Add a text."""
        self._buffer += text.encode("utf-8", "surrogatepass")
        self._start.append(len(self._buffer))

    def take(self, row_B: I64) -> "Joined":
        """Return the given rows, of the same buffer."""
        some = Joined()
        some._buffer, some._start = self._buffer, self._start
        some._taken = row_B if self._taken is None else self._taken[row_B]
        return some

    def __len__(self) -> int:
        return len(self._start) - 1 if self._taken is None else len(self._taken)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[n] for n in range(*row.indices(len(self)))]
        at = range(len(self))[row] if self._taken is None else int(self._taken[row])
        return self._buffer[self._start[at] : self._start[at + 1]].decode("utf-8", "surrogatepass")


class Repeated(Sequence[Any]):
    """Values of which each different one is kept once."""

    def __init__(self) -> None:
        self._values: list[Any] = []
        self._code_of: dict[Hashable, int] = {}
        self._code = array("i")
        self._taken: I64 | None = None

    def append(self, value: Any) -> None:
        """Add a value."""
        key = type(value), value  # 1, 1.0 and True are equal to a dict
        try:
            code = self._code_of.setdefault(key, len(self._values))
        except TypeError:  # a list or an object of JSON
            code = len(self._values)
        if code == len(self._values):
            self._values.append(value)
        self._code.append(code)

    def take(self, row_B: I64) -> "Repeated":
        """Return the given rows, of the same values."""
        some = Repeated()
        some._values, some._code = self._values, self._code
        some._taken = row_B if self._taken is None else self._taken[row_B]
        return some

    def __len__(self) -> int:
        return len(self._code) if self._taken is None else len(self._taken)

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...
    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return [self[n] for n in range(*row.indices(len(self)))]
        return self._values[self._code[range(len(self))[row] if self._taken is None else int(self._taken[row])]]


class TextRows:
    """Rows of one or more files: texts, class ids, the cells that they are split by, those of cohorts, and where each row is."""

    def __init__(self, *, num_cohorts: int) -> None:
        self.texts = Joined()
        self.ids: Sequence[Ids] = Repeated()
        self.cells = Repeated()
        self.cohorts = [Repeated() for _ in range(num_cohorts)]
        self._place = Repeated()
        self._number: I64 | array[int] = array("q")
        self.row_N: I64 | None = None  # of the files together, counted from 0; None: all of them

    def add(self, where: str, text: str, ids: Ids, cell: Any, cohorts: Sequence[Any]) -> None:
        """Add a row; `where` ends in its line or number."""
        place, _, number = where.rpartition(" ")
        self._place.append(place)
        self._number.append(int(number))  # type: ignore[union-attr]
        self.texts.append(text)
        self.ids.append(ids)  # type: ignore[attr-defined]
        self.cells.append(cell)
        for column, value in zip(self.cohorts, cohorts, strict=True):
            column.append(value)

    def where(self, row: int) -> str:
        """Return how messages call a row."""
        return f"{self._place[row]} {self._number[row]}"

    def take(self, row_B: I64) -> "TextRows":
        """Return the given rows."""
        some = TextRows(num_cohorts=0)
        some.texts, some.ids, some.cells = self.texts.take(row_B), self.ids.take(row_B), self.cells.take(row_B)  # type: ignore[attr-defined]
        some.cohorts = [column.take(row_B) for column in self.cohorts]
        some._place, some._number = self._place.take(row_B), np.asarray(self._number)[row_B]
        some.row_N = row_B if self.row_N is None else self.row_N[row_B]
        return some

    def numbers(self) -> I64:
        """Return the number of each row in the files together, from 0."""
        return np.arange(len(self)) if self.row_N is None else self.row_N

    def __len__(self) -> int:
        return len(self.texts)
