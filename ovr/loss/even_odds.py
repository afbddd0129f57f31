"""Where a loss puts even odds. Knows nothing of which loss it is.

B = batch, K = heads

A loss other than plain cross-entropy teaches a head an altered logit: with a share p of positives among rows of one kind, the mean
loss p L(z, 1) + (1 - p) L(z, 0) is least at a z that is not log(p / (1 - p)). At p = 1/2 that z is the logit where the two slopes
cancel. A loss that reads the head's logit from there makes logit 0 mean even odds again, which leaves to the temperature what a
temperature can do: the slope around logit 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ovr.errors import ConfigError

BOUND = 30.0  # logits; beyond it sigmoids in float64 keep too few digits of 1 - p
STEPS = 60  # halvings of 2 * BOUND, to the last digit of float64


def even_odds_logit(loss: Callable[[Tensor, Tensor], Tensor], num_heads: int) -> Tensor:
    """Return the logit (K,) float64 at which the slopes of `loss` for a positive and for a negative row cancel, by bisection.

    `loss` takes logits and targets (2, K), float64, and returns the loss of each. Its slopes must cancel once at most.

    Raises:
        ConfigError: there is none from -30 to 30, for some head.
    """
    lo_K, hi_K = (torch.full((num_heads,), bound, dtype=torch.float64) for bound in (-BOUND, BOUND))
    if not ((_slope(loss, lo_K) < 0) & (_slope(loss, hi_K) > 0)).all():
        raise ConfigError(
            f"with these settings the loss has no logit from {-BOUND:g} to {BOUND:g} where a positive and a negative row pull "
            "equally: one side hardly counts; take a smaller margin, smaller exponents or milder weights"
        )
    for _ in range(STEPS):
        middle_K = (lo_K + hi_K) / 2
        falls_K = _slope(loss, middle_K) < 0
        lo_K, hi_K = torch.where(falls_K, middle_K, lo_K), torch.where(falls_K, hi_K, middle_K)
    return (lo_K + hi_K) / 2


def _slope(loss: Callable[[Tensor, Tensor], Tensor], logit_K: Tensor) -> Tensor:
    with torch.enable_grad():
        logit_K = logit_K.clone().requires_grad_()
        target_BK = torch.tensor([[1.0], [0.0]], dtype=torch.float64).expand(2, len(logit_K))
        (slope_K,) = torch.autograd.grad(loss(logit_K.expand(2, -1), target_BK).sum(), logit_K)
    return slope_K
