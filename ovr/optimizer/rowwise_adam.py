"""Adam with one second moment a row. Knows nothing of heads; a row is the first axis of any parameter."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ovr.errors import ConfigError
from ovr.optimizer.rowwise_adagrad import by_row, check_settings, row_mean_square


class RowwiseAdam(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) with the row's mean square as second moment: 4 bytes a weight instead of 8, with
    betas[0] = 0 none, for then no first moment is kept either."""

    by_head = True  # no row's update depends on another row

    def __init__(self, params: Iterable[Tensor], *, lr: float, betas: Sequence[float], eps: float, weight_decay: float) -> None:
        """Take the step size above 0, the decay rates from 0 to below 1, what is added to the root, and the factor of the L2
        penalty, decoupled from the gradient.

        Raises:
            ConfigError: a value out of its range.
        """
        check_settings(lr=lr, eps=eps, weight_decay=weight_decay)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"optimizer.betas must be two numbers from 0 to below 1, got {list(betas)}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return what `closure` returns, which is called first."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["mean_square"] = torch.zeros(len(parameter), device=parameter.device)
                    if first > 0:
                        state["mean"] = torch.zeros_like(parameter)
                state["step"] += 1
                state["mean_square"].lerp_(row_mean_square(parameter.grad), 1 - second)
                mean = parameter.grad
                if first > 0:
                    mean = state["mean"].lerp_(parameter.grad, 1 - first)
                root = (state["mean_square"] / (1 - second ** state["step"])).sqrt() + group["eps"]
                size = group["lr"] / (1 - first ** state["step"]) / root
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcmul_(mean, by_row(size, parameter).to(parameter.dtype), value=-1)
        return loss
