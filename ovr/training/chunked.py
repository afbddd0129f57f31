"""The Lightning module of very many heads: `HeadStep` trains them in place, and autograd sees the backbone only.

Lightning's own optimisation would hold the gradients of all heads. Here a step is: features, the heads' step, and from the gradient
of the features that it gives, the backbone's gradients and step. With several ranks each holds some of the heads: the features of
all ranks are gathered, each steps its heads on them, and the gradients of the features are summed. DDP knows the backbone alone.

B = rows of one rank, W = ranks, D = features, K = heads
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ovr.data.labels import Labels
from ovr.errors import ConfigError, TrainingError
from ovr.head_step.step import HeadStep, NonFiniteStep, StepResult
from ovr.model import OvrModel
from ovr.training.diverged import check_weights, findings, step_error, training_error
from ovr.training.feed import Feed
from ovr.training.loader import InputBatch, SparseBatch
from ovr.training.plan import HeadPlan
from ovr.training.ranks import Ranks
from ovr.training.rates import configured, follow
from ovr.training.shards import HeadShards, flat_state
from ovr.training.validation import average_precisions, true_loss

HEAD = "model.head."


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """How heads are stepped; the arguments of `HeadStep`, and every how many steps the training loss is computed."""

    optimizer: Callable[..., torch.optim.Optimizer]
    chunk_heads: int | None
    max_norm: float | None
    compute_dtype: torch.dtype
    loss_every: int
    triton_kernels: bool


class ChunkedModule(lightning.LightningModule):
    """Trains an `OvrModel` whose loss can be taken apart by heads. It logs what `OvrModule` does, of the same meaning."""

    def __init__(
        self,
        model: OvrModel,
        loss: nn.Module,
        *,
        feed: Feed,
        plan: HeadPlan,
        shards: HeadShards,
        heads: HeadSettings,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], Any],
    ) -> None:
        """Take the parts; `plan` is that of all K heads, `model` has those of this rank, `loss` and `feed` are of all."""
        super().__init__()
        self.automatic_optimization = False
        self.model, self.loss = model, loss
        self.feed, self.plan, self.shards, self.heads = feed, plan, shards, heads
        self.ranks: Ranks = shards.ranks
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        model.head.requires_grad_(False)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # DDP would compare the ranks' heads, and send those of the first to all others.
        self._ddp_params_and_buffers_to_ignore = [HEAD + name for name, _ in _named_tensors(model.head)]
        self._loaded: dict[str, Any] | None = None
        self._saved_settings: list[dict[str, Any]] | None = None  # of the run that is resumed
        self._val_z: list[Tensor] = []
        self._val_rows: list[Tensor] = []

    def on_fit_start(self) -> None:
        """Give every rank the same features: DDP does it for a backbone that it trains."""
        for part in (self.model.normalizer, self.model.backbone):
            for _, value in _named_tensors(part):
                self.ranks.share(value.detach())

    def on_train_start(self) -> None:
        """Go on with the settings of optimizers and schedulers that are configured now."""
        if self._saved_settings is not None:
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            follow(self._settings, self._saved_settings, self.trainer.optimizers, schedulers, self.make_scheduler)

    def on_train_batch_start(self, batch: SparseBatch, batch_idx: int) -> None:
        """Seed what is drawn in the step."""
        seed = self.feed.step_seed(self.trainer, batch_idx)
        if seed is not None:
            torch.manual_seed(seed)
            self.head_step.generator.manual_seed(seed)

    def training_step(self, batch: SparseBatch, batch_idx: int) -> None:
        """One step of all heads and of the backbone."""
        z_BD = self.model.features(batch.x)
        result, columns = self._step_heads(z_BD, batch, with_loss=batch_idx % self.heads.loss_every == 0)
        own_loss = torch.zeros((), dtype=torch.float64, device=z_BD.device) if result.loss is None else result.loss
        loss, num_bad = self.ranks.sum(torch.stack([own_loss, own_loss.new_tensor(float(len(columns)))]))
        if num_bad or not loss.isfinite():
            raise self._error(batch, batch_idx, columns, f"the loss is {float(loss) if not num_bad else nan:g}")
        if self.trained:
            self._step_backbone(z_BD, result.grad_z_BD, batch, batch_idx)
        # No head is lent to their optimizer now, so this moves nothing. Lightning counts the steps of its wrapper, and the
        # scheduler those of the optimizer, which makes none of its own where every head is frozen.
        heads = self._optimizers()[0]
        (heads.optimizer if self.trained else heads).step()
        if result.loss is not None:
            # Equal on all ranks.
            self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.x))

    def validation_step(self, batch: InputBatch, batch_idx: int) -> None:
        """Keep the features and the numbers of the rows."""
        self._val_z.append(self.model.features(batch.x).float())
        self._val_rows.append(batch.row_B)

    def on_validation_epoch_end(self) -> None:
        """Loss of all heads, and average precision over those that have a positive validation row."""
        columns = self.shards.columns
        z_ND, labels = self._all_val_rows(torch.cat(self._val_z), torch.cat(self._val_rows))
        self._val_z.clear()
        self._val_rows.clear()
        with in_float32(z_ND.device):
            loss = self.ranks.sum(true_loss(self.head_step, z_ND, labels, columns))
            if not loss.isfinite():
                what = f"the validation after epoch {self.current_epoch} (val/loss is {float(loss):g})"
                raise training_error(self.trainer, what=what)
            ap_E = average_precisions(self.model.head, z_ND, labels, columns)
        total, num = self.ranks.sum(loss.new_tensor([float(ap_E.sum()), float(len(ap_E))]))
        self.log("val/loss", loss.float(), sync_dist=True)
        self.log("val/macro_ap", (total / num).float(), sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Step the schedulers, before the epoch's checkpoint is written."""
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            scheduler.step()

    def train_dataloader(self) -> Any:
        """The training rows, with the targets in this rank's columns."""
        return self.feed.train_batches(self.trainer, self.shards.columns)

    def val_dataloader(self) -> Any:
        """The validation rows."""
        return self.feed.val_batches(self.trainer, with_targets=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The heads' optimizer, then the backbone's if it is trained, each with its scheduler."""
        seed = self.feed.seed
        self.head_step = HeadStep(
            self.model.head,
            self.loss,
            self.heads.optimizer,
            chunk_heads=self.heads.chunk_heads,
            max_norm=self.heads.max_norm,
            compute_dtype=self.heads.compute_dtype,
            log_odds_shift_K=self.feed.log_odds_shift_K.to(self.device),
            first_column=self.shards.columns.start,
            seed=seed,
            triton_kernels=self.heads.triton_kernels,
        )
        optimizers = [self.head_step.optimizer, *([self.make_optimizer(self.trained)] if self.trained else [])]
        schedulers = [self.make_scheduler(optimizer) for optimizer in optimizers]
        self._settings = configured(optimizers, schedulers)
        if self._loaded is not None:  # with the settings of the run that saved it
            self.head_step.load_state_dict(self._loaded)
            self._loaded = None
        return optimizers, schedulers

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put in the plan, and weights and optimizer states of all K heads: a checkpoint knows nothing of chunks and ranks.

        Raises:
            TrainingError: weights that are no good.
        """
        check_weights(self.trainer, self.model)
        state, saved = self.head_step.state_dict(), checkpoint["state_dict"]
        weights = {name: saved.pop(HEAD + name) for name in list(self.model.head.state_dict())}
        whole = self.shards.gather(flat_state(weights, state["states"]), Path(self.trainer.default_root_dir))
        commons = self.ranks.objects({name: (table["scalars"], table["made"]) for name, table in state["states"].items()})
        states: dict[str, Any] = {
            name: {"tensors": {}, "scalars": scalars, "made": made} for one in commons for name, (scalars, made) in one.items()
        }
        for (name, part), value in whole.items():
            if part:
                states[name]["tensors"][part] = value
            else:
                saved[HEAD + name] = value
        checkpoint["head_step"] = {**state, "states": states}
        checkpoint["head_plan"] = self.plan.record(self.feed.splits.taxonomy)
        checkpoint["settings"] = self._settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this rank's heads out of those of all ranks.

        Raises:
            ConfigError: a checkpoint of other groups, or of heads that were not trained in chunks.
        """
        if "head_step" not in checkpoint:
            raise ConfigError("the checkpoint is of heads that were trained at once: go on with solver.head_step=dense")
        self.plan.check_record(checkpoint["head_plan"], self.feed.splits.taxonomy)
        self._saved_settings = checkpoint["settings"]
        saved, state = checkpoint["state_dict"], checkpoint["head_step"]
        weights = {name.removeprefix(HEAD): saved.pop(name) for name in list(saved) if name.startswith(HEAD)}
        own = self.shards.deal(flat_state(weights, state["states"]))
        saved |= {HEAD + name: value for (name, part), value in own.items() if not part}
        # Lightning gives the heads' optimizer what that of the rank that saved had; a rank may have other groups, so other weights.
        num_trained = sum(not part and not name.startswith("groups.frozen") for name, part in own)
        of_heads = checkpoint["optimizer_states"][0]
        of_heads["state"], of_heads["param_groups"][0]["params"] = {}, list(range(max(1, num_trained)))
        states: dict[str, Any] = {
            name: {**table, "tensors": {part: own[name, part] for part in table["tensors"]}}
            for name, table in state["states"].items()
            if (name, "") in own
        }
        self._loaded = {**state, "states": states}

    def _step_heads(self, z_BD: Tensor, batch: SparseBatch, *, with_loss: bool) -> tuple[StepResult, list[int]]:
        """Return the step's result, and the columns of heads with NaN or infinity."""
        try:
            with in_float32(z_BD.device):
                z_WD = self.ranks.rows(z_BD.detach().float())
                return self.head_step(z_WD, batch.targets, num_rows=len(z_WD), with_loss=with_loss), []
        except NonFiniteStep as error:
            return StepResult(None, None), [self.shards.columns.start + column for column in error.columns]

    def _step_backbone(self, z_BD: Tensor, grad_z_WD: Tensor | None, batch: SparseBatch, batch_idx: int) -> None:
        if grad_z_WD is None:  # none of this rank's heads has a say
            grad_z_WD = z_BD.new_zeros(self.ranks.world_size * len(z_BD), z_BD.shape[1], dtype=torch.float32)
        # DDP takes the mean over ranks of what is a sum.
        grad_z_BD = self.ranks.own_rows_of_sum(grad_z_WD) * self.ranks.world_size
        optimizer = self._optimizers()[1]
        optimizer.zero_grad()
        self.manual_backward(z_BD, gradient=grad_z_BD.to(z_BD.dtype))
        grads = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if not norm.isfinite():
            raise self._error(batch, batch_idx, [], "the gradient of the backbone is not finite")
        if self.heads.max_norm:
            torch.nn.utils.clip_grads_with_norm_(self.trained, self.heads.max_norm, norm)
        optimizer.step()

    def _optimizers(self) -> list[Any]:
        """Return Lightning's wrappers of the heads' optimizer and, if the backbone is trained, of its own."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _all_val_rows(self, z_BD: Tensor, row_B: Tensor) -> tuple[Tensor, Labels]:
        """Return the features of the validation rows of all ranks, in order, and their labels; trainer.limit_val_batches may leave
        rows out."""
        labels = self.feed.splits.val.labels
        most = -(-len(labels) // self.ranks.world_size)
        padded_BD, padded_B = z_BD.new_zeros(most, z_BD.shape[1]), row_B.new_full((most,), len(labels))
        padded_BD[: len(z_BD)], padded_B[: len(row_B)] = z_BD, row_B
        row_N, order_N = self.ranks.rows(padded_B).sort()
        num_rows = int((row_N < len(labels)).sum())
        z_ND = self.ranks.rows(padded_BD)[order_N[:num_rows]]
        return z_ND, labels if num_rows == len(labels) else labels.take(row_N[:num_rows].cpu().numpy())

    def _error(self, batch: SparseBatch, batch_idx: int, columns: list[int], what: str) -> TrainingError:
        own = batch.row_WB.view(self.ranks.world_size, -1)[self.ranks.rank]
        found = findings(self.model, batch.x, own, columns)
        return step_error(self.trainer, self.feed.splits, found, step=batch_idx, what=what)


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Let `HeadStep` alone choose what is in bfloat16: plug-ins of Lightning change the dtype of products and of new tensors."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
