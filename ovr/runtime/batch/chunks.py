"""A file of rows in chunks: what stands in it, cut into rows and not yet read as numbers. Knows formats, no model.

A chunk begins at the same row however far into the file reading begins, so that an interrupted run goes on with the chunks that an
uninterrupted one has.
"""

import csv
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import InputError
from ovr.runtime.batch.buffers import Buffers
from ovr.runtime.record_files import MAX_CELL_CHARS, SPARSE, cell_delimiter, json_list, opened, xmc_rows
from ovr.runtime.rows import read_npy

PARQUET_BUFFER_BYTES = 1 << 20  # of each column: pages are read when their rows are asked for, not a whole row group at once


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of a file, in one of three forms.

    `columns` are texts (CSV) or what `ovr.runtime.batch.cells` makes of Arrow's arrays (Parquet), by name. `values` are texts of
    JSON (`is_json`), other texts, objects or paths, one a row. `array` is (rows, ...) of numbers.
    """

    first: int  # number of its first row in the file, from 0
    num_rows: int
    columns: dict[str, Any] | None = None
    values: Sequence[Any] | None = None
    array: NDArray[Any] | None = None
    lines: Sequence[int] | None = None  # the line on which each row begins; None where rows have numbers only
    is_json: bool = False


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows. `read(start, size)` yields chunks of `size` rows, leaving out those that end by row `start`."""

    path: Path
    read: Callable[[int, int], Iterator[Chunk]]
    names: tuple[str, ...] | None = None  # of the columns, where the file as a whole has such
    typed: bool = False  # whether the cells of the columns are numbers, texts and so on, not all texts
    num_rows: int | None = None  # where that is told without going through the rows
    shape: tuple[int, ...] | None = None  # of a row, where the file is one array


def open_rows(path: Path, format: str, *, kind: str | None, header: bool, delimiter: str | None) -> RowFile:
    """Return a file as chunks; nothing but its head has been read.

    Args:
        format: "csv", "tsv", "json", "jsonl", "txt", "npy" or "parquet".
        kind: of the model's encoder; where it takes sparse rows, "txt" is the format of the Extreme Classification Repository.

    Raises:
        InputError: the file cannot be read, is not of its format, or has a column twice; so does reading on.
    """
    cut = cell_delimiter(format, delimiter)
    with readable(path):
        if format == "npy":
            return _array_file(path)
        if format == "parquet":
            return _parquet_file(path)
        if format in ("csv", "tsv"):
            return _delimited_file(path, cut, header)
        if format == "json":
            rows = list(json_list(path, delimiter=cut, header=header))
            return listed_file(path, [row for _, row in rows])
        if not path.is_file():
            path.open().close()  # says what is wrong
    if format == "jsonl":
        return RowFile(path, lambda start, size: _line_chunks(path, start, size, is_json=True))
    if kind == SPARSE:
        return RowFile(path, lambda start, size: _xmc_chunks(path, start, size))
    return RowFile(path, lambda start, size: _line_chunks(path, start, size, is_json=False))


def listed_file(path: Path, values: Sequence[Any]) -> RowFile:
    """Return rows that are in memory as chunks."""

    def read(start: int, size: int) -> Iterator[Chunk]:
        for first in range(start - start % size, len(values), size):
            part = values[first : first + size]
            yield Chunk(first, len(part), values=part)

    return RowFile(path, read, num_rows=len(values))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong in reading a file into an InputError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _array_file(path: Path) -> RowFile:
    mapped = read_npy(path)
    if mapped.ndim == 0:
        raise InputError(f"{path} holds a single value; expected an array (rows, ...)")
    in_order = mapped.flags.c_contiguous and isinstance(mapped, np.ndarray) and not mapped.dtype.hasobject
    row_bytes = mapped.dtype.itemsize * int(np.prod(mapped.shape[1:], dtype=np.int64))
    offset = path.stat().st_size - row_bytes * len(mapped)

    def read(start: int, size: int) -> Iterator[Chunk]:
        buffers = Buffers()
        # Pages of a mapped file count as resident memory until the system takes them back, so rows are copied from the file.
        with readable(path), path.open("rb") as file:
            for first in range(start - start % size, len(mapped), size):
                num_rows = min(size, len(mapped) - first)
                if in_order:
                    array = buffers.empty((num_rows, *mapped.shape[1:]), mapped.dtype)
                    file.seek(offset + first * row_bytes)
                    if row_bytes and file.readinto(array.reshape(-1).view(np.uint8).data) < array.nbytes:
                        raise InputError(f"{path} ends before row {len(mapped) - 1}; it was cut short")
                else:
                    array = np.array(mapped[first : first + size])
                yield Chunk(first, num_rows, array=array)

    return RowFile(path, read, num_rows=len(mapped), shape=mapped.shape[1:])


def _parquet_file(path: Path) -> RowFile:
    from ovr.runtime.batch.cells import cells_of, open_parquet

    with open_parquet(path, PARQUET_BUFFER_BYTES) as file:
        names = tuple(file.schema_arrow.names)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} has columns {twice} more than once")

    def read(start: int, size: int) -> Iterator[Chunk]:
        first = 0
        with readable(path), open_parquet(path, PARQUET_BUFFER_BYTES) as file:
            for group, num_rows in enumerate(sizes):
                if first + num_rows <= start:
                    first += num_rows
                    continue
                for batch in file.iter_batches(size, row_groups=[group], use_threads=False):
                    if first + len(batch) > start:
                        columns = {name: cells_of(column) for name, column in zip(names, batch.columns, strict=True)}
                        yield Chunk(first, len(batch), columns=columns)
                    first += len(batch)

    return RowFile(path, read, names=names, typed=True, num_rows=sum(sizes))


def _delimited_file(path: Path, delimiter: str, header: bool) -> RowFile:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARS))
    with opened(path, newline="") as file:
        try:
            names = tuple(next(csv.reader(file, delimiter=delimiter, strict=True), ()))
        except csv.Error as error:
            raise InputError(f"{path}, line 1 is not CSV: {error}") from None
        if not names and file.readline():
            raise InputError(f"{path} begins with a blank line; expected {'a header and rows' if header else 'rows'}")
    if not header:
        names = tuple(map(str, range(len(names))))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} has columns {twice} more than once")

    def read(start: int, size: int) -> Iterator[Chunk]:
        with readable(path):
            rows = _cells(path, delimiter, header=header, width=len(names))
            first = start - start % size
            next(islice(rows, first, first), None)
            while part := list(islice(rows, size)):
                lines, cells = zip(*part, strict=True)
                columns = dict(zip(names, map(list, zip(*cells, strict=True)), strict=True))
                yield Chunk(first, len(part), columns=columns, lines=lines)
                first += len(part)

    return RowFile(path, read, names=names)


def _cells(path: Path, delimiter: str, *, header: bool, width: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of each row. Blank lines are taken at the end only: in between, one may stand for a lost row."""
    blank_line = 0
    with opened(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            if header:
                next(reader, None)
            begins = reader.line_num + 1
            for cells in reader:
                line, begins = begins, reader.line_num + 1
                if not cells:
                    blank_line = blank_line or line
                    continue
                if blank_line or len(cells) != width:
                    line, got = (blank_line, 0) if blank_line else (line, len(cells))
                    raise InputError(f"{path}, line {line} has {got} cells; expected {width}")
                yield line, cells
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def _line_chunks(path: Path, start: int, size: int, *, is_json: bool) -> Iterator[Chunk]:
    with readable(path), opened(path) as file:
        lines = ((number, text) for number, text in enumerate(file, start=1) if not is_json or text.strip())
        yield from _numbered(lines, start, size, is_json=is_json)


def _xmc_chunks(path: Path, start: int, size: int) -> Iterator[Chunk]:
    with readable(path):
        yield from _numbered(xmc_rows(path, delimiter=",", header=True), start, size, is_json=False)


def _numbered(rows: Iterator[tuple[int, Any]], start: int, size: int, *, is_json: bool) -> Iterator[Chunk]:
    first = start - start % size
    next(islice(rows, first, first), None)
    while part := list(islice(rows, size)):
        numbers, values = zip(*part, strict=True)
        if not is_json and isinstance(values[0], str):
            values = tuple(text.rstrip("\r\n") for text in values)
        yield Chunk(first, len(part), values=values, lines=numbers, is_json=is_json)
        first += len(part)
