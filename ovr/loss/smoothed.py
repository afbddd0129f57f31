"""Binary cross-entropy with smoothed labels, one independent term a head.

B = batch, K = heads
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ovr.core.counts import ClassCounts
from ovr.errors import ConfigError


class Smoothed(nn.Module):
    """Cross-entropy of q against (1 - s) y + s base_rate, from the logit of q (Szegedy et al. 2016, section 7, for one sigmoid).

    Labels are drawn towards the head's share of positives among its training rows, not towards 1/2: that would teach a class with
    one positive in a thousand rows at least s / 2.
    Effect on calibration: rows with true probability p are taught q = (1 - s) p + s base_rate: right on average, but drawn to the
    base rate at both ends, and never below s base_rate. The logit of q is the head's own plus the constant that makes logit 0 of
    the head mean even odds; the temperature widens the rest, up to the curve.
    """

    by_head = True
    base_rate_K: Tensor
    even_logit_K: Tensor

    def __init__(self, class_ids: Sequence[str], *, smoothing: float, counts: ClassCounts) -> None:
        """Take the share s of a label that is smoothed away, from 0 to below 1, and the counts of the training rows.

        Raises:
            ConfigError: a smoothing out of its range.
        """
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ConfigError(f"loss.smoothing must be at least 0 and below 1, got {smoothing}")
        self.smoothing = float(smoothing)
        base_rate_K = torch.from_numpy(counts.base_rate_K())
        even_logit_K = ((1 - smoothing) / 2 + smoothing * base_rate_K).logit()
        self.register_buffer("base_rate_K", base_rate_K.float(), persistent=False)
        self.register_buffer("even_logit_K", even_logit_K.float(), persistent=False)

    def forward(self, logit_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the loss (B, K) of each head on each row; targets are floats in [0, 1]."""
        logit_BK = logit_BK + self.even_logit_K
        target_BK = (1 - self.smoothing) * target_BK + self.smoothing * self.base_rate_K
        return target_BK * softplus(-logit_BK) + (1 - target_BK) * softplus(logit_BK)
