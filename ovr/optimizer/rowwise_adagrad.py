"""Adagrad with one sum of squares a row. Knows nothing of heads; a row is the first axis of any parameter."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ovr.errors import ConfigError


class RowwiseAdagrad(torch.optim.Optimizer):
    """w -= lr g / (sqrt(sum over steps of mean over the row of g^2) + eps): 4 bytes of state a row instead of 4 a weight.

    Duchi et al. 2011, "Adaptive Subgradient Methods", with the row's mean square in place of each entry's, as recommendation models
    train their embeddings (Mudigere et al. 2021, "Software-Hardware Co-design for ... Recommendation Models", section 4.1.4).
    """

    by_head = True  # no row's update depends on another row

    def __init__(self, params: Iterable[Tensor], *, lr: float, eps: float, weight_decay: float) -> None:
        """Take the step size above 0, what is added to the root, and the L2 penalty's factor, decoupled from the gradient.

        Raises:
            ConfigError: a value out of its range.
        """
        check_settings(lr=lr, eps=eps, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return what `closure` returns, which is called first."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["sum"] = torch.zeros(len(parameter), device=parameter.device)
                state["sum"] += row_mean_square(parameter.grad)
                size = group["lr"] / (state["sum"].sqrt() + group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcmul_(parameter.grad, by_row(size, parameter).to(parameter.dtype), value=-1)
        return loss


def row_mean_square(grad: Tensor) -> Tensor:
    """Return the mean square of each row, float32; rows of one entry are that entry squared."""
    return grad.float().square() if grad.ndim == 1 else grad.float().flatten(1).square().mean(1)


def by_row(value: Tensor, like: Tensor) -> Tensor:
    """Return `value`, a number a row, as it broadcasts to `like`."""
    return value.view(-1, *[1] * (like.ndim - 1))


def check_settings(**settings: float) -> None:
    """Raise ConfigError unless lr is positive and finite, and all others are at least 0 and finite."""
    for name, value in settings.items():
        least = "above 0" if name == "lr" else "at least 0"
        if not 0 <= value < float("inf") or (name == "lr" and value == 0):
            raise ConfigError(f"optimizer.{name} must be {least} and finite, got {value}")
