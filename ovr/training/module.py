"""The Lightning module: what a step is. Knows the model and the loss, not where rows come from or what is done afterwards.

B = batch, K = heads, S = batches since the last step
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import BinaryAveragePrecision, MultilabelAveragePrecision

from ovr.errors import ConfigError, TrainingError
from ovr.head.bank import clip_head_gradients
from ovr.model import OvrModel
from ovr.training.compiled import compiled
from ovr.training.diverged import Findings, check_weights, findings, step_error, training_error
from ovr.training.feed import Feed
from ovr.training.loader import Batch
from ovr.training.plan import HeadPlan
from ovr.training.rates import configured, follow


class OvrModule(lightning.LightningModule):
    """Trains an `OvrModel` with a loss that returns (B, K). The reported loss is the mean over rows of the sum over known heads."""

    evaluable_K: Tensor
    log_odds_shift_K: Tensor

    def __init__(
        self,
        model: OvrModel,
        loss: nn.Module,
        *,
        feed: Feed,
        plan: HeadPlan,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], Any],
        compile: bool = False,
    ) -> None:
        """Take the parts, and whether the step's forward and backward are compiled; `model` follows `plan`."""
        super().__init__()
        self.model = model
        self.loss = loss
        self.feed, self.plan = feed, plan
        self.register_buffer("log_odds_shift_K", feed.log_odds_shift_K, persistent=False)
        self._shifted = bool(feed.log_odds_shift_K.any())
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        # Not the model, which is evaluated, saved and exported as it is.
        self._step_losses: Callable[[Batch], Tensor] = compiled(self.losses) if compile else self.losses
        # A class without a positive row in the val split has no average precision there, and no say in the best epoch.
        evaluable_K = torch.from_numpy(feed.splits.val.labels.num_positives_K() > 0)
        self.register_buffer("evaluable_K", evaluable_K, persistent=False)
        num_evaluable = int(evaluable_K.sum())
        self.val_ap: BinaryAveragePrecision | MultilabelAveragePrecision = (
            BinaryAveragePrecision(ignore_index=-1)
            if num_evaluable == 1
            else MultilabelAveragePrecision(num_labels=num_evaluable, average="macro", ignore_index=-1)
        )
        self._saved_settings: list[dict[str, Any]] | None = None  # of the run that is resumed
        self._since_step: list[tuple[Batch, int, Tensor, Tensor]] = []  # batch, its number, losses of its entries (B, K), its loss

    def losses(self, batch: Batch) -> Tensor:
        """Return the loss (B, K) on rows that the sampler drew, 0 where the target is unknown."""
        logit_BK = self.model(batch.x)
        if self._shifted:  # the drawn rows have other odds than the rows as they are, which the model's own logits are to tell
            logit_BK = logit_BK + self.log_odds_shift_K
        return _where_known(batch.mask_BK, self.loss(logit_BK, batch.target_BK))

    def on_train_start(self) -> None:
        """Go on with the settings of optimizer and scheduler that are configured now."""
        if self._saved_settings is not None:
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            follow(self._settings, self._saved_settings, self.trainer.optimizers, schedulers, self.make_scheduler)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout."""
        if (seed := self.feed.step_seed(self.trainer, batch_idx)) is not None:
            torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of all heads."""
        loss_BK = self._step_losses(batch)
        loss = loss_BK.sum() / len(batch.x)
        self._since_step.append((batch, batch_idx, loss_BK.detach(), loss.detach()))
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.x))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss, and average precision from probabilities (torchmetrics guesses from the values whether it was given logits)."""
        x, target_BK, mask_BK, _ = batch
        logit_BK = self.model(x)
        loss = _where_known(mask_BK, self.loss(logit_BK, target_BK)).sum() / len(x)
        self.log("val/loss", loss, on_epoch=True, sync_dist=True, batch_size=len(x))
        # float64: in float32 sigmoid(17) is 1, and all rows above it would tie.
        prob_BK = logit_BK.double().sigmoid()[:, self.evaluable_K]
        known_BK = _where_known(mask_BK, target_BK.long(), otherwise=-1)[:, self.evaluable_K]
        if isinstance(self.val_ap, BinaryAveragePrecision):
            self.val_ap.update(prob_BK[:, 0], known_BK[:, 0])
        else:
            self.val_ap.update(prob_BK, known_BK)
        self.log("val/macro_ap", self.val_ap, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        """Raise TrainingError where the weights are no good, before they are kept as the best or the last."""
        loss = self.trainer.callback_metrics.get("val/loss")
        if loss is not None and not loss.isfinite():
            what = f"the validation after epoch {self.current_epoch} (val/loss is {float(loss):g})"
            raise training_error(self.trainer, what=what)

    def train_dataloader(self) -> Any:
        """The training rows."""
        return self.feed.train_batches(self.trainer)

    def val_dataloader(self) -> Any:
        """The validation rows."""
        return self.feed.val_batches(self.trainer, with_targets=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over what is trained, and the scheduler, stepped once an epoch."""
        optimizer = self.make_optimizer(self.model.trained_parameters())
        scheduler = self.make_scheduler(optimizer)
        self._settings = configured([optimizer], [scheduler])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm the backbone and each head on its own: clipped together, one head's large gradient would shrink the others'.

        Clipping by value and what Lightning refuses (FSDP) are left to it. Under a GradScaler (16-mixed) gradients come unscaled,
        but for those of optimizers that unscale in their own kernel: these are clipped to a norm that is scaled like them.

        Raises:
            TrainingError: on all ranks, where loss or gradient have NaN or infinity; the weights are good as yet.
        """
        plugin = self.trainer.precision_plugin
        scaler: Any = getattr(plugin, "scaler", None)
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm") and not isinstance(plugin, FSDPPrecision):
            is_scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
            norms = self._clip(gradient_clip_val * (scaler.get_scale() if is_scaled else 1.0))
            self._check_step(norms if scaler is None else [])
        else:
            # A scaler finds too large gradients itself.
            grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None and scaler is None]
            self._check_step([torch.nn.utils.get_total_norm(grads, norm_type=torch.inf)] if grads else [])
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _clip(self, max_norm: float) -> list[Tensor]:
        """Return the norms that the gradients had, of the backbone and of each head."""
        backbone = [parameter for parameter in self.model.backbone.parameters() if parameter.grad is not None]
        norms = [torch.nn.utils.clip_grad_norm_(backbone, max_norm)] if backbone else []
        return norms + clip_head_gradients(self.model.head, num_heads=self.plan.num_heads, max_norm=max_norm)

    def _check_step(self, norms: list[Tensor]) -> None:
        total = torch.stack([*(norm.sum() for norm in norms), *(loss for *_, loss in self._since_step)]).sum()  # none is below 0
        bad = torch.tensor(float(not math.isfinite(total)), device=self.device)
        if self.trainer.strategy.reduce(bad, reduce_op="sum"):
            raise self._error()
        self._since_step.clear()

    def _error(self) -> TrainingError:
        """Return the error of the first batch with a bad loss in any rank, else of the last one: then the gradient alone is bad."""
        bad_S = ~torch.stack([loss for *_, loss in self._since_step]).isfinite()
        num_bad_S: Any = self.trainer.strategy.reduce(bad_S.float(), reduce_op="sum")
        first = num_bad_S.nonzero()[:1].flatten().tolist()
        batch, batch_idx, loss_BK, own_loss = self._since_step[first[0] if first else -1]
        loss: Any = self.trainer.strategy.reduce(own_loss.clone(), reduce_op="mean")
        bad_BK = ~loss_BK.isfinite()
        columns = bad_BK.any(0).nonzero().flatten().tolist()
        # Of sharded weights no process has what features are made with.
        if isinstance(self.trainer.strategy, FSDPStrategy):
            found = Findings(columns, batch.row_B.tolist())
        else:
            found = findings(self.model, batch.x, batch.row_B, columns)
        found = replace(found, not_finite={**found.not_finite, "loss": batch.row_B[bad_BK.any(1)].tolist()})
        return step_error(self.trainer, self.feed.splits, found, step=batch_idx, what=f"the loss is {float(loss):g}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which weights are whose, and the settings that the run is configured with.

        Raises:
            TrainingError: weights that are no good.
        """
        check_weights(self.trainer, self.model)
        checkpoint["settings"] = self._settings
        checkpoint["head_plan"] = self.plan.record(self.feed.splits.taxonomy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what cannot be gone on from.

        Raises:
            ConfigError: a checkpoint of other groups, or of heads that were trained in chunks.
        """
        if "head_step" in checkpoint:
            raise ConfigError("the checkpoint is of heads that were trained in chunks: go on with solver.head_step=chunked")
        self.plan.check_record(checkpoint["head_plan"], self.feed.splits.taxonomy)
        self._saved_settings = checkpoint["settings"]


def _where_known(mask_BK: Tensor | None, value_BK: Tensor, *, otherwise: int = 0) -> Tensor:
    return value_BK if mask_BK is None else torch.where(mask_BK, value_BK, otherwise)
