"""Batches of rows for Lightning. Knows rows and ranks, not models.

N = rows, B = batch, K = heads, W = ranks, C = columns of one rank, P = positives of the batch, U = unknown targets of the batch
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ovr.data.labels import Labels
from ovr.data.lazy import Locality
from ovr.data.splits import Rows
from ovr.head_step.targets import SparseTargets

EpochRows = Callable[[np.random.Generator], NDArray[np.int64]]  # the rows of one epoch (N,), in random order


class Batch(NamedTuple):
    """Inputs (B, *shape), target (B, K) float32, mask (B, K) bool or None for all True, and the rows' numbers in their split."""

    x: Tensor
    target_BK: Tensor
    mask_BK: Tensor | None
    row_B: Tensor


class SparseBatch(NamedTuple):
    """One rank's inputs (B, *shape), and of the rows of all ranks, one rank after the other, the targets in its columns and the
    numbers in their split."""

    x: Tensor
    targets: SparseTargets
    row_WB: Tensor


class InputBatch(NamedTuple):
    """Inputs (B, *shape) alone, with the rows' numbers."""

    x: Tensor
    row_B: Tensor


class _Batches(Dataset[Any]):
    """Serves whole batches: one fancy index a batch instead of one call a row."""

    def __init__(self, rows: Rows, make: Callable[[Rows, NDArray[np.int64]], Any]) -> None:
        self.rows, self.make = rows, make

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: NDArray[np.int64]) -> Any:
        return self.make(self.rows, numbers)


def dense_batch(rows: Rows, row_B: NDArray[np.int64]) -> Batch:
    """Return the batch of these rows; of labels that are all known it has no mask."""
    target_BK, known_BK = rows.labels.dense(row_B)
    mask_BK = torch.from_numpy(known_BK) if len(rows.labels.unknowns.column_P) else None
    return Batch(_inputs(rows, row_B), torch.from_numpy(target_BK).float(), mask_BK, torch.from_numpy(row_B))


def sparse_batch(rows: Rows, row_WB: NDArray[np.int64], *, rank: int, columns: slice) -> SparseBatch:
    """Return the batch of the rank that holds `columns`, from the row numbers (W, B) of all ranks."""
    numbers = row_WB.reshape(-1)
    return SparseBatch(_inputs(rows, row_WB[rank]), sparse_targets(rows.labels, numbers, columns), torch.from_numpy(numbers))


def input_batch(rows: Rows, row_B: NDArray[np.int64]) -> InputBatch:
    """Return the batch of these rows."""
    return InputBatch(_inputs(rows, row_B), torch.from_numpy(row_B))


def sparse_targets(labels: Labels, row_B: NDArray[np.int64], columns: slice) -> SparseTargets:
    """Return the targets of these rows in `columns`, counted from the first of them."""
    lists = []
    row_P, column_P, row_U, column_U = labels.sparse(row_B)
    for row, column in ((row_P, column_P), (row_U, column_U)):
        here = slice(*np.searchsorted(column, (columns.start, columns.stop)))
        lists += [torch.from_numpy(row[here]), torch.from_numpy(column[here] - columns.start)]
    return SparseTargets(*lists)


def _inputs(rows: Rows, row_B: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(rows.x[row_B])


class EpochSampler(Sampler[NDArray[np.int64]]):
    """Batches of row numbers for one rank, in an order that depends on (seed, epoch) alone, so that a resumed run goes on alike.

    A shuffled epoch has the rows that `epoch_rows` draws, as many as there are; without it, every row once. With `locality` they
    come in an order in which they are read well, and each rank has a part of that order, so that it reads only some of the groups.
    With `rank` None the epoch is shuffled, and a batch is that of every rank, (W, B).
    """

    def __init__(
        self,
        num_rows: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int | None,
        world_size: int,
        epoch_rows: EpochRows | None = None,
        locality: Locality | None = None,
    ) -> None:
        assert shuffle or rank is not None
        self.num_rows, self.batch_size, self.shuffle = num_rows, batch_size, shuffle
        self.epoch_rows: EpochRows = epoch_rows or (lambda rng: rng.permutation(num_rows))
        self.seed, self.rank, self.world_size, self.locality = seed, rank, world_size, locality
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning when an epoch begins."""
        self.epoch = epoch

    def _rows(self) -> NDArray[np.int64]:
        """Return the row numbers of this rank, or (W, rows) of all."""
        if not self.shuffle:
            return np.arange(self.rank or 0, self.num_rows, self.world_size)
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self.epoch_rows(rng)
        # Every rank takes as many steps: a rank without a batch would leave the others waiting for its gradient.
        num_own = -(-self.num_rows // self.world_size)
        if self.locality is None:
            of_ranks = np.resize(order, (num_own, self.world_size)).T
        else:
            of_ranks = np.resize(self.locality.ordered(order, rng), (self.world_size, num_own))
        return of_ranks if self.rank is None else of_ranks[self.rank]

    def __len__(self) -> int:
        num_rows = -(-self.num_rows // self.world_size) if self.shuffle else len(self._rows())
        return -(-num_rows // self.batch_size)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        rows = self._rows()
        for start in range(0, rows.shape[-1], self.batch_size):
            yield np.ascontiguousarray(rows[..., start : start + self.batch_size])


def loader(
    rows: Rows,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    rank: int | None = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    epoch_rows: EpochRows | None = None,
    make: Callable[[Rows, NDArray[np.int64]], Any] = dense_batch,
) -> DataLoader[Any]:
    """Return a loader of what `make` makes of the row numbers that an `EpochSampler` yields."""
    sampler = EpochSampler(
        len(rows),
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
        epoch_rows=epoch_rows,
        locality=getattr(rows.x, "locality", None) if shuffle else None,
    )
    # As `sampler` and not as `batch_sampler`: Lightning tells the epoch to the former only.
    return DataLoader(_Batches(rows, make), sampler=sampler, batch_size=None, pin_memory=pin_memory)
