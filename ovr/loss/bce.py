"""Binary cross-entropy, one independent term a head.

B = batch, K = heads
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from ovr.core.counts import ClassCounts
from ovr.errors import ConfigError

PosWeight = float | str | Mapping[str, float] | None
MAX_POS_WEIGHT = 10.0
LEVELS = 2  # of products: 2^2 rows share a logarithm; more of them gain little and lose digits where p is near 1/2


class Bce(nn.Module):
    """-w y log q - (1 - y) log(1 - q) at the logit of q, which is z + log w: a positive weight w a head (1 by default).

    Weighting positives by w multiplies the odds that a head learns by w. The head's own logit z is read log w lower, so that z
    estimates the true log odds for every w: a weight changes what the fit attends to, and no probability has to be shifted back
    (prior correction; King and Zeng 2001, "Logistic Regression in Rare Events Data", equation 7). A temperature could not do it:
    it has a scale only.
    """

    by_head = True
    pos_weight_K: Tensor
    log_weight_K: Tensor

    def __init__(
        self,
        class_ids: Sequence[str],
        *,
        pos_weight: PosWeight,
        max_pos_weight: float = MAX_POS_WEIGHT,
        counts: ClassCounts | None = None,
    ) -> None:
        """Take the class ids in column order, and positive weights as `positive_weights` does."""
        super().__init__()
        weight_K = positive_weights(class_ids, pos_weight, max_pos_weight=max_pos_weight, counts=counts)
        self.weighted = bool((weight_K != 1).any())
        self.register_buffer("pos_weight_K", weight_K, persistent=False)
        self.register_buffer("log_weight_K", weight_K.log(), persistent=False)

    def forward(self, logit_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the loss (B, K) of each head on each row; targets are floats in [0, 1]."""
        if not self.weighted:
            return binary_cross_entropy_with_logits(logit_BK, target_BK, reduction="none")
        return binary_cross_entropy_with_logits(
            logit_BK + self.log_weight_K, target_BK, pos_weight=self.pos_weight_K, reduction="none"
        )

    def negatives(self, logit_BC: Tensor, *, with_loss: bool) -> tuple[Tensor | None, Tensor]:
        """Return the loss (C,), summed over the rows, and its derivative (B, C) by the logits, where every target is 0.

        A logit of minus infinity has no part in either. May write to the logits.
        """
        logit_BC = logit_BC + self.log_weight_K if self.weighted else logit_BC
        if not with_loss:
            return None, logit_BC.sigmoid_()
        prob_BC = logit_BC.sigmoid()
        return _summed_softplus(logit_BC, prob_BC), prob_BC

    def positives(self, logit_P: Tensor, column_P: Tensor, *, with_loss: bool) -> tuple[Tensor | None, Tensor]:
        """Return loss and derivative by the logit of each of P entries whose target is 1."""
        weight_P = self.pos_weight_K[column_P]
        logit_P = logit_P + self.log_weight_K[column_P] if self.weighted else logit_P
        return weight_P * softplus(-logit_P) if with_loss else None, -weight_P * (-logit_P).sigmoid()


def _summed_softplus(logit_BC: Tensor, prob_BC: Tensor) -> Tensor:
    """Return softplus summed over the rows, from the sigmoid p too: on a CPU in half of the time of softplus itself.

    Writes to the logits, which spares the cache.

    It is max(z, 0) - log(1 - m) with m = min(p, 1 - p), and a sum of logarithms is that of a product, which takes one for many
    rows. Of the product it is what lacks to 1 that is held, so that the smallest m counts.
    """
    if logit_BC.is_cuda:  # one kernel is better than many
        return softplus(logit_BC).sum(0)
    loss_C = logit_BC.clamp_min_(0).sum(0)
    other_BC = torch.sub(prob_BC.new_ones(()), prob_BC, out=logit_BC)
    lacking = torch.minimum(prob_BC, other_BC, out=logit_BC)
    for _ in range(LEVELS):
        half = len(lacking) // 2
        rows, partners = lacking[: len(lacking) - half], lacking[len(lacking) - half :]
        rows[:half].addcmul_(rows[:half], partners, value=-1).add_(partners)  # (1 - a) (1 - b) = 1 - (a + b - a b)
        lacking = rows
    return loss_C.sub_(lacking.neg_().log1p_().sum(0))


def positive_weights(
    class_ids: Sequence[str], pos_weight: PosWeight, *, max_pos_weight: float = MAX_POS_WEIGHT, counts: ClassCounts | None = None
) -> Tensor:
    """Return positive weights (K,) float32.

    Args:
        pos_weight: None is 1 for all; one number for all; a number by class id, others keep 1; or "auto": a head's negatives a
            positive among the training rows, so that both sides weigh the same, but from 1 / max_pos_weight to max_pos_weight.
        max_pos_weight: the bound on automatic weights; given ones are taken as they are.
        counts: of the training rows, which "auto" needs.

    Raises:
        ConfigError: a weight that is not positive and finite, or of a class that is not there; a word other than "auto"; "auto"
            without counts or with a bound that is below 1 or not finite.
    """
    if pos_weight is None:
        return torch.ones(len(class_ids))
    if isinstance(pos_weight, str):
        if pos_weight != "auto":
            raise ConfigError(f"loss.pos_weight is {pos_weight!r}; expected auto, a number, {{class_id: number}} or null")
        return _automatic(max_pos_weight, counts)
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


def _automatic(max_pos_weight: float, counts: ClassCounts | None) -> Tensor:
    if not 1 <= max_pos_weight < float("inf"):
        raise ConfigError(f"loss.max_pos_weight must be a finite number of at least 1, got {max_pos_weight}")
    if counts is None:
        raise ConfigError("loss.pos_weight=auto needs the counts of the training rows; without them give a number")
    ratio_K = counts.negatives_per_positive_K().clip(1 / max_pos_weight, max_pos_weight)
    return torch.from_numpy(ratio_K).float()
