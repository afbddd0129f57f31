"""Where rows came from: the files, how they were split, and which row of the source each one is. Knows no formats.

B = rows of one split
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.files import canonical_json, sha256_bytes, sha256_file
from ovr.errors import DataError

if TYPE_CHECKING:
    from ovr.data.splitting import SplitRule

RowOf = Callable[[int], Any]  # number of a row in its split -> a text, a mapping of cells, or pixels (C, H, W)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that rows or labels were read from, or a folder of many. `name` is without its directory, which tells of a machine."""

    name: str
    sha256: str  # of the content; of a folder, of the list of its files' names and digests
    size_bytes: int
    num_files: int = 1


@dataclass(frozen=True, slots=True)
class Origin:
    """What a source tells of its rows; all of it may be left out."""

    files: tuple[SourceFile, ...] = ()
    rule: "SplitRule | None" = None
    row_numbers: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)  # split -> (B,), rows of the source from 0
    where: Mapping[str, Callable[[int], str]] = field(default_factory=dict)  # split -> what says where its row b is: file and line
    shown: Mapping[str, RowOf] = field(default_factory=dict)  # split -> what a person is shown of its rows: texts, cells, images

    def without(self, split: str) -> "Origin":
        """Return the origin without what is told by the row numbers of a split that has other rows now."""
        row_numbers = {name: row_B for name, row_B in self.row_numbers.items() if name != split}
        where = {name: place for name, place in self.where.items() if name != split}
        shown = {name: row_of for name, row_of in self.shown.items() if name != split}
        return Origin(self.files, self.rule, row_numbers, where, shown)

    def to_json(self) -> dict[str, Any]:
        """Return files and rule as plain values."""
        files = [
            {"name": file.name, "sha256": file.sha256, "size_bytes": file.size_bytes, "num_files": file.num_files}
            for file in self.files
        ]
        return {"files": files, "split": None if self.rule is None else self.rule.to_json()}


def places_in(file: Path, number_B: NDArray[np.int64], *, unit: str = "row", first: int = 0) -> Callable[[int], str]:
    """Return what says of each row of a split where it is: the file, and the number of its row or line, from `first` on."""
    return lambda row: f"{file}, {unit} {number_B[row] + first}"


def source_files(paths: Iterable[Path | str | None]) -> tuple[SourceFile, ...]:
    """Return the digests of the files, each once and in this order; None is passed over.

    Raises:
        DataError: a file cannot be read.
    """
    unique = dict.fromkeys(Path(path).expanduser() for path in paths if path is not None)
    try:
        return tuple(SourceFile(path.name, sha256_file(path), path.stat().st_size) for path in unique)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror or error}") from None


def source_folder(root: Path, files: Iterable[Path]) -> SourceFile:
    """Return one digest of many files, named as seen from `root`, whatever order they come in.

    Raises:
        DataError: a file cannot be read.
    """
    digests, size_bytes = {}, 0
    try:
        for file in sorted(set(files)):
            digests[os.path.relpath(file, root)] = sha256_file(file)
            size_bytes += file.stat().st_size
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror or error}") from None
    return SourceFile(root.name, sha256_bytes(canonical_json(digests)), size_bytes, len(digests))
