"""Columns of CSV and TSV files as compact arrays: float64, times and codes of texts, never a Python object a cell.

Where they are larger than what memory is meant to hold they lie in temporary files, which are mapped, and gone with the arrays.
Knows cells, not which of them are labels or what they are good for.

N = rows, V = different texts of a column
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.data.delimited import Dialect, read_header, read_rows
from ovr.data.growing import Held, Mapped
from ovr.errors import DataError
from ovr.input.cells import MICROSECONDS, MISSING, Coded, Compact, Hashed, read_numbers, read_times, text_hash

NUMBER, TIME, TEXT = "number", "time", "text"
CHUNK_CELLS = 1 << 17  # that are in memory as Python strings at a time
NUM_SAMPLE = 200  # texts of a hashed column that are kept for messages
MAX_TEXTS = 1 << 17  # different texts of a column; of one that has more the hashes are kept
EXPECTED = {NUMBER: "a finite number", TIME: "a time"}
LIST_SEPARATOR = "\x1f"  # between the texts of a list in one Parquet cell; ASCII's own for the purpose


@dataclass(frozen=True, slots=True)
class Reading:
    """How cells are read: columns that are left out, how some of the others are kept, and marks of missing cells."""

    marks: Collection[str]
    drop: Collection[str] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)  # NUMBER, TIME or TEXT by name; others as all their cells look
    formats: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of times, by name
    date_formats: Sequence[str] = ()  # of other columns
    names: Sequence[str] | None = None  # of a file without a header
    exact: Collection[str] = ()  # columns of which all texts are kept, however many there are
    decimal: str = "."  # of numbers
    own_marks: Mapping[str, Collection[str]] = field(default_factory=dict)  # in place of `marks`, by name
    on_disk: bool = False  # whether the cells are kept in temporary files

    def formats_of(self, name: str) -> Sequence[str]:
        """Return the forms of times in a column."""
        return self.formats.get(name, self.date_formats)


@dataclass(frozen=True, slots=True)
class Columns:
    """A file's columns, without those that were left out; all have as many cells."""

    path: Path
    cells: dict[str, Compact]
    dropped: tuple[str, ...]
    line_N: NDArray[np.int64] | None  # of a text file

    def __len__(self) -> int:
        return len(next(iter(self.cells.values())))

    def where(self, row: int) -> str:
        """Return how messages call a row, which is counted from 0."""
        return f"{self.path}, row {row}" if self.line_N is None else f"{self.path}, line {self.line_N[row]} (row {row})"

    def kinds(self) -> dict[str, str]:
        """Return how each column was read, for other files to be read alike."""
        return {name: _kind(cells) for name, cells in self.cells.items()}


def read_delimited(path: Path, dialect: Dialect, reading: Reading) -> Columns:
    """Return the columns of a delimited file.

    A column whose kind is not given is read as numbers, else as times, while its cells allow it; the file is read once more for
    those that later turn out to be texts.

    Raises:
        DataError: the file cannot be read or has no rows; a column to leave out or with a kind is not there; a cell that is not of
            its column's given kind (naming line and column).
    """
    names = read_header(path, dialect, names=reading.names)
    kept = kept_names(path, names, reading)
    columns = {name: ColumnReader(name, reading, path) for name in kept}
    line_N = _read(path, dialect, reading, names, columns)
    if not len(line_N):
        raise DataError(f"{path} has {'a header but no rows' if dialect.header else 'no rows'}")
    again = {name: ColumnReader(name, reading, path, kind=TEXT) for name, column in columns.items() if column.failed}
    if again:
        _read(path, dialect, reading, names, again)
    return Columns(path, {name: (again.get(name) or columns[name]).result() for name in kept}, left_out(names, kept), line_N)


def kept_names(path: Path, names: Sequence[str], reading: Reading) -> list[str]:
    """Return the columns that are not left out.

    Raises:
        DataError: there is none, or the file lacks one that `reading` names.
    """
    wanted = [*reading.drop, *reading.kinds]
    if absent := [name for name in dict.fromkeys(wanted) if name not in names]:
        shown = ", ".join(map(repr, names[:10])) + (f", ... ({len(names)})" if len(names) > 10 else "")
        raise DataError(f"{path} has no column {', '.join(map(repr, absent[:5]))}; its columns are {shown}")
    dropped = set(reading.drop)
    kept = [name for name in names if name not in dropped]
    if not kept:
        raise DataError(f"{path} has no column that is not left out")
    return kept


def left_out(names: Sequence[str], kept: Sequence[str]) -> tuple[str, ...]:
    """Return the others."""
    known = set(kept)
    return tuple(name for name in names if name not in known)


def _read(
    path: Path, dialect: Dialect, reading: Reading, names: Sequence[str], columns: "Mapping[str, ColumnReader]"
) -> NDArray[np.int64]:
    """Add the file's cells to `columns`; return the line of each row (N,)."""
    wanted = [(position, columns[name]) for position, name in enumerate(names) if name in columns]
    lines = Mapped() if reading.on_disk else Held()
    rows: list[list[str]] = []
    line: list[int] = []
    chunk_rows = max(64, CHUNK_CELLS // len(names))

    def add() -> None:
        line_B = np.array(line, np.int64)
        by_column = list(zip(*rows, strict=True))
        for position, column in wanted:
            column.add_texts(by_column[position], line_B)
        lines.append(line_B)
        rows.clear()
        line.clear()

    for number, cells in read_rows(path, dialect, names=reading.names):
        rows.append(cells)
        line.append(number)
        if len(rows) == chunk_rows:
            add()
    if rows:
        add()
    return lines.result(np.int64)


class ColumnReader:
    """One column while its file is read, in chunks of one dtype."""

    def __init__(self, name: str, reading: Reading, path: Path, *, kind: str | None = None) -> None:
        self.name, self.path, self.marks = name, path, reading.own_marks.get(name, reading.marks)
        self._nothing: Callable[[], Held | Mapped] = Mapped if reading.on_disk else Held
        self.formats, self.decimal = reading.formats_of(name), reading.decimal
        self.declared = name in reading.kinds
        self.kind = kind or reading.kinds.get(name)
        self.failed = False  # whether it is of texts after all, so that it must be read once more
        self._cells = self._nothing()
        self._num_missing = 0  # rows before the first cell that shows the kind
        self._code: dict[str, int] = {}  # of a text without the white space at its ends
        self._known: dict[str | None, int] = {}  # of a cell
        self._exact = name in reading.exact
        self._hashed = False
        self._sample: tuple[str, ...] = ()

    def add_texts(self, cells: Sequence[str], line_B: NDArray[np.int64]) -> None:
        """Take the cells of some lines."""
        if self.failed:
            return
        if self.kind is None:
            self.kind = self._kind_of(cells)
            if self.kind is None:
                self._num_missing += len(cells)
                return
        if self.kind == TEXT:
            self._add_codes(self._codes(cells))
            return
        if self.kind == NUMBER:
            self.add_values(*read_numbers(cells, self.marks, self.decimal), cells, line_B)
        else:
            self.add_values(*read_times(cells, self.marks, self.formats), cells, line_B)

    def add_values(
        self, value_B: NDArray[np.float64], bad_P: NDArray[np.int64], cells: Sequence[Any], line_B: NDArray[np.int64] | None
    ) -> None:
        """Take numbers, or seconds since 1970; the rows `bad_P` are neither."""
        if len(bad_P):
            if not self.declared:
                self.failed = True
                self._cells = self._nothing()
                return
            row = int(bad_P[0])
            where = f"row {row}" if line_B is None else f"line {line_B[row]}"
            expected = EXPECTED[str(self.kind)]
            if self.kind == TIME:
                expected += f" of the form {' or '.join(self.formats)}" if self.formats else " of ISO 8601"
            raise DataError(f"{self.path}, {where}, column {self.name!r} holds {cells[row]!r}; expected {expected}")
        self._add(value_B if self.kind == NUMBER else _times(value_B))

    def _kind_of(self, cells: Sequence[str]) -> str | None:
        value_B, bad_P = read_numbers(cells, self.marks, self.decimal)
        if not len(bad_P):
            return None if np.isnan(value_B).all() else NUMBER
        return TEXT if len(read_times(cells, self.marks, self.formats)[1]) else TIME

    def _codes(self, cells: Sequence[str | None]) -> NDArray[np.int64]:
        """Return the codes of these texts, or their hashes where there are too many to number."""
        known = self._known
        if not self._hashed:
            try:
                return np.array([known[cell] for cell in cells], np.int64)
            except KeyError:
                pass
        code_B = np.empty(len(cells), np.int64)
        for row, cell in enumerate(cells):
            code = None if self._hashed else known.get(cell)
            if code is None:
                text = None if cell is None else cell.strip()
                if text is None or text in self.marks:
                    code = MISSING
                elif self._hashed:
                    code = text_hash(text)
                else:
                    code = self._code.setdefault(text, len(self._code))
                if not self._hashed:
                    known[cell] = code
            code_B[row] = code
        return code_B

    def _add_codes(self, code_B: NDArray[np.int64]) -> None:
        self._add(code_B if self._hashed else code_B.astype(np.int32))
        if not self._exact and len(self._known) > MAX_TEXTS:
            hash_V1 = np.array([*map(text_hash, self._code), MISSING], np.int64)
            self._cells.map(hash_V1)
            self._sample = tuple(islice(self._code, NUM_SAMPLE))
            self._code, self._known, self._hashed = {}, {}, True

    def _add(self, cell_B: NDArray[Any]) -> None:
        if self._num_missing:
            missing = MISSING if self.kind == TEXT else np.nan if self.kind == NUMBER else np.datetime64("NaT")
            self._cells.append(np.full(self._num_missing, missing, cell_B.dtype))
            self._num_missing = 0
        self._cells.append(cell_B)

    def add_values_of(self, texts: Sequence[str | None], index_B: NDArray[np.int64]) -> None:
        """Take cells as positions in a list of texts, -1 for missing."""
        code_V1 = np.append(self._codes(texts), MISSING)
        self._add_codes(code_V1[index_B])

    def result(self) -> Compact:
        """Return all cells; what was given is let go of."""
        if self.kind is None:
            return np.full(self._num_missing, np.nan)
        cell_N = self._cells.result({NUMBER: np.float64, TIME: MICROSECONDS, TEXT: np.int32}[self.kind])
        if self.kind != TEXT:
            return cell_N
        return Hashed(cell_N, self._sample) if self._hashed else Coded(cell_N, list(self._code))


def _times(second_B: NDArray[np.float64]) -> NDArray[Any]:
    missing_B = np.isnan(second_B)
    time_B = np.round(np.where(missing_B, 0, second_B) * 1e6).astype(np.int64).astype(MICROSECONDS)
    time_B[missing_B] = np.datetime64("NaT")
    return time_B


def _kind(cells: Compact) -> str:
    if isinstance(cells, Coded | Hashed):
        return TEXT
    return TIME if cells.dtype.kind == "M" else NUMBER
