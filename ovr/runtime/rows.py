"""Rows for prediction from a file: CSV, JSON lines or npy. Knows the input schema, not the model.

N = rows, D = values of a flat row
"""

import csv
import json
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema, check_rows
from ovr.errors import InputError
from ovr.input.row_problems import row_problems
from ovr.runtime.record_files import cell_delimiter, check_dropped, opened

FORMATS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy"}

HEADER_HINT = "; say header=true if it holds names"  # for the first line of a file that was said to have no header


def read_rows(
    path: Path,
    schema: InputSchema,
    *,
    format: str | None = None,
    header: bool = True,
    delimiter: str | None = None,
    drop: Sequence[str] = (),
) -> NDArray[np.float32]:
    """Return the rows (N, *schema.shape) float32 of a file, all of them checked.

    csv: a line a row, of all its D values in row-major order. With `header`, the first line names them: where the schema names
    its columns they may come in any order. jsonl: a JSON array of the row's shape on each line, or an object with a number for
    each of the schema's columns. npy: one array (N, *schema.shape).

    Args:
        format: "csv", "tsv", "jsonl" or "npy"; None takes it from the file's ending. A text may be packed, with .gz after that.
        header: of CSV: whether the first line holds names.
        delimiter: of CSV and TSV, one character or "tab"; None is that of the format.
        drop: names in the CSV header or JSON objects that are left out, such as a label.

    Raises:
        InputError: the file is missing, empty, of an unknown ending or not of its format; columns missing, unknown or twice; a
            value that is no finite number; another shape (naming line and column).
    """
    packed = path.suffix.lower() == ".gz"
    kind = FORMATS.get((path.with_suffix("") if packed else path).suffix.lower()) if format is None else format
    if kind not in FORMATS.values() or (packed and kind == "npy"):
        known = ", ".join(dict.fromkeys(FORMATS.values()))
        raise InputError(f"{path} is of no known format ({known}), got {kind or path.suffix!r}; say which with format=")
    cut = cell_delimiter(kind, delimiter)
    lines = array("q")
    try:
        if kind == "npy":
            check_dropped(path, drop, ())
            rows = read_npy(path)
        elif kind in ("csv", "tsv"):
            rows = _read_csv(path, schema, header=header, drop=drop, delimiter=cut, lines=lines)
        else:
            rows = _read_jsonl(path, schema, drop=drop, lines=lines)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        return check_rows(rows, schema)
    except InputError as error:
        bad = row_problems(len(rows), lambda some: check_rows(rows[some], schema)) if len(lines) else {}
        if bad:
            row, problem = next(iter(bad.items()))
            raise InputError(f"{path}, line {lines[row]}: {problem}; {len(bad)} of {len(rows)} rows are refused") from None
        raise InputError(f"{path}: {error}") from None


def read_npy(path: Path) -> NDArray[Any]:
    """Return the array of an .npy file, read when its rows are asked for.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not an npy array: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_csv(
    path: Path, schema: InputSchema, *, header: bool, drop: Sequence[str], delimiter: str, lines: "array[int]"
) -> NDArray[np.float64]:
    if not header:
        check_dropped(path, drop, ())
    parsed: list[NDArray[np.float64]] = []
    blank_line = 0
    with opened(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = next(reader, []) if header else []
            if header and not names:
                what = "is empty" if reader.line_num == 0 else "begins with a blank line"
                raise InputError(f"{path} {what}; expected a header and rows")
            cell_D = cells_by_column(path, names, schema, drop) if header else list(range(schema.size))
            width = len(names) if header else schema.size
            for cells in reader:
                if not cells:  # blank lines are taken at the end only: in between, one may stand for a lost row
                    blank_line = blank_line or reader.line_num
                    continue
                if blank_line or len(cells) != width:
                    line, got = (blank_line, 0) if blank_line else (reader.line_num, len(cells))
                    raise InputError(f"{path}, line {line} has {got} cells; expected {width}")
                parsed.append(row_of_numbers([cells[cell] for cell in cell_D], schema, path, reader.line_num))
                lines.append(reader.line_num)
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from None
    if not parsed:
        raise InputError(f"{path} holds no rows; expected at least one{' below the header' if header else ''}")
    return np.stack(parsed).reshape(len(parsed), *schema.shape)


def cells_by_column(path: Path, names: list[str], schema: InputSchema, drop: Sequence[str]) -> list[int]:
    """Return for each value of a flat row the cell of a line that holds it."""
    if names and all(_is_number(name) for name in names):
        raise InputError(f"{path} begins with a line of numbers where the header should be; say header=false if it has none")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} has columns {twice} more than once")
    check_dropped(path, drop, names)
    _check_names(f"{path} has", [name for name in names if name not in drop], schema)
    return [names.index(name) for name in schema.columns or [name for name in names if name not in drop]]


def _check_names(where: str, names: Sequence[str], schema: InputSchema) -> None:
    if not schema.columns:
        if len(names) != schema.size:
            raise InputError(f"{where} {len(names)} columns; expected {schema.size}")
        return
    missing = [name for name in schema.columns if name not in names]
    unknown = [name for name in names if name not in schema.columns]
    if missing or unknown:
        raise InputError(
            f"{where} other columns than the model: missing {_shown(missing)}; unknown {_shown(unknown)}"
            f"{' (drop= leaves columns out)' if unknown else ''}"
        )


def row_of_numbers(
    cells: Sequence[str], schema: InputSchema, path: Path | None = None, line: int | None = None
) -> NDArray[np.float64]:
    """Return the values of a flat row; errors name the cell, and where the row is if that is given."""
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        at = next(d for d, cell in enumerate(cells) if not _is_number(cell))
        where = "" if path is None else f"{path}, line {line}, "
        hint = HEADER_HINT if line == 1 else ""
        raise InputError(f"{where}{schema.column_name(at)} holds {cells[at]!r}; expected a number{hint}") from None


def _is_number(text: str) -> bool:
    try:
        np.array([text], dtype=np.float64)
    except ValueError:
        return False
    return True


def _read_jsonl(path: Path, schema: InputSchema, *, drop: Sequence[str], lines: "array[int]") -> NDArray[np.float64]:
    parsed: list[NDArray[np.float64]] = []
    seen: dict[str, None] = {}
    with opened(path) as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {line} is not JSON: {error}") from None
            if drop and isinstance(value, dict):
                seen |= dict.fromkeys(value)
            parsed.append(json_row(value, f"{path}, line {line}", schema, drop))
            lines.append(line)
    if not parsed:
        raise InputError(f"{path} holds no rows; expected a JSON array or object on each line")
    check_dropped(path, drop, list(seen))
    return np.stack(parsed)


def json_row(value: Any, where: str, schema: InputSchema, drop: Sequence[str]) -> NDArray[np.float64]:
    cells: list[Any]
    if isinstance(value, dict):
        if not schema.columns:
            raise InputError(f"{where} is an object, but the model's columns have no names; expected an array {schema.shape}")
        _check_names(f"{where} has", [name for name in value if name not in drop], schema)
        cells = [value[name] for name in schema.columns]
    else:
        shape = _shape(value)
        if shape != schema.shape:
            got = "an uneven shape" if shape is None else f"shape {shape}"
            raise InputError(f"{where} has {got}; expected an array of shape {schema.shape}")
        cells = np.array(value, dtype=object).ravel().tolist()
    for at, cell in enumerate(cells):
        if isinstance(cell, bool) or not isinstance(cell, int | float):
            raise InputError(f"{where}, {schema.column_name(at)} holds {json.dumps(cell)}; expected a number")
    try:
        return np.array(cells, dtype=np.float64).reshape(schema.shape)
    except OverflowError:
        raise InputError(f"{where} holds an integer that is too large for a floating-point number") from None


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of nested lists, or None where they are uneven."""
    if not isinstance(value, list):
        return ()
    shapes = {_shape(item) for item in value}
    inner = shapes.pop() if len(shapes) == 1 else None
    return None if inner is None else (len(value), *inner)


def _shown(names: Sequence[str]) -> str:
    return (", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"
