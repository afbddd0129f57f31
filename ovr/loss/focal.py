"""Focal loss, one independent term a head (Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 4).

B = batch, K = heads
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.functional import softplus

from ovr.errors import ConfigError
from ovr.loss.bce import positive_weights


class Focal(nn.Module):
    """-w y (1 - p)^gamma log p - (1 - y) p^gamma log(1 - p), from logits. gamma = 0 is binary cross-entropy.

    It trains under-confident heads by design: rely on the fitted temperatures, not on the raw sigmoid.
    """

    pos_weight_K: Tensor

    def __init__(self, class_ids: Sequence[str], *, gamma: float, pos_weight: float | Mapping[str, float] | None) -> None:
        """Take the class ids in column order, the focusing exponent gamma >= 0, and positive weights as `Bce` does."""
        super().__init__()
        if not 0 <= gamma < float("inf"):
            raise ConfigError(f"loss.gamma must be a finite number of at least 0, got {gamma}")
        self.gamma = float(gamma)
        self.register_buffer("pos_weight_K", positive_weights(class_ids, pos_weight), persistent=False)

    def forward(self, logit_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the loss (B, K) of each head on each row; targets are floats in [0, 1]."""
        # exp(-gamma * softplus(z)) = (1 - p)^gamma, not a power of a rounded probability: its gradient is finite at any logit.
        log_p_BK, log_not_p_BK = -softplus(-logit_BK), -softplus(logit_BK)
        positive_BK = -self.pos_weight_K * target_BK * (self.gamma * log_not_p_BK).exp() * log_p_BK
        return positive_BK - (1 - target_BK) * (self.gamma * log_p_BK).exp() * log_not_p_BK
