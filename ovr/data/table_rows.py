"""A table's rows as the network takes them: encoded at once, or when they are asked for. Knows no labels.

N = rows, D = numbers of an encoded row
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.data.compact import Columns
from ovr.data.lazy import RowNumbers
from ovr.errors import DataError
from ovr.input.cells import Compact, cell_at
from ovr.input.columns import UNREADABLE, Finding
from ovr.input.table import TableEncoder

log = logging.getLogger(__name__)

BLOCK_ROWS = 1 << 14
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class TableRows:
    """Rows (N, D) that are encoded when they are asked for, of cells that are kept as they were read."""

    encoder: TableEncoder
    cells: Mapping[str, Compact]
    row_N: I64

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        return len(self.row_N), self.encoder.tensor.size

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """That of what is encoded."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.row_N)

    def __getitem__(self, rows: RowNumbers) -> NDArray[np.float32]:
        return self.read(rows)[0]

    def shown(self) -> "ShownCells":
        """Return what gives the cells of one of these rows, and keeps those of no others."""
        return ShownCells({name: cells[self.row_N] for name, cells in self.cells.items()})

    def read(self, rows: RowNumbers) -> tuple[NDArray[np.float32], list[Finding]]:
        """Return these rows, and what is to be said of them, which counts them from 0."""
        taken = self.row_N[rows]
        return self.encoder.encode_all({name: cells[taken] for name, cells in self.cells.items()})


@dataclass(frozen=True, slots=True)
class ShownCells:
    """Gives the cells of a row by column, as a person may read them."""

    cells: Mapping[str, Compact]

    def __call__(self, row: int) -> dict[str, Any]:
        return {name: cell_at(cells, row) for name, cells in self.cells.items()}


def encoded(rows: TableRows, table: Columns, split: str, *, lazy: bool) -> NDArray[np.float32] | TableRows:
    """Return the rows, encoded unless `lazy`, after a look at every cell.

    Raises:
        DataError: a cell that is not of its column's kind. What else a column's policy refuses is logged: these rows are there.
    """
    x_ND = np.empty((0 if lazy else len(rows), rows.encoder.tensor.size), np.float32)
    counts: dict[tuple[str, str], int] = {}
    for start in range(0, len(rows), BLOCK_ROWS):
        block, findings = rows.read(slice(start, start + BLOCK_ROWS))
        for found in findings:
            row = int(rows.row_N[start + int(found.row_P[0])])
            if found.reason == UNREADABLE:
                raise DataError(
                    f"{table.where(row)}, column {found.column!r} holds {found.value!r}; expected {found.expected} "
                    f"('data.source.columns={{{found.column}: category}}' reads the column as text)"
                )
            if found.refused:
                counts[found.column, found.reason] = counts.get((found.column, found.reason), 0) + len(found.row_P)
        if not lazy:
            x_ND[start : start + len(block)] = block
    for (column, reason), count in counts.items():
        log.warning("%s split: %d of %d rows would be refused: column %r, %s", split, count, len(rows), column, reason)
    return rows if lazy else x_ND
