"""What training in chunks of heads asks of a run's parts, and the module that they make. Knows settings; the step is elsewhere."""

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from ovr.data.splits import Splits
from ovr.errors import ConfigError
from ovr.head.bank import some_heads
from ovr.head_step.chunkable import check_loss, make_optimizer
from ovr.model import OvrModel
from ovr.training.chunked import ChunkedModule, HeadSettings
from ovr.training.feed import Feed
from ovr.training.memory import Fit, HeadSizes
from ovr.training.plan import HeadPlan
from ovr.training.ranks import Ranks
from ovr.training.recipe import Recipe, settings
from ovr.training.shards import HeadShards

COMPUTE_DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16}


def check_large_k(recipe: Recipe, trainer: Trainer, loss: nn.Module, plan: HeadPlan, *, in_bfloat16: bool) -> None:
    """Raise ConfigError for the first part of the run that heads which are updated in place rule out, by name."""
    check_loss(loss)
    name = "optimizer" if recipe.head_optimizer is None else "head_optimizer"
    with settings(name, head_optimizer(recipe)):
        make_optimizer(head_optimizer(recipe), [nn.Parameter(torch.zeros(1, 1))])
    instead = "with heads that are trained in chunks; change it, or use solver.head_step=dense"
    if (num := trainer.accumulate_grad_batches) != 1:
        raise ConfigError(f"trainer.accumulate_grad_batches={num} cannot be used {instead}: no gradient of all heads is kept")
    if trainer.precision not in COMPUTE_DTYPES:
        raise ConfigError(f"trainer.precision={trainer.precision} cannot be used {instead}; expected {' or '.join(COMPUTE_DTYPES)}")
    if trainer.gradient_clip_algorithm not in (None, "norm"):
        raise ConfigError(f"trainer.gradient_clip_algorithm={trainer.gradient_clip_algorithm.value} cannot be used {instead}")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigError(
            f"trainer.strategy {type(trainer.strategy).__name__} cannot be used {instead}; with trainer=ddp each process has the "
            "whole backbone and its share of the heads"
        )
    if plan.num_heads < trainer.world_size:
        raise ConfigError(f"{trainer.world_size} processes cannot share {plan.num_heads} heads; use fewer trainer.devices")
    with torch.device("meta"):
        kind: Any = getattr(recipe.head(1, num_heads=1), "kind", None)
    if kind != "linear" and (in_bfloat16 or trainer.precision == "bf16-true"):
        setting = "solver.head_dtype=bfloat16" if in_bfloat16 else "trainer.precision=bf16-true"
        raise ConfigError(f"{setting} keeps heads in bfloat16, which head=linear alone can; got head={kind}")


def head_optimizer(recipe: Recipe) -> Any:
    """Return what makes the heads' optimizer."""
    return recipe.optimizer if recipe.head_optimizer is None else recipe.head_optimizer


def keep_in_bfloat16(head: nn.Module) -> None:
    """Round the matrices of trained heads; biases, a number a head, stay in float32, and frozen heads keep every bit."""
    for parameter in head.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(torch.bfloat16)


def chunked_module(
    recipe: Recipe,
    model: OvrModel,
    loss: nn.Module,
    feed: Feed,
    plan: HeadPlan,
    trainer: Trainer,
    *,
    chunk_heads: int | None,
    loss_every: int,
    triton_kernels: bool,
) -> ChunkedModule:
    """Return the module of this rank, which takes over the clipping of gradients from `trainer`; `model` comes with all heads."""
    max_norm = trainer.gradient_clip_val or None
    trainer.gradient_clip_val = None
    shards = HeadShards(plan, Ranks(trainer.global_rank, trainer.world_size))
    if trainer.world_size > 1:
        model.head = some_heads(model.head, shards.column_array())
    module = ChunkedModule(
        model,
        loss,
        feed=feed,
        plan=plan,
        shards=shards,
        heads=HeadSettings(
            optimizer=head_optimizer(recipe),
            chunk_heads=chunk_heads,
            max_norm=None if max_norm is None else float(max_norm),
            compute_dtype=COMPUTE_DTYPES[str(trainer.precision)],
            loss_every=loss_every,
            triton_kernels=triton_kernels,
        ),
        optimizer=recipe.optimizer,
        scheduler=recipe.scheduler,
    )
    if not module.trained and isinstance(trainer.strategy, DDPStrategy):
        # DDP takes no module without gradients, and there are none to bring together.
        trainer.strategy.configure_ddp = lambda: None  # type: ignore[method-assign]
    return module


def memory_of(
    recipe: Recipe,
    splits: Splits,
    loss: nn.Module,
    plan: HeadPlan,
    trainer: Trainer,
    *,
    chunked: bool,
    chunk_heads: int | None,
    in_bfloat16: bool,
) -> Fit:
    """Return what decides how much memory the fit takes."""
    with torch.random.fork_rng(devices=[]), settings("backbone", recipe.backbone):
        backbone: Any = sized(recipe.backbone, splits.input.shape)
    with settings("head", recipe.head), settings("optimizer", recipe.optimizer):
        head = HeadSizes.of(recipe.head, backbone.num_features, head_optimizer(recipe))
    weights_bytes = sum(value.nbytes for value in backbone.parameters())
    return Fit(
        head=head,
        num_heads=plan.num_heads,
        batch_rows=recipe.batch_size,
        val_rows=len(splits.val),
        num_features=backbone.num_features,
        chunked=chunked,
        may_be_chunked=chunked or _may_be_chunked(recipe, trainer, loss, plan),
        chunk_heads=chunk_heads,
        loss_by_autograd=not hasattr(loss, "negatives"),
        bfloat16=in_bfloat16,
        in_groups=not plan.is_plain,
        backbone_bytes=4 * weights_bytes,
        world_size=trainer.world_size,
        processes_here=trainer.num_devices,
        device=trainer.strategy.root_device.type,
    )


def _may_be_chunked(recipe: Recipe, trainer: Trainer, loss: nn.Module, plan: HeadPlan) -> bool:
    try:
        check_large_k(recipe, trainer, loss, plan, in_bfloat16=False)
    except ConfigError:
        return False
    return True


def sized(make: Any, shape: tuple[int, ...]) -> nn.Module:
    """Return a module whose weights have sizes alone, or else, where its constructor needs their values, are there."""
    try:
        with torch.device("meta"):
            made: nn.Module = make(shape)
    except (NotImplementedError, RuntimeError):
        made = make(shape)
    return made
