"""Rows of JSON and JSON lines files, as records. Knows no column's meaning.

A row is an object with a value a column, or a list, whose columns are then called "0", "1", ...
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ovr.errors import DataError

Record = dict[str, Any]


def read_json_lines(path: Path, *, encoding: str = "utf-8") -> Iterator[tuple[str, Record]]:
    """Yield (file and line, record) of a file with one JSON value a line; blank lines are left out. The file is streamed.

    Raises:
        DataError: the file cannot be read or is not text of this encoding; a line that is no row.
    """
    line = 0
    try:
        with path.open(encoding=_encoding(encoding)) as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    where = f"{path}, line {line}"
                    try:
                        value = json.loads(text)
                    except (ValueError, RecursionError) as error:
                        raise DataError(f"{where} is not JSON: {error}") from None
                    yield where, _record(value, where)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, after line {line}, {_undecodable(error, encoding)}") from None


def read_json(path: Path, *, keys: Sequence[str] | None, encoding: str = "utf-8") -> Iterator[tuple[str, Record]]:
    """Yield (file and row, record) of a file that is one JSON list of rows, or, with `keys`, an object that has such lists.

    Rows are counted from 0 in each list. The file is read as a whole: for one that outgrows the memory there are JSON lines.

    Args:
        keys: the lists to read, one after the other.

    Raises:
        DataError: the file cannot be read, is not text of this encoding or not JSON (naming line and column), or is no such list or
            object; a row that is none.
    """
    try:
        value = json.loads(path.read_bytes().decode(_encoding(encoding)))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} {_undecodable(error, encoding)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}; a file with one row a line is format=jsonl") from None
    if keys is None:
        if isinstance(value, dict):
            raise DataError(f"{path} is an object with {_shown(value)}; name the lists of each split in data.source.keys")
        lists = {"": value}
    else:
        found = f"an object with {_shown(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"
        if not isinstance(value, dict) or not set(keys) <= value.keys():
            raise DataError(f"{path} is {found}; data.source.keys expects an object with {_shown(keys)}")
        lists = {f", {key!r}": value[key] for key in keys}
    for name, rows in lists.items():
        if not isinstance(rows, list):
            raise DataError(f"{path}{name} is {type(rows).__name__}; expected a list of rows")
        for number, row in enumerate(rows):
            where = f"{path}{name}, row {number}"
            yield where, _record(row, where)


def _record(value: Any, where: str) -> Record:
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return {str(column): cell for column, cell in enumerate(value)}
    raise DataError(f"{where} is {json.dumps(value)[:40]}; expected an object with a value a column, or a list")


def _encoding(encoding: str) -> str:
    return "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding


def _undecodable(error: UnicodeDecodeError, encoding: str) -> str:
    return f"is not {encoding} text (byte 0x{error.object[error.start]:02x}: {error.reason}); encoding=latin-1 takes any byte"


def _shown(keys: Any) -> str:
    names = list(keys)
    return ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
