"""Thresholds that keep a promised recall on future rows. Knows nothing of the test split or of how probabilities are made.

N = rows, K = heads, C = heads of one block
"""

from copy import copy
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ovr.core.binomial import most_left_out
from ovr.core.ranking import Ranked, ranked_blocks
from ovr.core.targets import check_probs
from ovr.core.taxonomy import Taxonomy
from ovr.core.thresholds import NOT_PROMISED, OK, Thresholds
from ovr.threshold.cuts import check_over, check_promise, cut_thresholds


def recall_thresholds(
    prob_NK: Any, target_NK: Any, mask_NK: Any, *, recall: float, delta: float, num_claims: int = 1, fallback: float = 0.0
) -> Thresholds:
    """Return for each head the highest threshold whose recall on future rows is at least `recall` with probability 1 - delta.

    Future positives are thought to be drawn as those of the calibration rows were; nothing else is assumed. Of n positives, the
    j-th lowest probability is the threshold, with the largest j for which P(Binomial(n, 1 - recall) <= j - 1) is at most
    delta / num_claims. As recall falls when the threshold rises, this is fixed-sequence testing along all of them (Angelopoulos et
    al. 2021, "Learn then Test"), and the exact tolerance limit of Wilks (1941). Only ranks count: a calibrator that keeps the order
    of a head's rows (strictly rising, the same for all of them) may have been fitted on the same rows. With fewer than
    log(delta / num_claims) / log(recall) positives there is none: the head keeps `fallback` and its status says so.

    Args:
        num_claims: classes for which the promises are to hold together (Bonferroni).

    Raises:
        ConfigError: `recall` or `delta` not strictly between 0 and 1, or `fallback` not from 0 to 1.
        DataError: probabilities that are NaN or outside [0, 1], shapes that differ, targets or mask other than 0 and 1.
    """
    check_promise("recall", recall, delta=delta, fallback=fallback)
    level = delta / num_claims
    prob_NK, target_NK, mask_NK = check_probs(prob_NK, target_NK, mask_NK)
    num_positives_K = (target_NK & mask_NK).sum(axis=0)
    rank_K = most_left_out(num_positives_K, 1.0 - recall, level)
    needed = int(np.ceil(np.log(level) / np.log(recall) - 1e-9))
    return lowest_positive_thresholds(prob_NK, target_NK, mask_NK, rank_K, needed=needed, fallback=fallback)


def lowest_positive_thresholds(
    prob_NK: NDArray[Any],
    target_NK: NDArray[np.bool_],
    mask_NK: NDArray[np.bool_],
    rank_K: NDArray[np.int64],
    *,
    needed: int,
    fallback: float,
    counted: str = "positives",
) -> Thresholds:
    """Return thresholds that just take the positive of rank `rank_K` from below in each head; rank 0 has none.
    Statuses call the positives `counted`."""
    threshold_K = np.full(prob_NK.shape[1], fallback, dtype=np.float64)
    for ranked in ranked_blocks(prob_NK.astype(np.float32), target_NK, mask_NK):
        rank_C = rank_K[ranked.columns]
        if (rank_C > 0).any():
            threshold_K[ranked.columns][rank_C > 0] = _at_rank(ranked, rank_C)[rank_C > 0]
    num_positives_K = (target_NK & mask_NK).sum(axis=0)
    status = [
        OK if rank else f"{NOT_PROMISED}: n = {num_positives} {counted}, needs at least {needed}"
        for rank, num_positives in zip(rank_K.tolist(), num_positives_K.tolist(), strict=True)
    ]
    return Thresholds(threshold_K, tuple(status))


def _at_rank(ranked: Ranked, rank_C: NDArray[np.int64]) -> NDArray[np.float32]:
    true_positives_CN = np.cumsum(ranked.target_CN, axis=1)
    wanted_C = ranked.num_positives_C - np.maximum(rank_C, 1) + 1
    return cut_thresholds(ranked, np.argmax(true_positives_CN >= wanted_C[:, None], axis=1))


class RecallAtLeast:
    """Plug-in: `recall_thresholds`, the promise over all classes together or over each by itself."""

    promises = True

    def __init__(self, *, recall: float, delta: float = 0.05, over: str = "all", fallback: float = 0.0) -> None:
        """Take the promised recall, how often it may be broken, and the threshold of heads that it cannot be promised for.

        Args:
            over: "all": with a probability of at most delta any of the K promises fails; "class": each head's by itself.

        Raises:
            ConfigError: `recall` or `delta` not strictly between 0 and 1, `fallback` not from 0 to 1, or another `over`.
        """
        check_promise("recall", recall, delta=delta, fallback=fallback)
        check_over(over)
        self.recall, self.delta, self.over, self.fallback = recall, delta, over, fallback
        self._num_classes: int | None = None

    def of_classes(self, taxonomy: Taxonomy, columns: slice) -> Self:
        """Return the rule that knows how many classes its promise is over."""
        rule = copy(self)
        rule._num_classes = len(taxonomy)
        return rule

    def fit(self, prob_NK: Any, target_NK: Any, mask_NK: Any) -> Thresholds:
        """Return thresholds (K,); arguments and errors are those of `recall_thresholds`."""
        num_classes = np.shape(prob_NK)[1] if self._num_classes is None else self._num_classes
        return recall_thresholds(
            prob_NK,
            target_NK,
            mask_NK,
            recall=self.recall,
            delta=self.delta,
            num_claims=num_classes if self.over == "all" else 1,
            fallback=self.fallback,
        )
