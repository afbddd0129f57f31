"""What K probabilities, each for its own class, say of a row as a whole, under assumptions that are stated. Knows no files.

B = batch, K = heads
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_LEAST = float(np.finfo(np.float32).tiny)  # probabilities served are float32: one that is 0 or 1 there is not known any better
_MOST = 1.0 - float(np.finfo(np.float32).epsneg)


def log_odds(prob_BK: Any) -> F64:
    """Return log(prob / (1 - prob)) as float64 (B, K); of a probability of 0 or 1, that of the float32 number next to it."""
    clipped_BK = np.clip(np.asarray(prob_BK, dtype=np.float64), _LEAST, _MOST)
    odds_BK: F64 = np.log(clipped_BK) - np.log1p(-clipped_BK)
    return odds_BK


def prob_none(prob_BK: Any) -> F64:
    """Return the probability (B,) float64 that a row has none of the K classes: the product of 1 - prob.

    Assumed: given the row, the classes are independent, so that a row may have several. Where classes exclude each other, it is too
    high for rows on which several heads are unsure; `prob_none_exclusive` is for those.
    """
    clipped_BK = np.minimum(np.asarray(prob_BK, dtype=np.float64), _MOST)
    none_B: F64 = np.exp(np.log1p(-clipped_BK).sum(axis=1))
    return none_B


def prob_none_exclusive(prob_BK: Any) -> F64:
    """Return the probability (B,) float64 that a row has none of the K classes, given that it has one at most.

    It is 1 / (1 + sum of odds), the odds of a class being prob / (1 - prob).

    Assumed: the classes are independent but for that condition: of all outcomes with one class or none, each weighs as the K
    probabilities say.
    """
    odds_BK = log_odds(prob_BK)
    highest_B1 = np.maximum(odds_BK.max(axis=1, keepdims=True), 0.0)
    none_B1 = np.exp(-highest_B1)
    none_B: F64 = (none_B1 / (none_B1 + np.exp(odds_BK - highest_B1).sum(axis=1, keepdims=True)))[:, 0]
    return none_B


def prob_normalized(prob_BK: Any) -> F64:
    """Return the probability (B, K) float64 of each class given that a row has exactly one of them: odds / sum of odds.

    Rows sum to 1. Assumed: as `prob_none_exclusive`, and that a row without any class cannot be. It is the softmax of the
    log-odds, and keeps the order of a row's probabilities.
    """
    odds_BK = log_odds(prob_BK)
    odds_BK -= odds_BK.max(axis=1, keepdims=True)
    np.exp(odds_BK, out=odds_BK)
    odds_BK /= odds_BK.sum(axis=1, keepdims=True)
    return odds_BK


def out_of_scope_score(prob_BK: Any) -> F64:
    """Return the entropy (B,) float64, in nats, of each row's `prob_normalized`: 0 where one class is sure, log K where none stands
    out. It is no probability, and says nothing where K = 1; higher is more likely a row of none of the classes."""
    normalized_BK = prob_normalized(prob_BK)
    entropy_B: F64 = -(normalized_BK * np.log(np.where(normalized_BK > 0, normalized_BK, 1.0))).sum(axis=1)
    return entropy_B


# What users may ask for beside `prob`: by this name a column of `ovr predict`, an output of the router, a method of `Prediction`.
OUTPUTS: dict[str, Callable[[Any], F64]] = {
    "prob_normalized": prob_normalized,
    "prob_none": prob_none,
    "prob_none_exclusive": prob_none_exclusive,
    "out_of_scope_score": out_of_scope_score,
}
PER_CLASS = ("prob_normalized",)  # (B, K); the others are (B,)
