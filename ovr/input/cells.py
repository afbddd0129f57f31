"""Cells of a column as arrays: numbers, times and texts, whatever they came as. Knows no column's schema.

N = rows, P = cells that cannot be read
"""

import math
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import InputError
from ovr.input.iso import iso_datetime

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
DECIMALS = (".", ",")  # what may stand before the fraction of a number in a text
MISSING = -1  # the code of a cell that holds nothing
MICROSECONDS = "datetime64[us]"
_DIGITS = re.compile(r"[-+\d.,eE]+")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(\.\d{3})+(,\d*)?")
_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Coded:
    """Cells kept as codes: row n holds `values[code_N[n]]`, or nothing where the code is `MISSING`."""

    code_N: NDArray[np.int32]
    values: Sequence[str]

    def __len__(self) -> int:
        return len(self.code_N)

    def __getitem__(self, rows: Any) -> "Coded":
        return Coded(self.code_N[rows], self.values)


@dataclass(frozen=True, slots=True)
class Hashed:
    """Cells of which only `text_hash` is kept, because there are too many different ones; -1 where a cell holds nothing."""

    hash_N: I64
    sample: tuple[str, ...] = ()  # some of the texts, for messages

    def __len__(self) -> int:
        return len(self.hash_N)

    def __getitem__(self, rows: Any) -> "Hashed":
        return Hashed(self.hash_N[rows], self.sample)


Compact = NDArray[Any] | Coded | Hashed  # what takes no Python object a cell
Cells = Compact | Sequence[Any]


def text_hash(text: str) -> int:
    """Return 32 bits of `text` that are the same on every machine."""
    return zlib.crc32(text.encode(errors="surrogatepass"))


def text_of(cell: Any) -> str | None:
    """Return the text that stands for `cell`, None for a missing one; 3.0 is "3", because NaN makes integers floats."""
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, float):
        return None if math.isnan(cell) else str(int(cell)) if cell.is_integer() else repr(cell)
    if isinstance(cell, date):  # datetime is one
        return None if cell != cell else cell.isoformat()  # NaT is not equal to itself
    return str(cell)


def read_numbers(cells: Cells, marks: Collection[str], decimal: str = ".") -> tuple[F64, I64]:
    """Return (values (N,), NaN where missing; rows (P,) that hold no finite number, also NaN).

    Texts are read as Python does, without its underscores; with the `decimal` "," as in 1.234,5, where a point stands between
    thousands alone. Truth values are no numbers.
    """
    if isinstance(cells, Coded):
        of_value_V, bad_V = read_numbers(cells.values, marks, decimal)
        value_N = np.append(of_value_V, np.nan)[cells.code_N]
        return value_N, np.flatnonzero(np.isin(cells.code_N, bad_V))
    if isinstance(cells, Hashed):
        return np.full(len(cells), np.nan), np.flatnonzero(cells.hash_N >= 0)
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf":
        value_N = cells.astype(np.float64)
        bad_P = np.flatnonzero(np.isinf(value_N))
        value_N[bad_P] = np.nan
        return value_N, bad_P
    listed = _listed(cells)
    if decimal == ",":
        listed = [_with_point(cell) if isinstance(cell, str) else cell for cell in listed]
    types = set(map(type, listed))
    plain_texts = types == {str} and not any("_" in cell for cell in listed) and not any(map(_is_finite, marks))
    if types <= {float, int, type(None)} or plain_texts:
        try:
            value_N = np.array(listed, dtype=np.float64)
        except (ValueError, OverflowError):
            pass
        else:
            if not types & {str} or not np.isnan(value_N).any():  # "nan" is a number only where it marks a missing one
                bad_P = np.flatnonzero(np.isinf(value_N))
                value_N[bad_P] = np.nan
                return value_N, bad_P
    return _read_each(listed, lambda cell: _number(cell, marks), marks)


def _is_finite(text: str) -> bool:
    """Return whether a mark such as "-999" is a number that a cell could be taken for."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _listed(cells: NDArray[Any] | Sequence[Any]) -> Sequence[Any]:
    if not isinstance(cells, np.ndarray):
        return cells
    listed: list[Any] = (cells.astype(MICROSECONDS) if cells.dtype.kind == "M" else cells).tolist()  # nanoseconds become integers
    return listed


def _with_point(text: str) -> str:
    """Return a text with a decimal comma as Python reads it; one with another point as what is no number."""
    bare = text.strip()
    if not _DIGITS.fullmatch(bare):
        return text
    bare = bare.replace(".", "" if _THOUSANDS.fullmatch(bare) else "_")
    return bare.replace(",", ".") if bare.count(",") < 2 else text


def _number(cell: Any, marks: Collection[str]) -> float:
    if isinstance(cell, str):
        if cell.strip() in marks:
            return math.nan
        if "_" in cell:
            raise ValueError(cell)
    elif isinstance(cell, bool | np.bool_ | date):
        raise ValueError(cell)
    elif isinstance(cell, float | np.floating) and math.isnan(cell):
        return math.nan
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(cell)
    return value


def read_times(cells: Cells, marks: Collection[str], formats: Sequence[str]) -> tuple[F64, I64]:
    """Return (seconds since 1970 (N,), NaN where missing; rows (P,) that hold no time, also NaN).

    Texts are of one of `formats` (of `strptime`), or ISO 8601 where there is none; a time of a zone is taken to UTC, one without
    as it is.
    """
    if isinstance(cells, Coded):
        of_value_V, bad_V = read_times(cells.values, marks, formats)
        second_N = np.append(of_value_V, np.nan)[cells.code_N]
        return second_N, np.flatnonzero(np.isin(cells.code_N, bad_V))
    if isinstance(cells, Hashed):
        return np.full(len(cells), np.nan), np.flatnonzero(cells.hash_N >= 0)
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "M":
        second_N = cells.astype(MICROSECONDS).astype(np.int64) / 1e6
        second_N[np.isnat(cells)] = np.nan
        return second_N, np.zeros(0, np.int64)
    listed = _listed(cells)
    seen: dict[Any, float] = {}

    def second(cell: Any) -> float:
        if (known := seen.get(cell)) is None:
            known = seen[cell] = _second(cell, marks, formats)
        return known

    return _read_each(listed, second, marks)


def _second(cell: Any, marks: Collection[str], formats: Sequence[str]) -> float:
    if isinstance(cell, str):
        text = cell.strip()
        if text in marks:
            return math.nan
        moment = _parsed(text, formats)
    elif isinstance(cell, datetime):
        if cell != cell:  # NaT
            return math.nan
        moment = cell
    elif isinstance(cell, date):
        moment = datetime(cell.year, cell.month, cell.day)
    elif isinstance(cell, float | np.floating) and math.isnan(cell):
        return math.nan
    else:
        raise ValueError(cell)
    if moment.tzinfo is not None:
        moment = moment.astimezone(timezone.utc).replace(tzinfo=None)
    return (moment - _EPOCH).total_seconds()


def _parsed(text: str, formats: Sequence[str]) -> datetime:
    if not formats:
        if text.isdigit():  # ISO's 20240131 is a number to everybody else
            raise ValueError(text)
        return iso_datetime(text)
    for format in formats:
        try:
            return datetime.strptime(text, format)
        except ValueError:
            continue
    raise ValueError(text)


def _read_each(cells: Iterable[Any], read: Callable[[Any], float], marks: Collection[str]) -> tuple[F64, I64]:
    values: list[float] = []
    bad: list[int] = []
    for row, cell in enumerate(cells):
        try:
            values.append(math.nan if cell is None else read(cell))
        except (ValueError, TypeError, OverflowError):
            values.append(math.nan)
            bad.append(row)
    return np.array(values, dtype=np.float64), np.array(bad, dtype=np.int64)


def read_texts(cells: Cells, marks: Collection[str]) -> tuple[Coded | Hashed, I64]:
    """Return (texts without the white space at their ends, coded; rows (P,) that hold no text, number or time, also missing).

    `marks` and None are missing.
    """
    if isinstance(cells, Hashed):
        return cells, np.zeros(0, np.int64)
    if isinstance(cells, Coded):
        of_values, _ = read_texts(cells.values, marks)
        assert isinstance(of_values, Coded)
        return Coded(np.append(of_values.code_N, np.int32(MISSING))[cells.code_N], of_values.values), np.zeros(0, np.int64)
    listed = _listed(cells)
    code: dict[str, int] = {}  # of a stripped text
    known: dict[Any, int] = {}  # of a cell, by type too: 1, 1.0 and True are equal to dict
    code_N = np.empty(len(listed), dtype=np.int32)
    bad: list[int] = []
    for row, cell in enumerate(listed):
        if isinstance(cell, list | dict | tuple):
            code_N[row] = MISSING
            bad.append(row)
            continue
        key = cell if type(cell) is str else (type(cell), cell)
        found = known.get(key)
        if found is None:
            text = text_of(cell)
            text = None if text is None else text.strip()
            found = known[key] = MISSING if text is None or text in marks else code.setdefault(text, len(code))
        code_N[row] = found
    return Coded(code_N, list(code)), np.array(bad, dtype=np.int64)


def check_columns_of_cells(columns: Mapping[str, Any]) -> None:
    """Raise InputError unless each column is a sequence of cells, which a text is not; a mapping of single cells is one row."""
    for name, cells in columns.items():
        if isinstance(cells, str | bytes) or not hasattr(cells, "__len__") or (isinstance(cells, np.ndarray) and cells.ndim == 0):
            shown = repr(cells) if len(repr(cells)) <= 40 else f"{repr(cells)[:37]}..."
            raise InputError(
                f"rows are a mapping whose column {name!r} is {shown}; expected a sequence of cells: for one row give [row], a list"
            )


def cell_at(cells: Cells, row: int) -> Any:
    """Return one cell, as a message shows it."""
    if isinstance(cells, Coded):
        return None if cells.code_N[row] == MISSING else cells.values[cells.code_N[row]]
    if isinstance(cells, Hashed):
        return f"a text of hash {cells.hash_N[row]}"
    cell = cells[row]
    return cell.item() if isinstance(cell, np.generic) else cell
