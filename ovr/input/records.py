"""Rows as a user has them, as records: a text, an image file, or an object with a value a column; and as a server is sent them.

Knows the kinds of encoders by name, and nothing of what they do. B = batch
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ArtifactError, InputError
from ovr.input.cells import check_columns_of_cells
from ovr.input.image import file_contents

TEXTS = ("text", "tokens", "joined")  # kinds whose records are texts
IMAGE = "image"  # the kind whose records are the bytes of files; those of the others are objects


def wire_name(kind: str) -> str:
    """Return the name of the server's input, one a row: `text` and `row`, a JSON object, in UTF-8, or `image`, the file's bytes."""
    return "text" if kind in TEXTS else IMAGE if kind == IMAGE else "row"


def records_of(rows: Any, kind: str) -> list[Any]:
    """Return each row as a value that JSON can hold, or of images the bytes of the file.

    Args:
        rows: of texts, a sequence of str; of images, as `ImageEncoder` takes them. Of other kinds a sequence of mappings, a mapping
            of columns to as many cells each, or a pandas DataFrame; NumPy's numbers become Python's, NaN and NaT None, and times
            ISO 8601.

    Raises:
        InputError: none of these, no rows, or columns of different lengths.
    """
    if kind == IMAGE:
        return file_contents(rows)
    if kind in TEXTS:
        if isinstance(rows, str | bytes | Mapping) or (not isinstance(rows, Sequence | np.ndarray) and not hasattr(rows, "tolist")):
            raise InputError(f"rows must be a sequence of texts, got {type(rows).__name__}")
        records = list(rows)
        for number, record in enumerate(records):
            if not isinstance(record, str):
                raise InputError(f"row {number} is {type(record).__name__} {record!r}; expected a text")
    else:
        records = _objects(rows)
    if not records:
        raise InputError("got no rows; expected at least one")
    return records


def take_column(rows: Any, column: str, *, keep: bool) -> tuple[list[Any] | None, Any]:
    """Return the cells of a column of `rows` (None where they have no such column), and the rows without it unless `keep`.

    Args:
        rows: objects with a value a column, a mapping of columns or a DataFrame; anything else has no columns. In a row that lacks
            the column where others have it, its cell is None.
    """
    if isinstance(rows, Mapping) or (hasattr(rows, "columns") and hasattr(rows, "to_dict")):
        if column not in rows:
            return None, rows
        return list(rows[column]), rows if keep else {name: rows[name] for name in rows if name != column}
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        return None, rows
    if not any(isinstance(row, Mapping) and column in row for row in rows):
        return None, rows
    cells = [row.get(column) if isinstance(row, Mapping) else None for row in rows]
    kept = rows if keep else [{n: v for n, v in row.items() if n != column} if isinstance(row, Mapping) else row for row in rows]
    return cells, kept


def columns_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return `columns` and `joiner` of what the encoder of texts wrote, or nothing where it wrote none.

    Raises:
        ArtifactError: they are no distinct texts, and a text.
    """
    if "columns" not in value and "joiner" not in value:
        return {}
    columns, joiner = value.get("columns"), value.get("joiner")
    known = isinstance(columns, list) and columns and all(isinstance(name, str) for name in columns)
    if not known or len(set(columns or ())) < len(columns or ()) or not isinstance(joiner, str):
        raise ArtifactError(
            f"the encoder of texts has columns {columns!r} and joiner {joiner!r}; expected a list of distinct names, and a text"
        )
    return {"columns": tuple(columns or ()), "joiner": joiner}


def without_no_columns(plain: dict[str, Any]) -> dict[str, Any]:
    """Return plain values of an encoder of texts, without `columns` and `joiner` where there are no columns."""
    return plain if plain["columns"] else {name: value for name, value in plain.items() if name not in ("columns", "joiner")}


def to_bytes(records: Sequence[Any]) -> NDArray[np.object_]:
    """Return records as what a server is sent, (B, 1)."""
    array = np.empty((len(records), 1), dtype=np.object_)
    for number, record in enumerate(records):
        text = record if isinstance(record, str | bytes) else json.dumps(record, ensure_ascii=False)
        array[number, 0] = text.encode() if isinstance(text, str) else text
    return array


def from_bytes(array: NDArray[Any], kind: str) -> list[Any]:
    """Return the records that `to_bytes` was given.

    Raises:
        InputError: another shape than (B, 1), no UTF-8, or no JSON object, naming the row.
    """
    if array.ndim != 2 or array.shape[1] != 1 or array.shape[0] == 0:
        raise InputError(f"{wire_name(kind)} has shape {array.shape}; expected (rows, 1), at least one row")
    if kind == IMAGE:
        return [value if isinstance(value, bytes) else str(value).encode() for value in array[:, 0]]
    records: list[Any] = []
    for number, value in enumerate(array[:, 0]):
        try:
            text = value.decode() if isinstance(value, bytes) else str(value)
            record = text if kind in TEXTS else json.loads(text)
        except UnicodeDecodeError as error:
            raise InputError(f"row {number} is not UTF-8: {error.reason} at byte {error.start}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"row {number} is not JSON: {error}; expected an object with a value a column") from None
        if not isinstance(record, str if kind in TEXTS else dict):
            raise InputError(f"row {number} is {type(record).__name__}; expected a JSON object with a value a column")
        records.append(record)
    return records


def _objects(rows: Any) -> list[dict[str, Any]]:
    if hasattr(rows, "columns") and hasattr(rows, "to_dict"):  # a pandas DataFrame
        rows = {str(name): rows[name].tolist() for name in rows.columns}
    if isinstance(rows, Mapping):
        check_columns_of_cells(rows)
        columns = {str(name): list(cells) for name, cells in rows.items()}
        if len({len(cells) for cells in columns.values()}) > 1:
            sizes = ", ".join(f"{name!r} {len(cells)}" for name, cells in list(columns.items())[:5])
            raise InputError(f"the columns must have as many cells each, got {sizes}")
        return [dict(zip(columns, map(_plain, cells), strict=True)) for cells in zip(*columns.values(), strict=True)]
    if isinstance(rows, str | bytes) or not isinstance(rows, Sequence):
        raise InputError(
            f"rows must be objects with a value a column, a mapping of columns or a DataFrame, got {type(rows).__name__}"
        )
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"row {number} is {type(row).__name__}; expected an object with a value a column")
    return [{str(name): _plain(cell) for name, cell in row.items()} for row in rows]


def _plain(cell: Any) -> Any:
    if isinstance(cell, np.generic):
        cell = cell.item()
    if (isinstance(cell, float) and math.isnan(cell)) or type(cell).__name__ == "NAType":  # pandas.NA, which equals nothing
        return None
    if hasattr(cell, "isoformat"):
        return None if cell != cell else cell.isoformat()  # NaT is not equal to itself
    return cell
