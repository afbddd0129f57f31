"""Rows for prediction from a file: CSV, TSV, JSON, JSON lines, plain lines, Parquet or XMC. Knows kinds of rows, no model."""

import csv
import json
import math
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ovr.core.packed import open_gzip_text
from ovr.errors import InputError
from ovr.input.records import TEXTS

FORMATS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "txt"}
FORMATS |= {".parquet": "parquet", ".pq": "parquet"}
TEXT_COLUMN = "text"
SPARSE = "sparse"  # the kind of model whose .txt files are of the Extreme Classification Repository
MAX_CELL_CHARS = 1 << 24  # as in training; csv's own limit, which is one for the whole process, is 131,072


@dataclass(frozen=True, slots=True)
class TextColumns:
    """The columns that make a text, and what stands between them; none: the only column, or the one named `text`."""

    names: tuple[str, ...] = ()
    joiner: str = "\n"

    @classmethod
    def of(cls, encoder: Mapping[str, Any] | None) -> "TextColumns":
        """Return those of an encoder's plain values."""
        columns = (encoder or {}).get("columns")
        kind = (encoder or {}).get("kind")
        return cls(tuple(columns), str((encoder or {})["joiner"])) if columns and kind in TEXTS else cls()


ANY_COLUMN = TextColumns()


def read_records(
    path: Path,
    kind: str,
    *,
    format: str | None = None,
    header: bool = True,
    delimiter: str | None = None,
    drop: Sequence[str] = (),
    text: TextColumns = ANY_COLUMN,
) -> list[str | dict[str, Any]]:
    """Return one record a row: a text where the model takes texts, else an object with a value a column.

    Where the model takes texts, a file of columns has them in the columns `text` names, joined; of a model with one text column, or
    none that is named, the only column that `drop` leaves will do as well. A plain text (a line, a JSON text) is a row as it is.

    Args:
        kind: of the model's encoder.
        format: "csv", "tsv", "json" (one list), "jsonl", "txt" or "parquet"; None takes it from the file's ending. All but
            Parquet may be packed, with .gz after the ending. Of a model of sparse rows "txt" is the format of the Extreme
            Classification Repository, whose labels are passed over.
        header: of CSV and TSV, whose quotes are those of CSV: whether the first line holds names; without it columns are called 0,
            1 and so on.
        delimiter: of CSV and TSV, one character or "tab"; None is that of the format.
        drop: columns that are left out, such as a label.

    Raises:
        InputError: the file is missing, empty, of an unknown ending or not of its format; a line has another number of cells
            (naming the line); no column could hold the texts, or one of them is missing; `drop` names a column that no row has.
    """
    return read_placed_records(path, kind, format=format, header=header, delimiter=delimiter, drop=drop, text=text)[0]


def read_placed_records(
    path: Path,
    kind: str,
    *,
    format: str | None = None,
    header: bool = True,
    delimiter: str | None = None,
    drop: Sequence[str] = (),
    text: TextColumns = ANY_COLUMN,
) -> tuple[list[str | dict[str, Any]], Callable[[int], str]]:
    """Return what `read_records` does, and the function that tells where a row is: the file, and the line or the row in it.

    Raises:
        InputError: as `read_records`.
    """
    known = format_of(path) if format is None else format
    if known is None or known not in FORMATS.values() or (known == "txt" and kind not in (*TEXTS, SPARSE)):
        raise InputError(
            f"{path} is of no known format ({', '.join(sorted(set(FORMATS.values())))}), got {known or path.suffix!r}; say which "
            "with format="
        )
    readers = {"csv": _delimited, "tsv": _delimited, "json": json_list, "jsonl": _json_lines, "parquet": _parquet}
    readers["txt"] = xmc_rows if kind == SPARSE else _lines
    cut = cell_delimiter(known, delimiter)
    unit = "row" if known in ("json", "parquet") else "line"
    numbers, rows = array("q"), []
    seen: dict[str, None] = {}
    try:
        for number, row in readers[known](path, delimiter=cut, header=header):
            where = f"{path}, {unit} {number}"
            if isinstance(row, dict):
                if drop:
                    seen |= dict.fromkeys(row)
                row = {name: value for name, value in row.items() if name not in drop}
            rows.append(text_row(row, where, text) if kind in TEXTS else object_row(row, where))
            numbers.append(number)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not rows:
        raise InputError(f"{path} holds no rows; expected at least one")
    check_dropped(path, drop, list(seen))
    return rows, lambda row: f"{path}, {unit} {numbers[row]}"


def format_of(path: Path) -> str | None:
    """Return the format that a file's ending stands for, None for another; .gz after it says that the file is packed."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    known = FORMATS.get(name.suffix.lower())
    return None if known == "parquet" and name is not path else known


def cell_delimiter(format: str | None, given: str | None) -> str:
    """Return what stands between the cells of a CSV or TSV: `given`, where "tab" is a tab, or else what the format has.

    Raises:
        InputError: `given` is no single character, or for a file of another format.
    """
    if given is None:
        return "\t" if format == "tsv" else ","
    if format not in ("csv", "tsv"):
        raise InputError(f"delimiter={given!r} is of CSV and TSV; the input is {format}")
    one = "\t" if given == "tab" else given
    if len(one) != 1 or one in '"\r\n':
        raise InputError(f"delimiter={given!r} cannot be used; expected one character, such as ';', or tab")
    return one


def check_dropped(path: Path, drop: Sequence[str], names: Sequence[str]) -> None:
    """Raise InputError if `drop` names what is no column."""
    if absent := [name for name in drop if name not in names]:
        shown = ", ".join(map(repr, names[:10])) + (f", ... ({len(names)})" if len(names) > 10 else "")
        raise InputError(
            f"drop has {', '.join(map(repr, absent))}, which {path} has not; its columns are {shown or 'without names'}"
        )


def opened(path: Path, *, newline: str | None = None) -> TextIO:
    """Return a text file, unpacked where its name ends in .gz."""
    if path.suffix.lower() == ".gz":
        return open_gzip_text(path, encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


def _delimited(path: Path, *, delimiter: str, header: bool) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARS))
    blank_line, names = 0, None
    with opened(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            if header:
                names = next(reader, [])
                if twice := sorted({name for name in names if names.count(name) > 1}):
                    raise InputError(f"{path} has columns {twice} more than once")
            begins = reader.line_num + 1
            for cells in reader:
                line, begins = begins, reader.line_num + 1
                if not cells:  # blank lines are taken at the end only: in between, one may stand for a lost row
                    blank_line = blank_line or line
                    continue
                names = list(map(str, range(len(cells)))) if names is None else names
                if blank_line or len(cells) != len(names):
                    line, got = (blank_line, 0) if blank_line else (line, len(cells))
                    raise InputError(f"{path}, line {line} has {got} cells; expected {len(names)}")
                yield line, dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def json_list(path: Path, *, delimiter: str, header: bool) -> Iterator[tuple[int, Any]]:
    with opened(path) as file:
        try:
            rows = json.load(file)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path} is not JSON: {error}; a file with one row a line is format=jsonl") from None
    if not isinstance(rows, list):
        raise InputError(f"{path} is {type(rows).__name__}; expected one JSON list of rows")
    yield from enumerate(rows)


def _json_lines(path: Path, *, delimiter: str, header: bool) -> Iterator[tuple[int, Any]]:
    with opened(path) as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                try:
                    yield line, json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}, line {line} is not JSON: {error}") from None


def _lines(path: Path, *, delimiter: str, header: bool) -> Iterator[tuple[int, Any]]:
    with opened(path) as file:
        for line, text in enumerate(file, start=1):
            yield line, text.rstrip("\r\n")


def xmc_rows(path: Path, *, delimiter: str, header: bool) -> Iterator[tuple[int, Any]]:
    """Yield what has the place of "label,label feature:value ..." as {feature: value}, as `data=xmc` reads it."""
    with opened(path) as file:
        sizes = next(file, "").split()
        if len(sizes) != 3 or not all(size.isdecimal() for size in sizes):
            raise InputError(f"{path}, line 1 is {' '.join(sizes)[:40]!r}; expected three whole numbers: rows features labels")
        num_rows = int(sizes[0])
        line = 1
        for line, text in enumerate(file, start=2):
            if line > num_rows + 1:
                if text.strip():
                    raise InputError(f"{path}, line {line} is a row more than the {num_rows} that line 1 tells of")
                continue
            labels, _, pairs = text.replace("\t", " ").partition(" ")
            row: dict[str, Any] = {}
            for pair in (text if ":" in labels else pairs).split():
                feature, _, value = pair.partition(":")
                try:
                    row[feature] = float(value) if feature not in row else math.nan
                except ValueError:
                    raise InputError(f"{path}, line {line} has {pair[:40]!r}; expected feature:value") from None
                if not math.isfinite(row[feature]):
                    raise InputError(f"{path}, line {line} has {pair[:40]!r}; expected each feature once, with a finite number")
            yield line, row
        if line <= num_rows:
            raise InputError(f"{path} has {line - 1} rows; line 1 tells of {num_rows}")


def _parquet(path: Path, *, delimiter: str, header: bool) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading Parquet needs pyarrow: pip install 'ovr[data]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except pyarrow.lib.ArrowInvalid as error:
        raise InputError(f"{path} is not Parquet: {error}") from None


def text_row(row: Any, where: str, columns: TextColumns) -> str:
    if isinstance(row, list):
        row = {str(column): cell for column, cell in enumerate(row)}
    if not isinstance(row, dict):
        return _checked(row, where)
    names: Sequence[str] = columns.names or (TEXT_COLUMN,)
    if len(row) == 1 and len(names) == 1:
        names = tuple(row)
    if absent := [name for name in names if name not in row]:
        has = ", ".join(map(repr, list(row)[:5]))
        if columns.names:
            raise InputError(
                f"{where} has no column {', '.join(map(repr, absent))}; the model's text is made of {', '.join(map(repr, names))}, "
                f"and the columns are {has or 'none'}"
            )
        raise InputError(
            f"{where} has columns {has}; expected one with the text, or {TEXT_COLUMN!r} among them (drop= leaves columns out)"
        )
    if len(names) == 1:
        return _checked(row[names[0]], where)
    return columns.joiner.join(_checked(row[name], f"{where}, column {name!r}") for name in names)


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where} holds {_shown(text)}; expected a text")
    return text


def object_row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where} holds {_shown(row)}; expected an object with a value a column")
    return row


def _shown(value: Any) -> str:
    return json.dumps(value, default=repr)[:40]  # Parquet has values that JSON has not
