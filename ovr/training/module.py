"""The Lightning module: what a step is. Knows the model and the loss, not where rows come from or what is done afterwards.

B = batch, K = heads
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import lightning
import numpy as np
import torch
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.classification import BinaryAveragePrecision, MultilabelAveragePrecision

from ovr.data.splits import Splits
from ovr.errors import ConfigError
from ovr.head.bank import clip_head_gradients
from ovr.model import OvrModel
from ovr.training.loader import Batch, loader
from ovr.training.plan import HeadPlan


class RowSampler(Protocol):
    """Draws the training rows of an epoch (N,), and knows how far that moves each head's log odds."""

    log_odds_shift_K: NDArray[np.float64]

    def epoch_rows(self, rng: np.random.Generator) -> NDArray[np.int64]: ...


class OvrModule(lightning.LightningModule):
    """Trains an `OvrModel` with a loss that returns (B, K). The reported loss is the mean over rows of the sum over known heads."""

    evaluable_K: Tensor
    log_odds_shift_K: Tensor

    def __init__(
        self,
        model: OvrModel,
        loss: nn.Module,
        *,
        splits: Splits,
        plan: HeadPlan,
        sampler: RowSampler,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], Any],
        batch_size: int,
        seed: int | None,
    ) -> None:
        """Take the parts; `model` follows `plan`, `batch_size` is that of one process, `seed` None is unseeded."""
        super().__init__()
        self.model = model
        self.loss = loss
        self.splits, self.sampler = splits, sampler
        self.plan = plan
        self.register_buffer("log_odds_shift_K", torch.from_numpy(sampler.log_odds_shift_K).float(), persistent=False)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.batch_size, self.seed = batch_size, seed
        # A class without a positive row in the val split has no average precision there, and no say in the best epoch.
        evaluable_K = torch.from_numpy(splits.val.labels.num_positives_K() > 0)
        self.register_buffer("evaluable_K", evaluable_K, persistent=False)
        num_evaluable = int(evaluable_K.sum())
        self.val_ap: BinaryAveragePrecision | MultilabelAveragePrecision = (
            BinaryAveragePrecision(ignore_index=-1)
            if num_evaluable == 1
            else MultilabelAveragePrecision(num_labels=num_evaluable, average="macro", ignore_index=-1)
        )

    def step(self, batch: Batch) -> Tensor:
        """Return the mean over rows of the sum over known heads of the loss, on rows that the sampler drew."""
        x, target_BK, mask_BK = batch
        # The drawn rows have other odds than the rows as they are, which the model's own logits are to tell.
        loss_BK = self.loss(self.model(x) + self.log_odds_shift_K, target_BK)
        return torch.where(mask_BK, loss_BK, 0.0).sum() / len(x)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by (seed, epoch, batch, rank), so that a resumed run draws what an uninterrupted one would."""
        if self.seed is not None:
            entropy = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
            torch.manual_seed(int(entropy.generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of all heads."""
        loss = self.step(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss, and average precision from probabilities (torchmetrics guesses from the values whether it was given logits)."""
        x, target_BK, mask_BK = batch
        logit_BK = self.model(x)
        loss = torch.where(mask_BK, self.loss(logit_BK, target_BK), 0.0).sum() / len(x)
        self.log("val/loss", loss, on_epoch=True, sync_dist=True, batch_size=len(x))
        # float64: in float32 sigmoid(17) is 1, and all rows above it would tie.
        prob_BK = logit_BK.double().sigmoid()[:, self.evaluable_K]
        known_BK = torch.where(mask_BK, target_BK.long(), -1)[:, self.evaluable_K]
        if isinstance(self.val_ap, BinaryAveragePrecision):
            self.val_ap.update(prob_BK[:, 0], known_BK[:, 0])
        else:
            self.val_ap.update(prob_BK, known_BK)
        self.log("val/macro_ap", self.val_ap, on_epoch=True)

    def on_train_epoch_end(self) -> None:
        """Raise ConfigError where training has diverged: no later epoch can be better."""
        for name in ("train/loss", "val/loss"):
            loss = self.trainer.callback_metrics.get(name)
            if loss is not None and not loss.isfinite():
                raise ConfigError(
                    f"training diverged: the {name} of epoch {self.current_epoch} is {float(loss)}; lower optimizer.lr, "
                    "or look for rows with values far from all others"
                )

    def train_dataloader(self) -> Any:
        """The training rows, shuffled by (seed, epoch)."""
        seed = self.seed
        if seed is None:  # drawn once and shared: ranks that shuffle apart would see some rows twice and others never
            seed = self.trainer.strategy.broadcast(int(torch.randint(2**31, ())))
        return self._loader("train", shuffle=True, seed=seed)

    def val_dataloader(self) -> Any:
        """The validation rows, in order."""
        return self._loader("val", shuffle=False, seed=0)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over what is trained, and the scheduler, stepped once an epoch."""
        optimizer = self.make_optimizer(self.model.trained_parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "epoch"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm the backbone and each head on its own: clipped together, one head's large gradient would shrink the others'.

        What Lightning refuses or must unscale first (FSDP, a GradScaler) and clipping by value are left to it.
        """
        plugin = self.trainer.precision_plugin
        by_value = gradient_clip_algorithm not in (None, "norm")
        if by_value or isinstance(plugin, FSDPPrecision) or getattr(plugin, "scaler", None) is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            # A list: torch warns of an empty generator, which a backbone without weights gives.
            torch.nn.utils.clip_grad_norm_(list(self.model.backbone.parameters()), gradient_clip_val)
            clip_head_gradients(self.model.head, num_heads=self.plan.num_heads, max_norm=gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which weights are whose: groups of other heads may have the same shapes."""
        checkpoint["head_plan"] = self.plan.record(self.splits.taxonomy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other groups.

        Raises:
            ConfigError: `frozen_heads` or `backbone_grad` differ.
        """
        for name, value in self.plan.record(self.splits.taxonomy).items():
            if checkpoint["head_plan"][name] != value:
                saved = checkpoint["head_plan"][name]
                raise ConfigError(f"a resumed run keeps its {name}: the checkpoint has {saved}, the configuration {value}")

    def _loader(self, split: str, *, shuffle: bool, seed: int) -> Any:
        return loader(
            getattr(self.splits, split),
            batch_size=self.batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            epoch_rows=self.sampler.epoch_rows,
        )
