"""Binary cross-entropy on a random part of each head's negatives, with the prior corrected.

B = batch, K = heads
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ovr.core.counts import ClassCounts
from ovr.errors import ConfigError


class Subsampled(nn.Module):
    """-y log q - keep (1 - y) log(1 - q), from the logit of q, where a negative is kept with probability r of its head.

    Keeping a share r of the negatives divides their odds by r: p / (1 - p) becomes p / (r (1 - p)), for every row and so for every
    logit. Hence logit(q) = z - log r with the head's own logit z, and sigmoid(z) estimates p itself: what is served is right
    without waiting for a calibration (prior correction; King and Zeng 2001, "Logistic Regression in Rare Events Data", equation 7).
    Each head draws for itself, a new part in each step. In eval mode every negative counts, and it is plain cross-entropy.
    Logits of all heads are computed all the same: this changes what heads attend to, not the cost of a step.
    """

    by_head = True
    keep_rate_K: Tensor

    def __init__(self, class_ids: Sequence[str], *, negatives_per_positive: float, counts: ClassCounts) -> None:
        """Take how many negatives a positive a head keeps on average, and the counts of the training rows; r is at most 1.

        Raises:
            ConfigError: a ratio that is not positive and finite, or a class without a positive training row.
        """
        super().__init__()
        if not 0 < negatives_per_positive < float("inf"):
            raise ConfigError(f"loss.negatives_per_positive must be positive and finite, got {negatives_per_positive}")
        absent = [class_id for class_id, num in zip(class_ids, counts.num_positives_K, strict=True) if num == 0]
        if absent:
            raise ConfigError(f"classes {absent[:10]} have no positive training row: there is no number of negatives to keep")
        keep_rate_K = negatives_per_positive / torch.from_numpy(counts.negatives_per_positive_K())
        self.register_buffer("keep_rate_K", keep_rate_K.clamp(max=1.0).float(), persistent=False)

    def forward(self, logit_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the loss (B, K) of each head on each row; targets are floats in [0, 1]."""
        if not self.training:
            return target_BK * softplus(-logit_BK) + (1 - target_BK) * softplus(logit_BK)
        logit_BK = logit_BK - self.keep_rate_K.log()
        keep_BK = torch.rand_like(logit_BK, dtype=torch.float32) < self.keep_rate_K
        return target_BK * softplus(-logit_BK) + keep_BK * (1 - target_BK) * softplus(logit_BK)
