"""Focal loss, one independent term a head (Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 4).

B = batch, K = heads
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import softplus

from ovr.core.counts import ClassCounts
from ovr.errors import ConfigError
from ovr.loss.bce import MAX_POS_WEIGHT, PosWeight, positive_weights
from ovr.loss.even_odds import even_odds_logit


class Focal(nn.Module):
    """-w y (1 - q)^gamma log q - (1 - y) q^gamma log(1 - q), from the logit of q. gamma = 0 is binary cross-entropy.

    The logit of q is the head's own plus a constant, 0 without weights, such that logit 0 of the head means even odds. It trains
    under-confident heads by design: rely on the fitted temperatures, not on the raw sigmoid.
    """

    by_head = True
    pos_weight_K: Tensor
    even_logit_K: Tensor

    def __init__(
        self,
        class_ids: Sequence[str],
        *,
        gamma: float,
        pos_weight: PosWeight,
        max_pos_weight: float = MAX_POS_WEIGHT,
        counts: ClassCounts | None = None,
    ) -> None:
        """Take the class ids in column order, the focusing exponent gamma >= 0, and positive weights as `Bce` does."""
        super().__init__()
        if not 0 <= gamma < float("inf"):
            raise ConfigError(f"loss.gamma must be a finite number of at least 0, got {gamma}")
        self.gamma = float(gamma)
        weight_K = positive_weights(class_ids, pos_weight, max_pos_weight=max_pos_weight, counts=counts)
        self.register_buffer("pos_weight_K", weight_K, persistent=False)
        # Without weights the two sides mirror each other: exactly 0, not 0 to within rounding.
        even_logit_K = even_odds_logit(self._of_q, len(weight_K)).where(weight_K != 1, 0.0)
        self.register_buffer("even_logit_K", even_logit_K.float(), persistent=False)

    def forward(self, logit_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the loss (B, K) of each head on each row; targets are floats in [0, 1]."""
        return self._of_q(logit_BK + self.even_logit_K, target_BK)

    def _of_q(self, logit_BK: Tensor, target_BK: Tensor) -> Tensor:
        # exp(-gamma * softplus(z)) = (1 - q)^gamma, not a power of a rounded probability: its gradient is finite at any logit.
        log_q_BK, log_not_q_BK = -softplus(-logit_BK), -softplus(logit_BK)
        positive_BK = -self.pos_weight_K * target_BK * (self.gamma * log_not_q_BK).exp() * log_q_BK
        return positive_BK - (1 - target_BK) * (self.gamma * log_q_BK).exp() * log_not_q_BK
