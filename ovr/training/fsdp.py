"""Weights, gradients and the optimizer's state sharded over the processes (torch's FSDP). Knows no data and no heads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, MixedPrecision, OptimStateKeyType, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as Sharded
from torch.distributed.fsdp.wrap import CustomPolicy
from torchmetrics import Metric

from ovr.errors import ConfigError
from ovr.head_step.chunkable import OPTIMIZERS
from ovr.training.recipe import Recipe, settings

PRECISIONS = {"cpu": ("32-true",), "cuda": ("32-true", "bf16-mixed")}
CONTAINERS = (nn.ModuleList, nn.ModuleDict)


class Fsdp(FSDPStrategy):
    """Lightning's strategy, which rounds nothing, gathers a part at a time, and keeps checkpoints as other strategies do.

    Lightning's own casts buffers to bfloat16 with bf16-mixed, for good: frozen heads and the normaliser are buffers. Here buffers,
    gathered weights and summed gradients stay in float32, and autocast alone rounds, as with trainer=ddp. Lightning's own makes one
    part of the whole model, which is gathered at once, and reads checkpoints by a pickle that may run code, without asking for a
    digest. On a CPU it works too, which shows that a run would start, and nothing else.
    """

    def __init__(self, *, unit_weights: int | None) -> None:
        """Take how many weights a layer has at least to be gathered on its own (see `units`); None gathers all at once.

        Raises:
            ConfigError: it is no such number.
        """
        if unit_weights is not None and (isinstance(unit_weights, bool) or not isinstance(unit_weights, int) or unit_weights < 1):
            raise ConfigError(f"trainer.strategy.unit_weights must be a whole number of at least 1, or null, got {unit_weights!r}")
        super().__init__(mixed_precision=MixedPrecision(_module_classes_to_ignore=()))
        self.unit_weights = unit_weights

    def __repr__(self) -> str:
        """Return it as errors show it."""
        return f"fsdp(unit_weights={self.unit_weights})"

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer is restored after the model, as with other strategies."""
        return True

    def _setup_model(self, model: nn.Module) -> nn.Module:
        found = set() if self.unit_weights is None else units(model, self.unit_weights)
        sharded = Sharded(
            model,
            cpu_offload=self.cpu_offload,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=self.root_device,  # Lightning gives the index, and a CPU has none
            auto_wrap_policy=CustomPolicy(lambda module: module in found),
            **self.kwargs,
        )
        for module in sharded.modules():
            if isinstance(module, Metric):  # which FSDP leaves where they are
                module.to(self.root_device)
        return sharded

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole state on the first process."""
        with self._whole(first_alone=True):
            return self.model.state_dict()  # type: ignore[union-attr]

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the whole state as one process would have it, on the first process."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        with self._whole(first_alone=True):
            state = Sharded.optim_state_dict(self.model, optimizer)  # type: ignore[arg-type]
            if self.global_rank == 0:
                state = Sharded.rekey_optim_state_dict(
                    state,
                    OptimStateKeyType.PARAM_ID,
                    self.model,  # type: ignore[arg-type]
                    optim=optimizer,
                )
        return state

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Return what the run's checkpoint plug-in reads."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every process its part of the weights."""
        with self._whole(first_alone=False):
            self.model.load_state_dict(checkpoint["state_dict"], strict=strict)  # type: ignore[union-attr]

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every process its part of the state."""
        model: Any = self.model
        with self._whole(first_alone=False):
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                named = Sharded.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_NAME, model, optim=optimizer)
                optimizer.load_state_dict(Sharded.optim_state_dict_to_load(model, optimizer, named))

    def _whole(self, *, first_alone: bool) -> Any:
        to_cpu = self.root_device.type != "cpu"  # torch frees what it thinks it has copied
        return Sharded.state_dict_type(
            self.model,  # type: ignore[arg-type]
            StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(offload_to_cpu=to_cpu, rank0_only=first_alone),
            FullOptimStateDictConfig(offload_to_cpu=to_cpu, rank0_only=first_alone),
        )


def units(model: nn.Module, min_weights: int) -> set[nn.Module]:
    """Return the layers that are gathered on their own: members of lists and sequences of modules, as blocks of an encoder are.

    Inner ones come first; one counts if it has `min_weights` weights without those of its own units. Lists are no layers, and what
    else there is, the heads among it, is gathered with the whole.
    """
    found: set[nn.Module] = set()

    def weights_left(module: nn.Module) -> int:
        left = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        for child in module.children():
            of_child = weights_left(child)
            if isinstance(module, nn.ModuleList | nn.Sequential) and not isinstance(child, CONTAINERS) and of_child >= min_weights:
                found.add(child)
            else:
                left += of_child
        return left

    weights_left(model)
    return found


def check_fsdp(recipe: Recipe, trainer: Trainer) -> None:
    """Raise ConfigError for the first setting that sharded weights rule out, by name; other strategies are not looked at."""
    if not isinstance(trainer.strategy, FSDPStrategy):
        return
    if not isinstance(trainer.strategy, Fsdp):
        raise ConfigError("trainer.strategy=fsdp rounds frozen heads and reads checkpoints without their digest; use trainer=fsdp")
    precisions = PRECISIONS.get(trainer.strategy.root_device.type, PRECISIONS["cpu"])
    if trainer.precision not in precisions:
        raise ConfigError(
            f"trainer.precision={trainer.precision} cannot be used with trainer=fsdp on {trainer.strategy.root_device.type}; "
            f"expected {' or '.join(precisions)}"
        )
    if trainer.gradient_clip_val:
        raise ConfigError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val} cannot be used with trainer=fsdp, where no process has the "
            "whole gradient of a head; use trainer.gradient_clip_val=null"
        )
    with settings("optimizer", recipe.optimizer):
        kind = type(recipe.optimizer([nn.Parameter(torch.zeros(1, 1))]))
    if not any(base.__module__.startswith("torch.optim.") and base.__name__ in OPTIMIZERS for base in kind.__mro__):
        raise ConfigError(
            f"the optimizer {kind.__name__} cannot be used with trainer=fsdp, where a weight is a part of its entries, without "
            f"rows; expected one of {', '.join(OPTIMIZERS)}"
        )
