"""Rows of delimited text files (CSV, TSV and their kin), streamed. Knows cells, not what they mean.

Lines are counted from 1, as editors do, and a row that spans several lines has the number of its first.
"""

import codecs
import csv
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from ovr.core.packed import open_gzip_text
from ovr.errors import DataError
from ovr.input.cells import DECIMALS

QUOTINGS: dict[str, Literal[0, 3]] = {"standard": csv.QUOTE_MINIMAL, "none": csv.QUOTE_NONE}
SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
MAX_CELL_CHARS = 1 << 24  # where an unclosed quote stops reading, whatever the size of the file
_TABS = ("tab", "\\t")  # how a tab is written where the real one is lost, such as on a command line


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file is cut into cells; nothing of it is guessed.

    With quoting "standard" a cell in double quotes may hold delimiters, line breaks and doubled quotes; with "none" a quote is a
    character like any other and every line is a row.
    """

    delimiter: str = ","  # one character; "tab" is a tab
    quoting: str = "standard"  # standard | none
    header: bool = True  # whether the first row (after `skip_lines`) holds the names of the columns
    skip_lines: int = 0  # left out at the top of the file
    encoding: str = "utf-8"  # a byte order mark is dropped
    strip: bool = False  # take white space off both ends of every cell
    comment: str = ""  # rows that begin with this are left out
    decimal: str = "."  # . | , of numbers; with a comma, points may stand between thousands

    def __post_init__(self) -> None:
        if self.delimiter in _TABS:
            object.__setattr__(self, "delimiter", "\t")
        if not isinstance(self.delimiter, str) or len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise DataError(f"the delimiter is {self.delimiter!r}; expected one character, such as ',' or 'tab'")
        if self.quoting not in QUOTINGS:
            raise DataError(f"quoting is {self.quoting!r}; expected one of {', '.join(QUOTINGS)}")
        if self.decimal not in DECIMALS:
            raise DataError(f"decimal is {self.decimal!r}; expected '.' or ','")
        if not isinstance(self.header, bool):
            raise DataError(f"header is {self.header!r}; expected true or false")
        if isinstance(self.skip_lines, bool) or not isinstance(self.skip_lines, int) or self.skip_lines < 0:
            raise DataError(f"skip_lines is {self.skip_lines!r}; expected a whole number of at least 0")
        try:
            codecs.lookup(self.encoding)
        except (LookupError, TypeError):
            raise DataError(f"encoding is {self.encoding!r}; expected a name Python knows, such as utf-8 or latin-1") from None


def delimiter_of(path: Path, *, key: str = "data.source.dialect.delimiter") -> str:
    """Return the delimiter that the name of the file stands for (.csv, .tsv, .tab, each also with .gz).

    Args:
        key: of the setting that says it, for messages.

    Raises:
        DataError: another name, or no such file.
    """
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    if suffix.lower() not in SUFFIXES:
        if not path.exists():
            raise DataError(f"{path} cannot be read: there is no such file")
        if path.is_dir():
            raise DataError(f"{path} is a folder; expected a file (images in a folder a class are read by data=images)")
        raise DataError(f"{path} is none of *{', *'.join(SUFFIXES)}; say its delimiter, such as '{key}=\";\"' or {key}=tab")
    return SUFFIXES[suffix.lower()]


def read_header(path: Path, dialect: Dialect, *, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names of the columns: the header's; without a header `names`, or else "0", "1", ...

    Raises:
        DataError: no row to read them from, two columns of one name, `names` for a file with a header or in another number than the
            file's columns; and what `read_rows` refuses.
    """
    if dialect.header and names is not None:
        raise DataError(f"{path} has a header, and names are given too; to replace it set header=false and skip it")
    _, first = next(_cells(path, dialect), (0, None))
    if first is None:
        raise DataError(f"{path} is empty; expected {'a header and rows' if dialect.header else 'rows'}")
    columns = tuple(first if dialect.header else names if names is not None else map(str, range(len(first))))
    if len(columns) != len(first):
        raise DataError(f"{path} has {len(first)} columns, and {len(columns)} names are given: {_shown(columns)}")
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise DataError(f"{path} has columns {_shown(columns)}; expected distinct names, but {_shown(twice)} is there twice")
    return columns


def read_rows(path: Path, dialect: Dialect, *, names: Sequence[str] | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every row below the header; every row has as many cells as `read_header` has names.

    The file is streamed. Blank lines at its end are left out; anywhere else one may stand for a lost row and is refused.

    Raises:
        DataError: the file cannot be opened or unpacked, or is not text of this encoding; a row has another number of cells; a
            quote is not closed, or text follows its end; a cell of more than `MAX_CELL_CHARS`.
    """
    columns = read_header(path, dialect, names=names)
    counted = "the header" if dialect.header else "the first row" if names is None else "the list of names"
    for number, (line, cells) in enumerate(_cells(path, dialect), start=-1 if dialect.header else 0):
        if len(cells) != len(columns):
            raise DataError(f"{path}, line {line} (row {number}): {len(cells)} cells; {counted} has {len(columns)}")
        if number >= 0:
            yield line, cells


def _cells(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every row, the header among them."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARS))
    line = blank = 0
    try:
        with _opened(path, dialect) as file:
            lines = _Lines(file, dialect)
            reader = csv.reader(lines, delimiter=dialect.delimiter, quoting=QUOTINGS[dialect.quoting], strict=True)
            while True:
                lines.between_rows = True
                line = lines.num_read + 1
                cells = next(reader, None)
                if cells is None:
                    return
                line = lines.first  # after comments
                if not cells or (len(cells) == 1 and cells[0].isspace()):  # [""] is a quoted empty cell
                    blank = blank or line
                    continue
                if dialect.strip:
                    cells = [cell.strip() for cell in cells]
                if blank:
                    raise DataError(f"{path}, line {blank} is blank and rows follow it; expected blank lines at the end only")
                yield line, cells
    except UnicodeDecodeError as error:
        raise DataError(_undecodable(path, dialect, error)) from None
    except csv.Error as error:
        raise DataError(_badly_quoted(path, line, str(error))) from None
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


class _Lines:
    """The lines of a file below `skip_lines`, counted, without comments; a line inside quotes is no comment."""

    def __init__(self, file: TextIO, dialect: Dialect) -> None:
        self.between_rows = False
        self.first = 0  # line of the row that is being read
        self.num_read = 0
        self._file = file
        self._comment = dialect.comment
        for _ in range(dialect.skip_lines):
            self.num_read += bool(next(file, ""))

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        for line in self._file:
            self.num_read += 1
            if self.between_rows:
                if self._comment and line.startswith(self._comment):
                    continue
                self.first = self.num_read
                self.between_rows = False
            return line
        raise StopIteration


def _opened(path: Path, dialect: Dialect, *, errors: str = "strict") -> TextIO:
    utf_8 = codecs.lookup(dialect.encoding).name == "utf-8"
    encoding = "utf-8-sig" if utf_8 else dialect.encoding
    if path.suffix.lower() == ".gz":
        return open_gzip_text(path, encoding=encoding, errors=errors, newline="")
    return path.open(encoding=encoding, errors=errors, newline="")


def _undecodable(path: Path, dialect: Dialect, error: UnicodeDecodeError) -> str:
    where, cure = "", "encoding=latin-1 takes any byte, or convert the file"
    try:  # the decoder works block by block and does not know its line, so the file is read again
        with _opened(path, dialect, errors="surrogateescape") as file:
            for number, text in enumerate(file, start=1):
                if any("\udc80" <= character <= "\udcff" for character in text):
                    where = f", line {number}"
                    break
    except UnicodeError:
        pass
    if error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        cure = "the file begins as UTF-16 does: encoding=utf-16"
    byte = error.object[error.start]
    return f"{path}{where} is not {dialect.encoding} text (byte 0x{byte:02x}: {error.reason}); {cure}"


def _badly_quoted(path: Path, line: int, reason: str) -> str:
    if "unexpected end of data" in reason:
        reason = "a quote is opened and not closed up to the end of the file"
    elif "expected after" in reason:
        reason = "text follows the end of a quoted cell"
    elif "field larger" in reason:
        reason = f"a cell of more than {MAX_CELL_CHARS:,} characters, perhaps because a quote is not closed"
    return f"{path}, row that begins on line {line}: {reason}; where quotes are plain characters set quoting=none"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f", ... ({len(names)})" if len(names) > 5 else "")
