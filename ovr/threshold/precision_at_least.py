"""Thresholds that keep a promised precision on future rows. Knows nothing of the test split or of how probabilities are made.

N = rows, K = heads, C = heads of one block, G = cuts tried
"""

from copy import copy
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ovr.core.binomial import upper_tail
from ovr.core.ranking import Ranked, ranked_blocks
from ovr.core.targets import check_probs
from ovr.core.taxonomy import Taxonomy
from ovr.core.thresholds import NOT_PROMISED, OK, Thresholds
from ovr.threshold.cuts import check_over, check_promise, cut_thresholds

GRID_RATIO = 1.1  # between the rows that two successive cuts take
# Of delta, spent on the first cut; the others share the rest. With all of it there, one early miss ends the search: 4 % of heads
# with many rows get no threshold. With less, heads whose positives are few get one less often (1,000 draws of five shapes).
FIRST_SHARE = 0.8


def precision_thresholds(
    prob_NK: Any,
    target_NK: Any,
    mask_NK: Any,
    *,
    precision: float,
    delta: float,
    num_claims: int = 1,
    fallback: float = 1.0,
    counted: str = "positives",
) -> Thresholds:
    """Return for each head the lowest threshold found whose precision on future rows is at least `precision` with probability
    1 - delta.

    The cuts tried take the m rows of highest probability (and their ties), for m of a list that depends on the number of rows
    alone: it is fixed before a label is looked at. They are tried by rising m. Cut g is shown to keep the promise where
    P(Binomial(m, precision) >= positives among them) is at most its share of delta (an exact binomial test; Angelopoulos et al.
    2021, "Learn then Test", section 4). Shares sum up to delta / num_claims, and a cut that passes hands its share to the next: the
    fallback procedure of Wiens (2003), of which fixed-sequence testing is the case that gives all to the first. So the chance that
    any cut is passed wrongly is at most delta / num_claims, and the largest that passes may be chosen.

    Assumed: future rows are drawn as the calibration rows were, and among rows of lower probability positives are not more common.
    Only ranks count: a calibrator that keeps the order of a head's rows (strictly rising, the same for all of them) may have been
    fitted on the same rows.

    A head for which no cut passes keeps `fallback`, and its status says what is lacking: positives, or how far the cut that came
    nearest (of the least p-value, in shares of what it was allowed) is from passing.

    Args:
        num_claims: classes for which the promises are to hold together (Bonferroni).
        counted: what the statuses call the positives.

    Raises:
        ConfigError: `precision` or `delta` not strictly between 0 and 1, or `fallback` not from 0 to 1.
        DataError: probabilities that are NaN or outside [0, 1], shapes that differ, targets or mask other than 0 and 1.
    """
    check_promise("precision", precision, delta=delta, fallback=fallback)
    prob_NK, target_NK, mask_NK = check_probs(prob_NK, target_NK, mask_NK)
    threshold_K = np.full(prob_NK.shape[1], fallback, dtype=np.float64)
    status: list[str] = []
    level = delta / num_claims
    needed = int(np.ceil(np.log(level * FIRST_SHARE) / np.log(precision) - 1e-9))
    count_G = cut_counts(needed, len(prob_NK))
    for ranked in ranked_blocks(prob_NK.astype(np.float32), target_NK, mask_NK):
        last_C, nearest_C = _largest_cuts(ranked, count_G, precision, level)
        found_C = last_C >= 0
        if found_C.any():
            threshold_K[ranked.columns][found_C] = cut_thresholds(ranked, np.maximum(last_C, 0))[found_C]
        for found, nearest, positives in zip(found_C.tolist(), nearest_C, ranked.num_positives_C.tolist(), strict=True):
            if found:
                status.append(OK)
            elif positives < needed:
                status.append(f"{NOT_PROMISED}: n = {positives} {counted}, needs at least {needed}")
            else:
                status.append(f"{NOT_PROMISED}: n = {positives} {counted}, {nearest}")
    return Thresholds(threshold_K, tuple(status))


def cut_counts(least: int, num_rows: int) -> NDArray[np.int64]:
    """Return how many rows the cuts tried take: `least`, each next a tenth more, up to `num_rows`."""
    counts = []
    count = float(least)
    while round(count) <= num_rows:
        counts.append(round(count))
        count = max(count * GRID_RATIO, count + 1)
    return np.array(counts, dtype=np.int64)


def _largest_cuts(
    ranked: Ranked, count_G: NDArray[np.int64], precision: float, level: float
) -> tuple[NDArray[np.int64], list[str]]:
    """Return for each head the position of the last row of the largest cut that passes (-1: none does), and of a head where none
    does what the test says of the cut that came nearest."""
    num_heads, num_rows = ranked.score_CN.shape
    last_C = np.full(num_heads, -1, dtype=np.int64)
    if not len(count_G):
        return last_C, [""] * num_heads
    # The position where the ties of each row end: the lowest end at or behind it.
    end_CN = np.where(ranked.tie_end_CN, np.arange(num_rows), num_rows)
    end_CN = np.minimum.accumulate(end_CN[:, ::-1], axis=1)[:, ::-1]
    present_CG = count_G <= ranked.num_known_C[:, None]
    end_CG = np.where(present_CG, end_CN[:, count_G - 1], 0)
    taken_CG = end_CG + 1
    hits_CG = np.take_along_axis(np.cumsum(ranked.target_CN, axis=1), end_CG, axis=1)
    p_value_CG = np.where(present_CG, upper_tail(hits_CG, taken_CG, precision), 1.0)
    share_CG = np.where(present_CG, level * (1 - FIRST_SHARE) / np.maximum(present_CG.sum(axis=1) - 1, 1)[:, None], 0.0)
    share_CG[:, 0] = level * FIRST_SHARE
    held_C = np.zeros(num_heads)
    for g in range(len(count_G)):
        held_C = held_C + share_CG[:, g]
        passes_C = p_value_CG[:, g] <= held_C
        last_C = np.where(passes_C, end_CG[:, g], last_C)
        held_C = np.where(passes_C, held_C, 0.0)
    nearest_C = [""] * num_heads
    for c in np.flatnonzero(last_C < 0).tolist():
        g = int(np.argmin(np.where(present_CG[c], p_value_CG[c] / np.where(present_CG[c], share_CG[c], 1.0), np.inf)))
        nearest_C[c] = (
            f"none of {int(present_CG[c].sum())} cuts passes: nearest, {hits_CG[c, g]} of the {taken_CG[c, g]} highest rows are "
            f"(p = {p_value_CG[c, g]:.2g}, allowed {share_CG[c, g]:.2g})"
        )
    return last_C, nearest_C


class PrecisionAtLeast:
    """Plug-in: `precision_thresholds`, the promise over all classes together or over each by itself."""

    promises = True

    def __init__(self, *, precision: float, delta: float = 0.05, over: str = "all", fallback: float = 1.0) -> None:
        """Take the promised precision, how often it may be broken, and the threshold of heads that it cannot be promised for.

        Args:
            over: "all": with a probability of at most delta any of the K promises fails; "class": each head's by itself.

        Raises:
            ConfigError: `precision` or `delta` not strictly between 0 and 1, `fallback` not from 0 to 1, or another `over`.
        """
        check_promise("precision", precision, delta=delta, fallback=fallback)
        check_over(over)
        self.precision, self.delta, self.over, self.fallback = precision, delta, over, fallback
        self._num_classes: int | None = None

    def of_classes(self, taxonomy: Taxonomy, columns: slice) -> Self:
        """Return the rule that knows how many classes its promise is over."""
        rule = copy(self)
        rule._num_classes = len(taxonomy)
        return rule

    def fit(self, prob_NK: Any, target_NK: Any, mask_NK: Any) -> Thresholds:
        """Return thresholds (K,); arguments and errors are those of `precision_thresholds`."""
        num_classes = np.shape(prob_NK)[1] if self._num_classes is None else self._num_classes
        return precision_thresholds(
            prob_NK,
            target_NK,
            mask_NK,
            precision=self.precision,
            delta=self.delta,
            num_claims=num_classes if self.over == "all" else 1,
            fallback=self.fallback,
        )
