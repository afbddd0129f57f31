"""Asymmetric loss, one independent term a head (Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification", eq. 4 to 7).

B = batch, K = heads
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import softplus

from ovr.core.counts import ClassCounts
from ovr.errors import ConfigError
from ovr.loss.even_odds import even_odds_logit

SMALLEST = 1e-12  # in place of q - margin below 0: its powers and their gradients stay finite, its loss is 0 to float32


class Asymmetric(nn.Module):
    """-y (1 - q)^g+ log q - (1 - y) r^g- log(1 - r) with r = max(q - margin, 0), from the logit of q.

    Easy negatives count little, and not at all where q is below the margin: for classes with few positives among many rows.
    Effect on calibration: q is no probability. With g+ = 0 and no margin, rows with true odds o are taught the q that solves
    o = q^g- (q / (1 - q) - g- log(1 - q)): where positives are rare, log o is about (g- + 1) log q + log(g- + 1). So the log odds
    are shifted, and about g- + 1 times too small. The shift is taken out here: the logit of q is the head's own plus the
    constant that makes logit 0 of the head mean even odds. The slope is left to the temperature, and one slope fits only part of
    a curve. Rows below the margin are not told apart in training. Rely on fitted temperatures, not on the raw sigmoid.
    """

    by_head = True
    even_logit: Tensor

    def __init__(
        self,
        class_ids: Sequence[str],
        *,
        gamma_positive: float,
        gamma_negative: float,
        margin: float,
        counts: ClassCounts | None = None,
    ) -> None:
        """Take the exponents, at least 0, and the margin of negatives, from 0 to below 1; class ids and counts are not used.

        Raises:
            ConfigError: a value out of its range, or a margin so large that no logit means even odds.
        """
        super().__init__()
        for name, gamma in (("gamma_positive", gamma_positive), ("gamma_negative", gamma_negative)):
            if not 0 <= gamma < float("inf"):
                raise ConfigError(f"loss.{name} must be a finite number of at least 0, got {gamma}")
        if not 0 <= margin < 1:
            raise ConfigError(f"loss.margin must be at least 0 and below 1, got {margin}")
        self.gamma_positive, self.gamma_negative, self.margin = float(gamma_positive), float(gamma_negative), float(margin)
        self.register_buffer("even_logit", even_odds_logit(self._of_q, 1)[0].float(), persistent=False)

    def forward(self, logit_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the loss (B, K) of each head on each row; targets are floats in [0, 1]."""
        return self._of_q(logit_BK + self.even_logit, target_BK)

    def _of_q(self, logit_BK: Tensor, target_BK: Tensor) -> Tensor:
        minus_log_q_BK, minus_log_not_q_BK = softplus(-logit_BK), softplus(logit_BK)
        positive_BK = (-self.gamma_positive * minus_log_not_q_BK).exp() * minus_log_q_BK
        if self.margin == 0:  # from logits: there is no margin that keeps log(1 - q) finite
            negative_BK = (-self.gamma_negative * minus_log_q_BK).exp() * minus_log_not_q_BK
        else:
            shifted_BK = (logit_BK.sigmoid() - self.margin).clamp_min(SMALLEST)
            negative_BK = -(shifted_BK**self.gamma_negative) * (-shifted_BK).log1p()
        return target_BK * positive_BK + (1 - target_BK) * negative_BK
