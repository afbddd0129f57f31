"""Batches of rows for Lightning. Knows rows and ranks, not models.

N = rows, B = batch, K = heads
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ovr.data.splits import Rows

Batch = tuple[Tensor, Tensor, Tensor]  # x (B, *shape), target (B, K) float32, mask (B, K) bool
EpochRows = Callable[[np.random.Generator], NDArray[np.int64]]  # the rows of one epoch (N,), in random order


class _Batches(Dataset[Batch]):
    """Serves whole batches: one fancy index a batch instead of one call a row."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows_B: NDArray[np.int64]) -> Batch:
        target_BK, mask_BK = self.rows.labels.dense(rows_B)
        return torch.from_numpy(self.rows.x[rows_B]), torch.from_numpy(target_BK).float(), torch.from_numpy(mask_BK)


class EpochSampler(Sampler[NDArray[np.int64]]):
    """Batches of row numbers for one rank, in an order that depends on (seed, epoch) alone, so that a resumed run goes on alike.

    A shuffled epoch has the rows that `epoch_rows` draws, as many as there are; without it, every row once.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
        epoch_rows: EpochRows | None = None,
    ) -> None:
        self.num_rows, self.batch_size, self.shuffle = num_rows, batch_size, shuffle
        self.epoch_rows: EpochRows = epoch_rows or (lambda rng: rng.permutation(num_rows))
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning when an epoch begins."""
        self.epoch = epoch

    def _rows(self) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.rank, self.num_rows, self.world_size)
        order = self.epoch_rows(np.random.default_rng([self.seed, self.epoch]))
        # Every rank takes as many steps: a rank without a batch would leave the others waiting for its gradient.
        return np.resize(order, -(-self.num_rows // self.world_size) * self.world_size)[self.rank :: self.world_size]

    def __len__(self) -> int:
        return -(-len(self._rows()) // self.batch_size)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        rows = self._rows()
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]


def loader(
    rows: Rows,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    epoch_rows: EpochRows | None = None,
) -> DataLoader[Batch]:
    """Return a loader of (x (B, *shape), target (B, K) float32, mask (B, K) bool)."""
    sampler = EpochSampler(
        len(rows),
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
        epoch_rows=epoch_rows,
    )
    # As `sampler` and not as `batch_sampler`: Lightning tells the epoch to the former only.
    return DataLoader(_Batches(rows), sampler=sampler, batch_size=None, pin_memory=pin_memory)
