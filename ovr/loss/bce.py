"""Binary cross-entropy, one independent term a head.

B = batch, K = heads
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ovr.errors import ConfigError


class Bce(nn.Module):
    """-w y log p - (1 - y) log(1 - p), from logits, with a positive weight w a head (1 by default)."""

    pos_weight_K: Tensor

    def __init__(self, class_ids: Sequence[str], *, pos_weight: float | Mapping[str, float] | None) -> None:
        """Take the class ids in column order, and one positive weight for all heads or one by class id (others keep 1)."""
        super().__init__()
        self.register_buffer("pos_weight_K", positive_weights(class_ids, pos_weight), persistent=False)

    def forward(self, logit_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the loss (B, K) of each head on each row; targets are floats in [0, 1]."""
        return self.pos_weight_K * target_BK * softplus(-logit_BK) + (1 - target_BK) * softplus(logit_BK)


def positive_weights(class_ids: Sequence[str], pos_weight: float | Mapping[str, float] | None) -> Tensor:
    """Return positive weights (K,) float32.

    Raises:
        ConfigError: a weight that is not positive and finite, or of a class that is not there.
    """
    if pos_weight is None:
        return torch.ones(len(class_ids))
    if isinstance(pos_weight, Mapping):
        unknown = sorted(str(key) for key in pos_weight if str(key) not in set(class_ids))
        if unknown:
            raise ConfigError(f"loss.pos_weight names classes {unknown}, which are not among the {len(class_ids)} of the taxonomy")
        by_id = {str(key): float(value) for key, value in pos_weight.items()}
        weight_K = torch.tensor([by_id.get(class_id, 1.0) for class_id in class_ids])
    else:
        weight_K = torch.full((len(class_ids),), float(pos_weight))
    if not (weight_K.isfinite() & (weight_K > 0)).all():
        raise ConfigError(f"loss.pos_weight must be positive and finite, got {pos_weight}")
    return weight_K
