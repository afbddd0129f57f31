"""Settings of optimizer and scheduler in a resumed run: those that it is configured with now, as if they had been all along.

A checkpoint brings the settings of the run that it was saved in, so that a lower `optimizer.lr` or a later end of the schedule
would not be heard. What is configured as it was is left as the checkpoint has it, bit for bit. Knows no models.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

log = logging.getLogger(__name__)

RATES = ("lr", "initial_lr")  # of a group: the schedule's, and what it begins with


def configured(optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the settings of optimizers and of schedulers that have been made and have not been stepped, for a checkpoint."""
    return [
        {"groups": [_settings(group) for group in optimizer.param_groups], "scheduler": dict(scheduler.state_dict())}
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True)
    ]


def follow(
    now: list[dict[str, Any]],
    saved: list[dict[str, Any]],
    optimizers: Sequence[torch.optim.Optimizer],
    schedulers: Sequence[Any],
    make_scheduler: Callable[[torch.optim.Optimizer], Any],
) -> None:
    """Change what is not configured as in the run that saved the checkpoint, given what `configured` gave in each."""
    for new, old, optimizer, scheduler in zip(now, saved, optimizers, schedulers, strict=True):
        if new == old:
            continue
        for group, settings, before in zip(optimizer.param_groups, new["groups"], old["groups"], strict=True):
            for name, value in settings.items():
                if name != "lr" and value != before.get(name):
                    log.info("%s is %s now; the checkpoint had %s", name, value, before.get(name))
                    group[name] = value
        replayed = _replayed(new["groups"], optimizer, make_scheduler, num_steps=scheduler.last_epoch)
        scheduler.load_state_dict(replayed.state_dict())
        for group, like in zip(optimizer.param_groups, replayed.optimizer.param_groups, strict=True):
            group["lr"] = like["lr"]
        log.info("the learning rate is %s now", ", ".join(f"{group['lr']:g}" for group in optimizer.param_groups))


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _replayed(
    groups: list[dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    make_scheduler: Callable[[torch.optim.Optimizer], Any],
    *,
    num_steps: int,
) -> Any:
    """Return a scheduler of an optimizer without weights that has made so many steps with these settings."""
    twin = torch.optim.SGD([torch.zeros(1)], lr=0.0)
    twin.defaults = optimizer.defaults
    twin.param_groups = [
        {**{name: value for name, value in group.items() if name not in RATES}, "lr": group["initial_lr"], "params": []}
        for group in groups
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an optimizer that makes no step
        scheduler = make_scheduler(twin)
        for _ in range(num_steps):
            scheduler.step()
    return scheduler
