"""Which losses and optimizers can be applied to some heads at a time, and how. Knows nothing of steps.

B = batch, K = heads, C = heads of a chunk, P = positives of a chunk
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ovr.errors import ConfigError
from ovr.head_step.targets import SparseTargets

MakeOptimizer = Callable[..., torch.optim.Optimizer]

# Their update of an entry depends on that entry's gradients alone.
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop")


def check_loss(loss: nn.Module) -> None:
    """Raise ConfigError unless `loss` says that it can be taken apart by heads."""
    if not getattr(loss, "by_head", False):
        raise ConfigError(
            f"the loss {type(loss).__name__} cannot be computed in chunks of heads: it lacks `by_head = True`, with which a loss "
            "says that its buffers have K rows, or no axis, and that nothing else in it is of a head; use another loss or "
            "solver.head_step=dense"
        )


def loss_of(loss: nn.Module, columns: slice | Tensor) -> nn.Module:
    """Return the loss of some heads: its buffers are of K rows, or of no axis."""
    part: nn.Module = object.__new__(type(loss))  # what copy.copy does, at a tenth of its time
    part.__dict__.update(loss.__dict__)
    part._buffers = {name: value[columns] if value is not None and value.ndim else value for name, value in loss._buffers.items()}
    return part


def loss_and_grad(loss: Any, logit_BC: Tensor, targets: SparseTargets, *, with_loss: bool) -> tuple[Tensor | None, Tensor]:
    """Return the loss (C,), summed over the rows, and its derivative (B, C) by the logits; unknown targets have no part in either.

    Args:
        logit_BC: may be written to.
        loss: of these C heads, from `loss_of`; its own `negatives` and `positives` are used if it has them, else autograd.
        targets: of these C columns.
    """
    at_P, at_U = (targets.row_P, targets.column_P), (targets.row_U, targets.column_U)
    if not hasattr(loss, "negatives"):
        return _by_autograd(loss, logit_BC, at_P, at_U, with_loss=with_loss)
    loss_P = grad_P = None
    if len(targets.row_P):
        loss_P, grad_P = loss.positives(logit_BC[at_P], targets.column_P, with_loss=with_loss)
        logit_BC[at_P] = -math.inf
    if len(targets.row_U):
        logit_BC[at_U] = -math.inf
    loss_C, grad_BC = loss.negatives(logit_BC, with_loss=with_loss)
    if grad_P is not None:
        grad_BC[at_P] = grad_P
    return loss_C if loss_P is None else loss_C.index_add_(0, targets.column_P, loss_P), grad_BC


def _by_autograd(
    loss: Any, logit_BC: Tensor, at_P: tuple[Tensor, Tensor], at_U: tuple[Tensor, Tensor], *, with_loss: bool
) -> tuple[Tensor | None, Tensor]:
    target_BC = torch.zeros_like(logit_BC)
    target_BC[at_P] = 1
    with torch.enable_grad():
        logit_BC = logit_BC.detach().requires_grad_()
        loss_BC = loss(logit_BC, target_BC)
        (grad_BC,) = torch.autograd.grad(loss_BC.sum(), logit_BC)
    loss_BC = loss_BC.detach()
    loss_BC[at_U] = 0
    grad_BC[at_U] = 0
    return loss_BC.sum(0) if with_loss else None, grad_BC


def make_optimizer(make: MakeOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer, in its fused form where torch has one and the caller did not choose.

    Raises:
        ConfigError: one whose update of a head may depend on other heads.
    """
    made: Any = getattr(make, "func", make)
    chosen = getattr(make, "keywords", {}).keys()
    fuse = inspect.isclass(made) and "fused" in inspect.signature(made).parameters and not chosen & {"fused", "foreach"}
    optimizer = make(parameters, fused=True) if fuse else make(parameters)
    kind = type(optimizer)
    torchs_own = kind.__module__.startswith("torch.optim.") and kind.__name__ in OPTIMIZERS
    if not torchs_own and not getattr(kind, "by_head", False):
        raise ConfigError(
            f"the optimizer {kind.__name__} cannot be applied in chunks of heads; expected one of {', '.join(OPTIMIZERS)}, or one "
            "with `by_head = True`, which says that no head's update depends on another's; or use solver.head_step=dense"
        )
    return optimizer


def scalar_device(group: Mapping[str, Any], device: torch.device) -> torch.device:
    """Return where an optimizer of weights on `device`, with the settings of `group`, wants its number of steps: as torch has it,
    beside the weights if its kernel reads it, else on the CPU."""
    return device if group.get("fused") or group.get("capturable") else torch.device("cpu")


class StateTable:
    """The optimizer's state of one weight of all heads, lent to the optimizer a chunk at a time."""

    def __init__(self, num_rows: int, first: dict[str, Any]) -> None:
        """Take the rows of the weight, and the state that the optimizer's constructor made of one head's rows, if any."""
        self.num_rows = num_rows
        self.tensors = {
            name: value.repeat(num_rows // len(value), *[1] * (value.ndim - 1)) for name, value in first.items() if _has_rows(value)
        }
        # The same for every head, such as the number of steps.
        self.scalars = {name: value for name, value in first.items() if not _has_rows(value)}
        self.made = bool(first)
        self._next: dict[str, Any] = {}

    def lend(self, rows: slice) -> dict[str, Any]:
        """Return the state of some rows, views and copies of what is common; nothing where the optimizer has yet to make it."""
        if not self.made:
            return {}
        scalars = {name: value.clone() if isinstance(value, Tensor) else value for name, value in self.scalars.items()}
        return {**scalars, **{name: value[rows] for name, value in self.tensors.items()}}

    def take_back(self, rows: slice, state: dict[str, Any]) -> None:
        """Keep what the optimizer made or replaced in the state of some rows."""
        self._next = {name: value for name, value in state.items() if not _has_rows(value)}
        for name, value in state.items():
            if _has_rows(value):
                if name not in self.tensors:
                    self.tensors[name] = value.new_zeros(self.num_rows, *value.shape[1:])
                if (mine := self.tensors[name][rows]).data_ptr() != value.data_ptr():
                    mine.copy_(value)

    def end_step(self) -> None:
        """Let what is common to all heads go on: in the step that ends, every chunk began with the same."""
        self.scalars, self.made = self._next, True

    def state_dict(self) -> dict[str, Any]:
        """Return the state itself, not a copy."""
        return {"tensors": self.tensors, "scalars": self.scalars, "made": self.made}

    def load_state_dict(self, state: dict[str, Any], device: torch.device, *, scalar_device: torch.device) -> None:
        """Take a copy of the state that `state_dict` gave, on `device`, and what is common to all heads on `scalar_device`."""
        self.tensors = {name: value.to(device, copy=True) for name, value in state["tensors"].items()}
        self.scalars = {
            name: value.to(scalar_device, copy=True) if isinstance(value, Tensor) else value
            for name, value in state["scalars"].items()
        }
        self.made = state["made"]


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
