"""Parquet files with a column of lists of numbers, or many columns of numbers, and labels. Needs pyarrow (the extra `data`).

Knows one file at a time, of which it reads row groups; what the rows are for is not known here.

B = rows of a row group, D = values of a row
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.data.named_labels import LabelReader
from ovr.errors import DataError


@dataclass(frozen=True)
class ParquetRows:
    """A file of rows. `columns` names the list column, or several columns of numbers; none: all columns but the `others`."""

    path: Path
    columns: tuple[str, ...]
    others: tuple[str, ...] = ()

    @cached_property
    def file(self) -> Any:
        """The open file.

        Raises:
            DataError: pyarrow is not installed; the file is missing or no Parquet; it lacks a column.
        """
        try:
            import pyarrow.parquet
        except ImportError:
            raise DataError("Parquet files are read with pyarrow; install it with: pip install 'ovr[data]'") from None
        try:
            file = pyarrow.parquet.ParquetFile(self.path)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self.path} cannot be read as Parquet: {error}") from None
        for name in self.columns:
            self._check_column(file, name)
        return file

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns that hold the rows."""
        names = self.columns or tuple(name for name in self.file.schema_arrow.names if name not in self.others)
        if not names:
            raise DataError(f"{self.path} has no columns but {', '.join(self.others)}; expected columns of numbers beside them")
        return names

    @cached_property
    def in_list(self) -> bool:
        """Whether the rows are lists in one column.

        Raises:
            DataError: the columns hold neither numbers nor lists of numbers.
        """
        import pyarrow.types as types

        kinds = [self.file.schema_arrow.field(name).type for name in self.names]
        if len(kinds) == 1 and (types.is_list(kinds[0]) or types.is_large_list(kinds[0]) or types.is_fixed_size_list(kinds[0])):
            if _is_number(kinds[0].value_type):
                return True
        elif all(map(_is_number, kinds)):
            return False
        wrong = next((n for n, kind in enumerate(kinds) if not _is_number(kind)), 0)
        raise DataError(
            f"{self.path}, column {self.names[wrong]!r} is of type {kinds[wrong]}; expected one column of lists of numbers, "
            "or columns of numbers (data.embedding names them)"
        )

    @cached_property
    def width(self) -> int:
        """The number of values of a row."""
        if not self.in_list:
            return len(self.names)
        kind = self.file.schema_arrow.field(self.names[0]).type
        if hasattr(kind, "list_size"):
            return int(kind.list_size)
        for group in range(self.file.num_row_groups):
            first = self.file.read_row_group(group, columns=[self.names[0]], use_threads=False).column(0).slice(0, 1)
            if len(first) and first[0].as_py() is not None:
                return len(first[0])
        raise DataError(f"{self.path}, column {self.names[0]!r} has no row to tell how long its lists are")

    @cached_property
    def group_sizes(self) -> list[int]:
        """The number of rows of each row group."""
        metadata = self.file.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def close(self) -> None:
        """Close the file; what was read stays."""
        self.file.close()

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return int(self.file.metadata.num_rows)

    def read_group(self, group: int, *, width: int) -> NDArray[np.float32]:
        """Return the rows (B, D) of a row group; `width` is the D that is expected.

        Raises:
            DataError: a row that is missing or has another length; a file that is damaged or was changed.
        """
        import pyarrow

        try:
            table = self.file.read_row_group(group, columns=list(self.names), use_threads=False)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self.path}, row group {group} cannot be read: {error}") from None
        first = sum(self.group_sizes[:group])
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is refused as that
            if not self.in_list:
                x = np.empty((len(table), width), np.float32)
                if width != len(self.names):
                    raise DataError(f"{self.path} has {len(self.names)} columns of numbers; expected {width}")
                for d, column in enumerate(table.columns):
                    x[:, d] = column.to_numpy()
                return x
            x, row = np.empty((len(table), width), np.float32), 0
            for chunk in table.column(0).chunks:
                x[row : row + len(chunk)] = self._lists(chunk, first + row, width)
                row += len(chunk)
            return x

    def values(self, column: str) -> list[Any]:
        """Return the values of a column, one a row; None where one is missing.

        Raises:
            DataError: there is no such column.
        """
        self._check_column(self.file, column)
        values: list[Any] = self.file.read(columns=[column], use_threads=False).column(0).to_pylist()
        return values

    def add_labels(self, reader: LabelReader, target: str) -> None:
        """Add the labels of all rows, which are in the column `target`, row group by row group: one a row, or a list.

        Raises:
            DataError: there is no such column, the labels are neither texts nor whole numbers, or one is missing.
        """
        self._check_column(self.file, target)
        for group in range(len(self.group_sizes)):
            for chunk in self.file.read_row_group(group, columns=[target], use_threads=False).column(0).chunks:
                lists = hasattr(chunk.type, "value_field")
                if lists and chunk.null_count:
                    row = reader.num_rows + int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])
                    raise DataError(
                        f"{reader.where}, row {row}: the list of labels is missing; expected a list, which may be empty"
                    )
                coded = (chunk.flatten() if lists else chunk).dictionary_encode()
                lengths = chunk.value_lengths().to_numpy() if lists else np.ones(len(chunk), np.int64)
                reader.add(coded.dictionary.to_pylist(), lengths, coded.indices.fill_null(-1).to_numpy())

    def _check_column(self, file: Any, name: str) -> None:
        names = file.schema_arrow.names
        if names.count(name) != 1:
            raise DataError(f"{self.path} has columns {names}; expected one named {name!r}")

    def _lists(self, chunk: Any, first: int, width: int) -> NDArray[Any]:
        null = chunk.is_null().to_numpy(zero_copy_only=False)
        lengths = np.where(null, 0, width) if hasattr(chunk.type, "list_size") else chunk.value_lengths().fill_null(0).to_numpy()
        wrong = np.flatnonzero(null | (lengths != width))
        if wrong.size:
            what = "is missing" if null[wrong[0]] else f"has {lengths[wrong[0]]} values"
            raise DataError(f"{self.path}, row {first + wrong[0]}, column {self.names[0]!r} {what}; expected {width} values")
        values: NDArray[Any] = chunk.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(chunk), width)


def read_parquet(path: Path, *, columns: Sequence[str], others: Sequence[str]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Return the rows (N, D) of a whole file, and the names of the D columns if it has as many.

    Raises:
        DataError: what `ParquetRows` refuses.
    """
    rows = ParquetRows(path, tuple(columns), tuple(others))
    x = np.empty((rows.num_rows, rows.width), np.float32)
    start = 0
    for group, size in enumerate(rows.group_sizes):
        x[start : start + size] = rows.read_group(group, width=rows.width)
        start += size
    return x, () if rows.in_list else rows.names


def _is_number(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_floating(kind) or types.is_integer(kind))
