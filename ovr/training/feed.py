"""What a fit is fed with: its rows in an order, and each step's own seed, that depend on seed and epoch. Knows no model."""

from typing import Any, Protocol

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray

from ovr.data.splits import Splits
from ovr.training.loader import dense_batch, input_batch, loader, sparse_batch


class RowSampler(Protocol):
    """Draws the training rows of an epoch (N,), and knows how far that moves each head's log odds."""

    log_odds_shift_K: NDArray[np.float64]

    def epoch_rows(self, rng: np.random.Generator) -> NDArray[np.int64]: ...


class Feed:
    """The rows of a fit, shared among its ranks."""

    def __init__(self, splits: Splits, sampler: RowSampler, *, batch_size: int, seed: int | None) -> None:
        """Take the rows and who draws them; `batch_size` is that of one process, `seed` None is unseeded."""
        self.splits, self.sampler, self.batch_size, self.seed = splits, sampler, batch_size, seed
        self.log_odds_shift_K = torch.from_numpy(sampler.log_odds_shift_K).float()

    def step_seed(self, trainer: Trainer, batch_idx: int) -> int | None:
        """Return a seed for (seed, epoch, batch, rank), so that a resumed run draws what an uninterrupted one would."""
        if self.seed is None:
            return None
        entropy = np.random.SeedSequence([self.seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        return int(entropy.generate_state(1)[0])

    def train_batches(self, trainer: Trainer, columns: slice | None = None) -> Any:
        """Return the training batches of one rank, shuffled by (seed, epoch); with `columns`, each a `SparseBatch` of these."""
        seed = self.seed
        if seed is None:  # drawn once and shared: ranks that shuffle apart would see some rows twice and others never
            seed = trainer.strategy.broadcast(int(torch.randint(2**31, ())))
        rank = trainer.global_rank
        if columns is None:
            return self._loader(trainer, "train", rank=rank, shuffle=True, seed=seed, make=dense_batch)
        own = columns
        return self._loader(
            trainer,
            "train",
            rank=None,
            shuffle=True,
            seed=seed,
            make=lambda rows, row_WB: sparse_batch(rows, row_WB, rank=rank, columns=own),
        )

    def val_batches(self, trainer: Trainer, *, with_targets: bool) -> Any:
        """Return the validation batches of one rank, in order; without targets, as `InputBatch`."""
        make = dense_batch if with_targets else input_batch
        return self._loader(trainer, "val", rank=trainer.global_rank, shuffle=False, seed=0, make=make)

    def _loader(self, trainer: Trainer, split: str, **how: Any) -> Any:
        return loader(
            getattr(self.splits, split),
            batch_size=self.batch_size,
            world_size=trainer.world_size,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            epoch_rows=self.sampler.epoch_rows,
            **how,
        )
