"""Rows of cells - numbers, categories, dates, some of them missing - as the numbers that the network takes.

Knows what was fitted (`ovr.input.table_fit`), not on which rows.

N = rows, B = rows of a block, D = numbers of a row, C = numeric columns, F = numeric columns with a flag, P = rows with a problem
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError, InputError
from ovr.input.cells import DECIMALS, Cells, Coded, Hashed, cell_at, check_columns_of_cells, read_numbers
from ovr.input.columns import (
    CLIP,
    COLUMNS,
    ERROR,
    IS_MISSING,
    OUT_OF_RANGE,
    UNREADABLE,
    CategoryColumn,
    Column,
    Finding,
    NumericColumn,
    finding,
)

BLOCK_VALUES = 1 << 20  # numbers that are made at a time: they stay in the cache; 1 << 22 took 1.4 times as long
_ARRAYS = (Coded, Hashed, np.ndarray)


@dataclass(frozen=True, slots=True)
class RowCheck:
    """How many rows the model takes, and what is to be said of the others' cells, and of those that are allowed but new to it."""

    num_rows: int
    findings: tuple[Finding, ...]

    @property
    def failed_P(self) -> NDArray[np.int64]:
        """The rows that `encode` refuses, ascending."""
        rows = [found.row_P for found in self.findings if found.refused]
        return np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int64)

    @property
    def num_passed(self) -> int:
        """How many rows `encode` takes."""
        return self.num_rows - len(self.failed_P)

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the number of rows for each (column, reason), refused or not."""
        return {(found.column, found.reason): len(found.row_P) for found in self.findings}


@dataclass(frozen=True)
class TableEncoder:
    """Columns by name, in any order; those in `ignored` may be there or not, any other is refused.

    `marks` are texts that stand for a missing cell, as None and NaN do. A number that is none is an error whatever the policies.
    """

    kind: ClassVar[str] = "table"
    columns: tuple[Column, ...]
    marks: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = ()
    decimal: str = "."  # of numbers in texts, as in `read_numbers`

    def __post_init__(self) -> None:
        if self.decimal not in DECIMALS:
            raise ArtifactError(f"the decimal of a table is {self.decimal!r}; expected '.' or ','")
        names = [column.name for column in self.columns]
        if not names or len(set(names)) < len(names):
            raise ArtifactError(f"a table needs columns of distinct names, got {names[:5]}")

    @cached_property
    def tensor(self) -> InputSchema:
        """What `encode` returns: (D,), the columns in order with those that are an index of an embedding last."""
        names = [label for column in self._ordered for label in column.labels]
        if len(set(names)) < len(names):  # such as a column "a=b" beside the category b of a
            names = [f"{position}: {name}" for position, name in enumerate(names)]
        return InputSchema((len(names),), tuple(names))

    def places(self) -> dict[str, slice]:
        """Return which of the D numbers of a row are of which column."""
        pairs = zip(self._ordered, self._starts, strict=True)
        return {column.name: slice(start, start + len(column.labels)) for column, start in pairs}

    def encode(self, rows: Any) -> NDArray[np.float32]:
        """Return the rows as (N, D).

        Args:
            rows: a sequence of mappings, a mapping of columns to as many cells each, or a pandas DataFrame; where all columns are
                numeric, also an array (N, C) of them in order.

        Raises:
            InputError: none of these, no rows, a column is missing or unknown, a cell that cannot be read or that its column's
                policy refuses, naming row (counted from 0), column, value and what was expected.
        """
        x_ND, findings = self.encode_all(rows)
        if refused := sorted((found for found in findings if found.refused), key=lambda found: int(found.row_P[0])):
            more = "".join(f"; {found}" for found in refused[1:3]) + (f"; and {len(refused) - 3} more" if len(refused) > 3 else "")
            raise InputError(f"{refused[0]}{more}")
        return x_ND

    def check(self, rows: Any) -> RowCheck:
        """Return which rows `encode` would take; nothing is raised for a cell.

        Raises:
            InputError: `rows` has none of the forms that `encode` takes, no rows, or a column is missing or unknown.
        """
        x_ND, findings = self.encode_all(rows)
        return RowCheck(len(x_ND), tuple(findings))

    def problems(self, rows: Any) -> dict[int, str]:
        """Return what is wrong with each row that `encode` refuses, by its number, ascending.

        Raises:
            InputError: as `check` does.
        """
        cells = self._cells(rows)
        found: dict[int, list[str]] = {}
        for each in self.encode_all(cells)[1]:
            if each.refused:
                for row in each.row_P.tolist():
                    value = cell_at(cells[each.column], row)
                    found.setdefault(row, []).append(f"column {each.column!r} holds {value!r}; expected {each.expected}")
        return {row: "; ".join(found[row]) for row in sorted(found)}

    def encode_all(self, rows: Any) -> tuple[NDArray[np.float32], list[Finding]]:
        """Return the rows as (N, D), with refused cells as if they were missing, and everything that is to be said of them."""
        cells = self._cells(rows)
        num_rows = len(cells[self.columns[0].name])
        x_ND = np.zeros((num_rows, self.tensor.size), np.float32)
        step = max(1, BLOCK_VALUES // (self.tensor.size + len(self.columns)))
        findings: dict[tuple[str, str], Finding] = {}
        for start in range(0, num_rows, step):
            block = {name: column[start : start + step] for name, column in cells.items()} if num_rows > step else cells
            for found in self._encode_block(block, x_ND[start : start + step]):
                key = found.column, found.reason
                first = findings.get(key, found)
                row_P = found.row_P + start
                row_P = row_P if first is found else np.concatenate([first.row_P, row_P])
                findings[key] = Finding(*key, found.refused, row_P, first.value, found.expected)
        return x_ND, list(findings.values())

    def _encode_block(self, cells: Mapping[str, Cells], x_BD: NDArray[np.float32]) -> list[Finding]:
        findings = self._encode_numbers(cells, x_BD) if self._numeric else []
        for column, start in zip(self._ordered, self._starts, strict=True):
            if not isinstance(column, NumericColumn):
                part = x_BD[:, start : start + len(column.labels)]
                findings += column.encode(cells[column.name], self.marks, part)
        return findings

    def _encode_numbers(self, cells: Mapping[str, Cells], x_BD: NDArray[np.float32]) -> list[Finding]:
        columns, findings = self._numeric, []
        value_CB = np.empty((len(columns), len(x_BD)))
        bad: dict[int, NDArray[np.int64]] = {}
        for c, column in enumerate(columns):
            value_CB[c], bad_P = read_numbers(cells[column.name], self.marks, self.decimal)
            if len(bad_P):
                bad[c] = bad_P
                findings += finding(column.name, UNREADABLE, ERROR, bad_P, cells[column.name], "a finite number")
        fill, low, high, shift, scale = self._numbers_C1
        missing_CB = np.isnan(value_CB)
        for c in np.flatnonzero(missing_CB.any(axis=1)).tolist():
            column = columns[c]
            if not column.flag or column.missing == ERROR:
                row_P = np.setdiff1d(np.flatnonzero(missing_CB[c]), bad.get(c, []))
                expected = "a number, as in every training row" if not column.flag else "a number"
                findings += finding(column.name, IS_MISSING, column.missing, row_P, cells[column.name], expected)
        # Of a column with NaN both comparisons are true, whatever else it holds.
        for c in np.flatnonzero(~((value_CB.min(axis=1) >= low[:, 0]) & (value_CB.max(axis=1) <= high[:, 0]))).tolist():
            column = columns[c]
            expected = f"{column.low:g} to {column.high:g}, as in the training rows"
            row_P = np.flatnonzero((value_CB[c] < column.low) | (value_CB[c] > column.high))
            findings += finding(column.name, OUT_OF_RANGE, column.out_of_range, row_P, cells[column.name], expected)
            if column.out_of_range == CLIP:
                value_CB[c] = np.clip(value_CB[c], column.low, column.high)
        np.copyto(value_CB, fill, where=missing_CB)
        for c, column in enumerate(columns):
            if column.curve is not None:
                value_CB[c] = np.interp(value_CB[c], *column.curve)
        limit = np.finfo(np.float32).max
        value_CB -= shift
        value_CB *= scale
        x_BD[:, self._value_at_C] = np.clip(value_CB, -limit, limit, out=value_CB).T
        x_BD[:, self._flag_at_F] = missing_CB[[column.flag for column in columns]].T
        return findings

    def _cells(self, rows: Any) -> dict[str, Cells]:
        """Return the cells of each column, after a look at their names and numbers."""
        if isinstance(rows, np.ndarray):
            rows = self._columns_of(rows)
        elif hasattr(rows, "columns") and hasattr(rows, "to_dict"):  # a pandas DataFrame
            rows = {str(name): _series(rows[name]) for name in rows.columns}
        wanted = [column.name for column in self.columns]
        if isinstance(rows, Mapping):
            self._check_names("the rows have", rows)
            check_columns_of_cells(rows)
            cells = {name: rows[name] if isinstance(rows[name], _ARRAYS) else list(rows[name]) for name in wanted}
            if len({len(column) for column in cells.values()}) > 1:
                sizes = ", ".join(f"{name!r} {len(column)}" for name, column in list(cells.items())[:5])
                raise InputError(f"the columns must have as many cells each, got {sizes}")
        elif isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
            known: set[frozenset[str]] = set()
            for number, row in enumerate(rows):
                if not isinstance(row, Mapping):
                    raise InputError(f"row {number} is {type(row).__name__}; expected an object with a value a column")
                if (names := frozenset(row)) not in known:
                    self._check_names(f"row {number} has", row)
                    known.add(names)
            cells = {name: [row[name] for row in rows] for name in wanted}
        else:
            raise InputError(
                f"rows must be objects with a value a column, a mapping of columns or a DataFrame, got {type(rows).__name__}"
            )
        if not len(cells[wanted[0]]):
            raise InputError("got no rows; expected at least one")
        return cells

    def knows(self, column: str) -> bool:
        """Return whether rows may have this column."""
        return column in self._known

    def _columns_of(self, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if len(self._numeric) < len(self.columns) or array.dtype.kind not in "iuf" or array.shape[1:] != (len(self.columns),):
            names = _shown([column.name for column in self.columns])
            expected = "a mapping of columns, objects with a value a column, or a DataFrame"
            if len(self._numeric) == len(self.columns):
                expected = f"(rows, {len(self.columns)}) numbers, or {expected}"
            raise InputError(f"rows are an array {array.shape} of {array.dtype}; expected {expected}: {names}")
        return {column.name: array[:, c] for c, column in enumerate(self.columns)}

    def _check_names(self, where: str, names: Mapping[str, Any]) -> None:
        missing = [column.name for column in self.columns if column.name not in names]
        unknown = [name for name in names if name not in self._known]
        if missing or unknown:
            hint = " (drop= leaves columns out)" if unknown else ""
            absent = " (null stands for a value that is not known)" if missing else ""
            raise InputError(
                f"{where} other columns than the model: missing {_shown(missing)}{absent}; unknown {_shown(unknown)}{hint}"
            )

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.ignored) | {column.name for column in self.columns}

    @cached_property
    def _ordered(self) -> list[Column]:
        return sorted(self.columns, key=lambda column: isinstance(column, CategoryColumn) and column.layout == "index")

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(len(column.labels) for column in self._ordered)][:-1]

    @cached_property
    def _numeric(self) -> list[NumericColumn]:
        return [column for column in self._ordered if isinstance(column, NumericColumn)]

    @cached_property
    def _value_at_C(self) -> NDArray[np.int64]:
        pairs = zip(self._ordered, self._starts, strict=True)
        return np.array([start for column, start in pairs if isinstance(column, NumericColumn)], np.int64)

    @cached_property
    def _flag_at_F(self) -> NDArray[np.int64]:
        pairs = zip(self._numeric, self._value_at_C, strict=True)
        return np.array([start + 1 for column, start in pairs if column.flag], np.int64)

    @cached_property
    def _numbers_C1(self) -> list[NDArray[np.float64]]:
        names = ("fill", "low", "high", "shift", "scale")
        return [np.array([[getattr(column, name)] for column in self._numeric]) for name in names]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with `kind`."""
        columns = [{"kind": column.kind, **_plain(asdict(column))} for column in self.columns]
        own = {} if self.decimal == "." else {"decimal": self.decimal}
        return {"kind": self.kind, "marks": list(self.marks), "ignored": list(self.ignored), "columns": columns, **own}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TableEncoder":
        """Return what `to_json` wrote.

        Raises:
            ArtifactError: it cannot be read.
        """
        try:
            columns = []
            for settings in value["columns"]:
                made = COLUMNS[settings["kind"]]
                given = {name: _tuples(entry) for name, entry in settings.items() if name != "kind"}
                if unknown := set(given) - {field.name for field in fields(made)}:
                    raise ArtifactError(f"column {given.get('name')!r} of the encoder has unknown settings {sorted(unknown)}")
                columns.append(made(**given))
            return cls(tuple(columns), tuple(value["marks"]), tuple(value["ignored"]), value.get("decimal", "."))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the table encoder cannot be read: {type(error).__name__} {error}") from None


def _series(series: Any) -> Any:
    if getattr(series.dtype, "kind", "O") in "iufM" and isinstance(series.dtype, np.dtype):
        return series.to_numpy()
    return series.astype(object).where(series.notna(), None).tolist()  # of pandas' own types, whose missing value is none of ours


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _shown(names: Sequence[str]) -> str:
    return (", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"
