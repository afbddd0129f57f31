"""Two models on the same rows, class by class: what differs, by how much, and whether that is more than chance. Knows no model.

The first model is the one in use, the second the one that may replace it; a difference is second less first. Rows are paired: both
models saw the same ones, and only what differs row by row counts as noise.

A class is "better" or "worse" by two tests. Their 2 K p-values are corrected together by Holm 1979: that chance makes any class one
of them has probability 1 - confidence in all.

- decisions: McNemar's test of the rows on which one model alone is right. Exact (binomial) below `EXACT_BELOW` such rows, with the
  normal approximation and continuity correction (Edwards 1948) from there on.
- likelihood: that the mean difference of the negative log-likelihood is 0. By the normal approximation, where at least
  `LEAST_POSITIVES` rows of the class and as many others are known; a mean of fewer is not normal.

It is "worse" where a test says so, also if the other says "better"; else "better" where a test says so; else "same", which means
that these rows do not tell.

N = rows, K = heads, C = heads of one block
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.heads import figures_of
from ovr.core.scale import column_blocks
from ovr.core.targets import check_probs
from ovr.metric.classification import check_decisions
from ovr.metric.draws import RowDraws, quantiles, ratio
from ovr.metric.intervals import CONFIDENCE, normal_quantile
from ovr.metric.ranking import average_precision_influence, rank_figures

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

EXACT_BELOW = 25
LEAST_POSITIVES = 10

_erfc = np.vectorize(math.erfc, otypes=[np.float64])
# P(at most k of n fair coins show heads), (n, k).
_AT_MOST = np.array([[sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range(EXACT_BELOW)] for n in range(EXACT_BELOW)])


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of both models (K,) and the bootstrap's interval of second less first; NaN where the rows do not define it."""

    first_K: F64
    second_K: F64
    low_K: F64
    high_K: F64

    @property
    def value_K(self) -> F64:
        """Second less first."""
        return self.second_K - self.first_K


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two models differ in, class by class."""

    first_only_K: I64  # known rows that the first alone decides rightly
    second_only_K: I64
    decision_p_K: F64  # McNemar's, not corrected
    nll: Difference  # less is better
    nll_p_K: F64  # not corrected; NaN where it was not tested
    brier: Difference  # less is better
    average_precision: Difference  # more is better
    verdict_K: NDArray[np.str_]  # "better", "same" or "worse": the second

    def report(self, class_ids: Sequence[str]) -> dict[str, Any]:
        """Return how many classes have each verdict, and a dictionary a class; what is not defined is None."""
        figures: dict[str, NDArray[Any]] = {"first_only": self.first_only_K, "second_only": self.second_only_K}
        figures |= {"decision_p": self.decision_p_K, "nll_p": self.nll_p_K}
        for name, found in (("nll", self.nll), ("brier", self.brier), ("average_precision", self.average_precision)):
            figures |= {f"{name}_first": found.first_K, f"{name}_second": found.second_K, f"{name}_difference": found.value_K}
            figures |= {f"{name}_difference_low": found.low_K, f"{name}_difference_high": found.high_K}
        return {
            **{verdict: int((self.verdict_K == verdict).sum()) for verdict in ("better", "same", "worse")},
            "classes": [
                {"class_id": class_id, "verdict": str(self.verdict_K[k]), **figures_of(figures, k)}
                for k, class_id in enumerate(class_ids)
            ],
        }


def compare(
    prob_first_NK: Any,
    prob_second_NK: Any,
    label_first_NK: Any,
    label_second_NK: Any,
    target_NK: Any,
    mask_NK: Any,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Comparison:
    """Return the comparison of two models' probabilities and decisions on the same rows.

    For the likelihood a probability of 0 or 1 counts as that far from it as its dtype can tell, as in scikit-learn's log_loss.

    Raises:
        ConfigError: `confidence` outside (0, 1).
        DataError: probabilities outside [0, 1] or NaN, decisions, targets or mask other than 0 and 1, shapes that differ.
    """
    normal_quantile(confidence)
    first, second = (check_probs(prob_NK, target_NK, mask_NK) for prob_NK in (prob_first_NK, prob_second_NK))
    labels = [check_decisions(label_NK, target_NK, mask_NK)[0] for label_NK in (label_first_NK, label_second_NK)]
    (prob_first_NK, target_NK, mask_NK), prob_second_NK = first, second[0]
    draws = RowDraws(len(target_NK), seed=seed)
    parts = []
    for columns in column_blocks(*prob_first_NK.shape):
        target_NC, mask_NC = target_NK[:, columns], mask_NK[:, columns]
        right = [(label_NK[:, columns] == target_NC) & mask_NC for label_NK in labels]
        probs = [prob_NK[:, columns] for prob_NK in (prob_first_NK, prob_second_NK)]
        known_RC, num_C = draws.sums(mask_NC), mask_NC.sum(axis=0)
        loss, loss_p_C = _mean_difference([_loss(p, target_NC) for p in probs], mask_NC, draws, known_RC, confidence)
        squares = [(target_NC - p.astype(np.float64)) ** 2 for p in probs]
        square, _ = _mean_difference(squares, mask_NC, draws, known_RC, confidence)
        num_positives_C = (target_NC & mask_NC).sum(axis=0)
        few_C = np.minimum(num_positives_C, num_C - num_positives_C) < LEAST_POSITIVES
        parts.append(
            (
                (right[0] & ~right[1]).sum(axis=0),
                (right[1] & ~right[0]).sum(axis=0),
                np.where(few_C, np.nan, loss_p_C),
                *loss,
                *square,
                *_ap_difference(probs, target_NC, mask_NC, draws, confidence),
            )
        )
    first_only_K, second_only_K, nll_p_K, *rest = (np.concatenate(part) for part in zip(*parts, strict=True))
    decision_p_K = mcnemar(first_only_K, second_only_K)
    nll, brier, ap = (Difference(*rest[i : i + 4]) for i in (0, 4, 8))
    passed = holm(np.stack([decision_p_K, nll_p_K]), confidence=confidence)
    for_better = np.stack([second_only_K > first_only_K, nll.value_K < 0])
    worse_K, better_K = (passed & ~for_better).any(axis=0), (passed & for_better).any(axis=0)
    verdict_K = np.where(worse_K, "worse", np.where(better_K, "better", "same"))
    return Comparison(first_only_K, second_only_K, decision_p_K, nll, nll_p_K, brier, ap, verdict_K)


def mcnemar(first_only: Any, second_only: Any) -> F64:
    """Return the two-sided p-value that of two models neither is right more often, from the rows that one alone has right.

    McNemar 1947; exact below `EXACT_BELOW` such rows, else with Edwards' continuity correction. Without such a row it is 1.
    """
    first, second = np.asarray(first_only, dtype=np.int64), np.asarray(second_only, dtype=np.int64)
    num = first + second
    few = num < EXACT_BELOW
    exact = 2 * _AT_MOST[np.where(few, num, 0), np.where(few, np.minimum(first, second), 0)]
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.maximum(np.abs(first - second) - 1, 0) / np.sqrt(num)
    p: F64 = np.where(few, np.minimum(exact, 1.0), _erfc(np.where(few, 0.0, z) / math.sqrt(2)))
    return p


def holm(p: F64, *, confidence: float = CONFIDENCE) -> NDArray[np.bool_]:
    """Return which hypotheses fall, in the shape of their p-values; NaN was not tested and counts for nothing.

    Holm 1979: that any true one falls has probability 1 - `confidence` at most, however they depend on one another.
    """
    flat = p.ravel()
    tested = np.flatnonzero(~np.isnan(flat))
    order = tested[np.argsort(flat[tested], kind="stable")]
    small = flat[order] * np.arange(len(order), 0, -1) <= 1 - confidence
    fallen = np.zeros(flat.shape, dtype=np.bool_)
    fallen[order[: len(order) if small.all() else int(np.argmin(small))]] = True
    return fallen.reshape(p.shape)


def _mean_difference(
    losses: list[F64], mask_NC: NDArray[np.bool_], draws: RowDraws, known_RC: F64, confidence: float
) -> tuple[tuple[F64, F64, F64, F64], F64]:
    """Return both means and the interval of their difference (C,), and its p-value."""
    num_C = mask_NC.sum(axis=0)
    first_C, second_C = (ratio(np.where(mask_NC, loss_NC, 0.0).sum(axis=0), num_C) for loss_NC in losses)
    gap_NC = np.where(mask_NC, losses[1] - losses[0], 0.0)
    low_C, high_C = quantiles(ratio(draws.sums(gap_NC), known_RC), confidence=confidence)
    gap_C = second_C - first_C
    with np.errstate(divide="ignore", invalid="ignore"):
        variance_C = np.where(mask_NC, (gap_NC - gap_C) ** 2, 0.0).sum(axis=0) / (num_C * np.maximum(num_C - 1, 1))
        z_C = np.where(gap_C == 0, 0.0, np.abs(gap_C) / np.sqrt(variance_C))
    return (first_C, second_C, low_C, high_C), np.where(np.isnan(gap_C), np.nan, _erfc(np.nan_to_num(z_C) / math.sqrt(2)))


def _ap_difference(
    probs: list[NDArray[Any]], target_NC: Any, mask_NC: Any, draws: RowDraws, confidence: float
) -> tuple[F64, F64, F64, F64]:
    first_C, second_C = (rank_figures(prob_NC, target_NC, mask_NC).average_precision_K for prob_NC in probs)
    first_NC, second_NC = (average_precision_influence(prob_NC, target_NC, mask_NC) for prob_NC in probs)
    # What a row's weight changes is counted to first order: a draw then is a sum over rows.
    drawn_RC = second_C - first_C + draws.sums(second_NC - first_NC)
    return (first_C, second_C, *quantiles(drawn_RC, confidence=confidence))


def _loss(prob_NC: NDArray[Any], target_NC: NDArray[np.bool_]) -> F64:
    least = np.finfo(prob_NC.dtype).eps
    clipped_NC = np.clip(prob_NC.astype(np.float64), least, 1 - least)
    loss_NC: F64 = -np.log(np.where(target_NC, clipped_NC, 1 - clipped_NC))
    return loss_NC
