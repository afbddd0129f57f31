"""Chunks of a file as rows that a model takes, and what is wrong with those that it does not. Knows the model's card alone.

B = rows of a chunk, D = values of a flat row
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.schema import InputSchema, check_rows
from ovr.errors import InputError
from ovr.input.cells import Coded
from ovr.input.records import TEXTS, take_column
from ovr.input.row_problems import row_problems
from ovr.runtime.batch.cells import plain_cells
from ovr.runtime.batch.chunks import Chunk, RowFile
from ovr.runtime.cohort_rows import RECORDS, cohort_names
from ovr.runtime.record_files import TextColumns, check_dropped, object_row, text_row
from ovr.runtime.rows import HEADER_HINT, cells_by_column, json_row, row_of_numbers


@dataclass(slots=True)
class ShapedRows:
    """Rows of a chunk as `EdgePredictor.encode` and `Client.predict` take them, without those in `problems`."""

    rows: Any
    kept_B: NDArray[np.int64]  # which rows of the chunk they are
    cohort: list[str | None] | str | None
    problems: dict[int, str] = field(default_factory=dict)  # by the row's number in the chunk
    is_checked: bool = False  # the rows are what `check_rows` gave for them

    def without(self, problems: dict[int, str]) -> "ShapedRows":
        """Return the rows without those that `problems` tells of, by their numbers among `rows`."""
        keep_B = np.setdiff1d(np.arange(len(self.kept_B)), list(problems))
        named = self.problems | {int(self.kept_B[row]): problem for row, problem in problems.items()}
        cohort = [self.cohort[row] for row in keep_B.tolist()] if isinstance(self.cohort, list) else self.cohort
        return ShapedRows(_taken(self.rows, keep_B), self.kept_B[keep_B], cohort, dict(sorted(named.items())))


@dataclass(frozen=True)
class Shaping:
    """How the chunks of one file become rows of one model.

    Args:
        drop: columns that are left out, such as a label.
        cohort: of all rows; None takes that of each row from the model's cohort column, where the file has it.
    """

    file: RowFile
    card: ModelCard
    header: bool = True
    drop: tuple[str, ...] = ()
    cohort: str | None = None

    def __post_init__(self) -> None:
        """Check what the head of the file tells.

        Raises:
            InputError: columns that are missing, unknown or dropped and not there; rows of another shape.
        """
        path, schema = self.file.path, self.card.input
        if self.file.shape is not None:
            check_dropped(path, self.drop, ())
            if schema.raw_kind is None and self.file.shape != schema.shape:
                expected = ", ".join(["rows", *map(str, schema.shape)])
                raise InputError(f"{path}: rows have shape {(self.file.num_rows, *self.file.shape)}; expected ({expected})")
        if self.file.names is not None:
            check_dropped(path, self.drop, self.file.names)
            if schema.raw_kind is None:
                _ = self._number_columns

    def where(self, chunk: Chunk, row: int) -> str:
        """Return how messages call a row of a chunk."""
        if chunk.lines is not None:
            return f"{self.file.path}, line {chunk.lines[row]}"
        return f"{self.file.path}, row {chunk.first + row}"

    def rows(self, chunk: Chunk) -> ShapedRows:
        """Return the rows of a chunk, without what can be seen not to be any.

        Raises:
            InputError: no row of the file can be taken, such as where a column is missing.
        """
        kind = self.card.input.raw_kind
        make = self._numbers_of if kind is None else self._texts_of if kind in TEXTS else self._objects_of
        cells: list[Any] | None = None
        problems: dict[int, str] = {}
        if chunk.is_json:
            chunk, problems = _parsed(chunk)
        if chunk.values is not None and self.drop:
            seen = dict.fromkeys(name for row in chunk.values if isinstance(row, dict) for name in row)
            if chunk.first == 0:
                check_dropped(self.file.path, self.drop, list(seen))
        if self.card.cohorts is not None and self.cohort is None:
            column = self.card.cohorts.column
            keep = kind == RECORDS or column in self.card.input.columns  # a table's encoder knows by itself if it takes the column
            if chunk.columns is not None and column in chunk.columns:
                cells = plain_cells(chunk.columns[column])
                columns = {name: c for name, c in chunk.columns.items() if keep or name != column}
                chunk = Chunk(chunk.first, chunk.num_rows, columns, lines=chunk.lines)
            elif chunk.values is not None:
                cells, values = take_column(list(chunk.values), column, keep=keep)
                chunk = Chunk(chunk.first, chunk.num_rows, values=values, lines=chunk.lines)
        names = None if cells is None else cohort_names(cells, chunk.num_rows)
        shaped = ShapedRows(None, np.arange(chunk.num_rows), self.cohort if names is None else names)
        if problems:
            shaped.rows = list(chunk.values or ())
            shaped = shaped.without(problems)
            chunk = Chunk(chunk.first, len(shaped.rows), values=shaped.rows, lines=chunk.lines)
        shaped.rows, more = make(chunk) if chunk.num_rows else ([], {})
        shaped.is_checked = kind is None and isinstance(shaped.rows, np.ndarray) and not more
        return shaped.without(more) if more else shaped

    @cached_property
    def _number_columns(self) -> list[str]:
        """Return the columns that hold the values of a flat row, in order; one, where it holds lists of them."""
        path, schema, names = self.file.path, self.card.input, list(self.file.names or ())
        cohort = self.card.cohorts.column if self.card.cohorts is not None and self.cohort is None else None
        left = set(self.drop) | ({cohort} if cohort not in schema.columns and cohort in names else set())
        kept = [name for name in names if name not in left]
        if len(kept) == 1 and schema.size > 1 and self.file.typed:
            return kept
        if not self.header:
            if len(kept) != schema.size:
                raise InputError(f"{path}, line 1 has {len(kept)} cells; expected {schema.size}")
            return kept
        return [names[at] for at in cells_by_column(path, names, schema, sorted(left, key=names.index))]

    def _numbers_of(self, chunk: Chunk) -> tuple[Any, dict[int, str]]:
        schema = self.card.input
        if chunk.array is not None:
            return _checked(chunk.array, schema)
        if chunk.values is not None:
            return _each(chunk.values, lambda row: check_rows(json_row(row, "it", schema, self.drop)[None], schema)[0])
        assert chunk.columns is not None
        columns = [chunk.columns[name] for name in self._number_columns]
        if len(columns) == 1 and schema.size > 1:
            return self._lists_of(columns[0])
        if not all(isinstance(column, np.ndarray) and column.dtype.kind in "fiu" for column in columns):
            if self.file.typed:
                names = self._number_columns
                columns = [_as_numbers(cells, name, self.file.path) for cells, name in zip(columns, names, strict=True)]
            else:
                try:
                    columns = [np.array(column, dtype=np.float64) for column in columns]
                except ValueError:
                    taken, bad = _each(zip(*columns, strict=True), self._row_of_cells)
                    if 0 in bad and chunk.first == 0 and not self.header:
                        bad[0] += HEADER_HINT
                    return taken, bad
        with np.errstate(over="ignore"):
            x = np.empty((chunk.num_rows, len(columns)), np.float32)
            for d, column in enumerate(columns):
                x[:, d] = column
        return _checked(x.reshape(chunk.num_rows, *schema.shape), schema)

    def _row_of_cells(self, cells: Sequence[str]) -> NDArray[np.float32]:
        schema = self.card.input
        x: NDArray[np.float32] = check_rows(row_of_numbers(cells, schema).reshape(1, *schema.shape), schema)[0]
        return x

    def _lists_of(self, cells: Any) -> tuple[Any, dict[int, str]]:
        schema = self.card.input
        if isinstance(cells, np.ndarray) and cells.ndim == 2 and cells.shape[1] == schema.size:
            return _checked(cells.reshape(len(cells), *schema.shape), schema)

        def row(value: Any) -> NDArray[np.float32]:
            if value is None or isinstance(value, str) or not hasattr(value, "__len__") or len(value) != schema.size:
                got = f"{len(value)} values" if hasattr(value, "__len__") else f"{value!r}"
                raise InputError(f"it holds {got}; expected a list of {schema.size} numbers")
            x: NDArray[np.float32] = check_rows(np.asarray(value, dtype=np.float64).reshape(1, *schema.shape), schema)[0]
            return x

        return _each(cells, row)

    def _texts_of(self, chunk: Chunk) -> tuple[list[str], dict[int, str]]:
        columns = TextColumns.of(self.card.input.encoder)
        values: Iterable[Any] = chunk.values or ()
        if chunk.columns is not None:
            kept = {name: plain_cells(cells) for name, cells in chunk.columns.items() if name not in self.drop}
            wanted = columns.names or ("text",)
            if len(kept) == 1 and len(wanted) == 1:
                wanted = tuple(kept)
            if not all(name in kept for name in wanted):
                text_row({name: cells[0] for name, cells in kept.items()}, self.where(chunk, 0), columns)  # raises
            if len(wanted) == 1:
                texts = kept[wanted[0]]
                if all(isinstance(text, str) for text in texts):
                    return texts, {}
            kept = {name: kept[name] for name in wanted}
            values = [dict(zip(kept, cells, strict=True)) for cells in zip(*kept.values(), strict=True)]
        elif self.drop:
            values = [_without(row, self.drop) for row in values]
        return _each(values, lambda row: text_row(row, "it", columns))

    def _objects_of(self, chunk: Chunk) -> tuple[Any, dict[int, str]]:
        if chunk.array is not None:
            return chunk.array, {}
        if chunk.columns is not None:
            columns = {name: cells for name, cells in chunk.columns.items() if name not in self.drop}
            if self.card.input.raw_kind == RECORDS:
                return columns, {}
            plain = [plain_cells(cells) for cells in columns.values()]
            return [dict(zip(columns, cells, strict=True)) for cells in zip(*plain, strict=True)], {}
        if self.card.input.raw_kind == "image":
            return list(chunk.values or ()), {}
        return _each(chunk.values or (), lambda row: _without(object_row(row, "it"), self.drop))


def _parsed(chunk: Chunk) -> tuple[Chunk, dict[int, str]]:
    values: list[Any] = []
    problems: dict[int, str] = {}
    for row, text in enumerate(chunk.values or ()):
        try:
            values.append(json.loads(text))
        except (ValueError, RecursionError) as error:
            values.append(None)
            problems[row] = f"it is not JSON: {error}"
    return Chunk(chunk.first, chunk.num_rows, values=values, lines=chunk.lines), problems


def _each(values: Iterable[Any], make: Callable[[Any], Any]) -> tuple[list[Any], dict[int, str]]:
    """Return what `make` makes of each value, None where it raises InputError, and the errors."""
    made: list[Any] = []
    problems: dict[int, str] = {}
    for row, value in enumerate(values):
        try:
            made.append(make(value))
        except InputError as error:
            made.append(None)
            problems[row] = str(error).removeprefix("row 0, ")
    return made, problems


def _checked(array: NDArray[Any], schema: InputSchema) -> tuple[NDArray[Any], dict[int, str]]:
    try:
        return check_rows(array, schema), {}
    except InputError:
        if array.dtype.kind not in "fiu":
            raise
        problems = row_problems(len(array), lambda some: check_rows(array[some], schema))
        return array, problems


def _as_numbers(cells: Any, name: str, path: Path) -> NDArray[Any]:
    """Return a column of Parquet as numbers, what is missing as NaN."""
    if isinstance(cells, Coded) or (isinstance(cells, np.ndarray) and (cells.ndim != 1 or cells.dtype.kind not in "fiu")):
        kind = "texts" if isinstance(cells, Coded) else f"{cells.ndim}-dimensional {cells.dtype}"
        raise InputError(f"{path}, column {name!r} holds {kind}; expected numbers (drop= leaves columns out)")
    if isinstance(cells, list) and any(isinstance(cell, bool) or not isinstance(cell, int | float | None) for cell in cells):
        raise InputError(f"{path}, column {name!r} holds what is no number; expected numbers (drop= leaves columns out)")
    return np.array(cells, dtype=np.float64)


def _without(row: Any, drop: Sequence[str]) -> Any:
    return {name: value for name, value in row.items() if name not in drop} if drop and isinstance(row, dict) else row


def _taken(rows: Any, keep_B: NDArray[np.int64]) -> Any:
    if isinstance(rows, dict):
        return {name: _taken(cells, keep_B) for name, cells in rows.items()}
    if isinstance(rows, np.ndarray | Coded):
        return rows[keep_B]
    return [rows[row] for row in keep_B.tolist()]
