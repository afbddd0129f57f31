"""Learning rates of a resumed run: those that it is configured with now. Knows optimizers and schedulers, not models.

A checkpoint brings the rates of the run that it was saved in, so that a lower `optimizer.lr` would not be heard.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch

log = logging.getLogger(__name__)


def base_rates(optimizers: Sequence[torch.optim.Optimizer]) -> list[list[float]]:
    """Return the rates that the schedulers begin with, by optimizer and group, if no state has been loaded yet."""
    return [[float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups] for optimizer in optimizers]


def follow(wanted: list[list[float]], optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]) -> None:
    """Scale the rates of each optimizer, and those of its scheduler, so that they begin with what is wanted."""
    for rates, optimizer, scheduler in zip(wanted, optimizers, schedulers, strict=True):
        for i, (rate, group) in enumerate(zip(rates, optimizer.param_groups, strict=True)):
            saved = float(group.get("initial_lr", group["lr"]))
            if saved == rate:
                continue
            log.info("the learning rate begins with %g now; the checkpoint had %g", rate, saved)
            group["lr"] = group["lr"] * rate / saved if saved else rate
            group["initial_lr"] = rate
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs[i] = rate
