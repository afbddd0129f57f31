"""Rows of many Parquet files as one lazy array: row groups are read when a row of theirs is asked for, and some are kept.

Knows rows and where they lie, not labels.

N = rows, B = rows asked for, G = row groups
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.data.lazy import I64, Locality, RowNumbers
from ovr.data.parquet import ParquetRows
from ovr.errors import DataError

MAX_OPEN_FILES = 16


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Where rows lie: group g is the row group `group_G[g]` of `files[file_G[g]]`, and begins with row `start_G1[g]`."""

    files: tuple[Path, ...]
    columns: tuple[str, ...]  # that are read
    in_list: bool
    width: int
    file_G: I64
    group_G: I64
    start_G1: I64

    @classmethod
    def of(cls, files: Sequence[Path], columns: Sequence[str], others: Sequence[str]) -> "RowGroups":
        """Return the row groups of all files, in order; each file is opened once and its rows are not read.

        Raises:
            DataError: a file that cannot be read, or has other columns than the first; no rows.
        """
        file_G: list[int] = []
        group_G: list[int] = []
        sizes: list[int] = []
        first: ParquetRows | None = None
        for number, path in enumerate(files):
            here = ParquetRows(path, tuple(columns), tuple(others))
            if here.num_rows == 0:
                continue
            if first is None:
                first = here
            if (here.names, here.in_list, here.width) != (first.names, first.in_list, first.width):
                raise DataError(
                    f"{path} has {_shown(here)}; {first.path} has {_shown(first)}: expected the same columns in every file"
                )
            file_G += [number] * len(here.group_sizes)
            group_G += range(len(here.group_sizes))
            sizes += here.group_sizes
            here.close()
        if first is None or not sum(sizes):
            raise DataError(f"{', '.join(map(str, files[:3]))} have no rows; expected at least one")
        start_G1 = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return cls(
            tuple(files), first.names, first.in_list, first.width, np.array(file_G, np.int64), np.array(group_G, np.int64), start_G1
        )

    def __len__(self) -> int:
        return int(self.start_G1[-1])

    def place(self, row: int) -> str:
        """Return the file and the row in it."""
        group = int(np.searchsorted(self.start_G1, row, side="right")) - 1
        first_of_file = int(np.searchsorted(self.file_G, self.file_G[group]))
        return f"{self.files[self.file_G[group]]}, row {row - self.start_G1[first_of_file]}"


class ParquetShards:
    """Rows (N, *shape) float32 of row groups. Of those read last, as many are kept as have `buffer_rows` rows together."""

    def __init__(self, groups: RowGroups, *, shape: tuple[int, ...], buffer_rows: int) -> None:
        """Take the row groups, the shape of a row and the rows that are kept, at least a group's.

        Raises:
            DataError: the values of a row do not make the shape.
        """
        if math.prod(shape) != groups.width:
            raise DataError(
                f"{groups.files[0]} has {groups.width} values a row; data.source.shape={list(shape)} takes {math.prod(shape)}"
            )
        self.groups, self._row_shape = groups, shape
        self.schema = InputSchema(shape, () if groups.in_list else groups.columns)
        largest = int(np.diff(groups.start_G1).max())
        self.locality = Locality(groups.start_G1, max(buffer_rows, largest))
        self.num_reads = 0  # of row groups
        self._kept: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._open: OrderedDict[int, ParquetRows] = OrderedDict()

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *shape)."""
        return (len(self), *self._row_shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """That of what is read."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, rows: RowNumbers) -> NDArray[np.float32]:
        """Return the rows (B, *shape), an array of the caller's own.

        Raises:
            DataError: a file that cannot be read or was changed, a value that is not finite.
        """
        number_B = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        group_B = np.searchsorted(self.groups.start_G1, number_B, side="right") - 1
        x = np.empty((len(number_B), self.groups.width), np.float32)
        wanted = np.unique(group_B).tolist()
        # What is kept comes first: reading the others may push it out.
        for group in sorted(wanted, key=lambda group: group not in self._kept):
            here = np.flatnonzero(group_B == group)
            x[here] = self._group(group)[number_B[here] - self.groups.start_G1[group]]
        return x.reshape(len(number_B), *self._row_shape)

    def place(self, row: int) -> str:
        """Return the file and the row in it."""
        return self.groups.place(row)

    def _group(self, group: int) -> NDArray[np.float32]:
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        start, stop = self.groups.start_G1[group : group + 2].tolist()
        held = sum(map(len, self._kept.values()))
        while self._kept and held + stop - start > self.locality.buffer_rows:
            held -= len(self._kept.popitem(last=False)[1])
        x = self._file(int(self.groups.file_G[group])).read_group(int(self.groups.group_G[group]), width=self.groups.width)
        self.num_reads += 1
        if len(x) != stop - start:
            raise DataError(f"{self.place(start)} begins a row group of {len(x)} rows; it had {stop - start}: the file was changed")
        finite = np.isfinite(x)
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            raise DataError(
                f"{self.place(start + row)}, {self.schema.column_name(column)} holds {x[row, column]}; every value must be finite "
                "(and within float32)"
            )
        self._kept[group] = x
        return x

    def _file(self, number: int) -> ParquetRows:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= MAX_OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        file = ParquetRows(self.groups.files[number], self.groups.columns)
        self._open[number] = file
        return file


def _shown(rows: ParquetRows) -> str:
    return f"{rows.width} values a row in {'a list' if rows.in_list else 'columns'} {', '.join(rows.names[:5])}"
