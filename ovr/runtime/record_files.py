"""Texts and cells for prediction from a file: CSV, TSV, JSON lines, plain lines or Parquet. Knows the kind of rows, no model."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ovr.errors import InputError
from ovr.input.records import TEXTS, take_column

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "txt", ".parquet": "parquet"}
TEXT_COLUMN = "text"
MAX_CELL_CHARS = 1 << 30  # csv's own limit is 131,072


def read_records(
    path: Path, kind: str, *, format: str | None = None, header: bool = True, drop: Sequence[str] = ()
) -> list[str | dict[str, Any]]:
    """Return one record a row: a text where the model takes texts, else an object with a value a column.

    Where the model takes texts, a file of columns has them in the only column that `drop` leaves, or in the one named `text`.

    Args:
        kind: of the model's encoder.
        format: "csv", "tsv", "jsonl", "txt" or "parquet"; None takes it from the file's ending.
        header: of CSV and TSV, whose quotes are those of CSV: whether the first line holds names; without it there is one column.
        drop: columns that are left out, such as a label.

    Raises:
        InputError: the file is missing, empty, of an unknown ending or not of its format; a line has another number of cells
            (naming the line); no column could hold the texts.
    """
    known = FORMATS.get(path.suffix.lower()) if format is None else format
    if known is None or known not in FORMATS.values() or (known == "txt" and kind not in TEXTS):
        raise InputError(
            f"{path} is of no known format ({', '.join(sorted(set(FORMATS.values())))}), got {known or path.suffix!r}; say which "
            "with format="
        )
    read = {"csv": _delimited, "tsv": _delimited, "jsonl": _json_lines, "txt": _lines, "parquet": _parquet}[known]
    try:
        rows = list(read(path, delimiter="\t" if known == "tsv" else ",", header=header))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if not rows:
        raise InputError(f"{path} holds no rows; expected at least one")
    kept = [(where, _without(row, drop)) for where, row in rows]
    return [_text(row, where) for where, row in kept] if kind in TEXTS else [_object(row, where) for where, row in kept]


def read_column(path: Path, column: str, *, format: str | None = None, header: bool = True) -> list[Any] | None:
    """Return the cells of a column of a file of rows, None for a row without it; None where no row has such a column.

    Files that have no names of columns (npy, plain lines, JSON arrays, folders, CSV without a header) have none.

    Raises:
        InputError: what `read_records` says of a file that cannot be read.
    """
    kind = FORMATS.get(path.suffix.lower()) if format is None else format
    if kind not in ("csv", "tsv", "jsonl", "parquet") or path.is_dir() or (kind in ("csv", "tsv") and not header):
        return None
    read = {"csv": _delimited, "tsv": _delimited, "jsonl": _json_lines, "parquet": _parquet}[kind]
    try:
        rows = [row for _, row in read(path, delimiter="\t" if kind == "tsv" else ",", header=True)]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    return take_column(rows, column, keep=True)[0]


def _delimited(path: Path, *, delimiter: str, header: bool) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(MAX_CELL_CHARS)
    blank_line = 0
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = next(reader, []) if header else [TEXT_COLUMN]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise InputError(f"{path} has columns {twice} more than once")
            for cells in reader:
                if not cells:  # blank lines are taken at the end only: in between, one may stand for a lost row
                    blank_line = blank_line or reader.line_num
                    continue
                if blank_line or len(cells) != len(names):
                    line, got = (blank_line, 0) if blank_line else (reader.line_num, len(cells))
                    raise InputError(f"{path}, line {line} has {got} cells; expected {len(names)}")
                yield f"{path}, line {reader.line_num}", dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def _json_lines(path: Path, *, delimiter: str, header: bool) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                try:
                    yield f"{path}, line {line}", json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}, line {line} is not JSON: {error}") from None


def _lines(path: Path, *, delimiter: str, header: bool) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            yield f"{path}, line {line}", text.rstrip("\r\n")


def _parquet(path: Path, *, delimiter: str, header: bool) -> Iterator[tuple[str, Any]]:
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
                    yield f"{path}, row {number}", row
                    number += 1
    except pyarrow.lib.ArrowInvalid as error:
        raise InputError(f"{path} is not Parquet: {error}") from None


def _without(row: Any, drop: Sequence[str]) -> Any:
    return {name: value for name, value in row.items() if name not in drop} if isinstance(row, dict) else row


def _text(row: Any, where: str) -> str:
    if isinstance(row, dict):
        name = next(iter(row)) if len(row) == 1 else TEXT_COLUMN
        if name not in row:
            raise InputError(
                f"{where} has columns {', '.join(map(repr, list(row)[:5]))}; expected one with the text, or {TEXT_COLUMN!r} among "
                "them (drop= leaves columns out)"
            )
        row = row[name]
    if not isinstance(row, str):
        raise InputError(f"{where} holds {json.dumps(row)[:40]}; expected a text")
    return row


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where} holds {json.dumps(row)[:40]}; expected an object with a value a column")
    return row
