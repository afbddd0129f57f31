"""Rows of a head in bins of about equal mass, and what each bin adds up to. Knows nothing of what is made of the sums.

The lower edges of a head's bins are the scores of rank floor(g n / G), g = 0 .. G - 1, counted from the lowest. Rows of equal score
share a bin, whatever their order, so that ties, or fewer rows than bins, leave some bins empty.

N = rows, K = heads, C = heads of one block, G = bins, in order of rising probability
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.ranking import Ranked, ranked_blocks
from ovr.core.targets import check_probs
from ovr.errors import ConfigError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

NUM_BINS = 15  # Guo et al. 2017


@dataclass(frozen=True, slots=True)
class RankedRows:
    """The rows of some heads by falling probability, ready to be cut into bins."""

    ranked: Ranked
    run_end_CN: I64  # the place behind each row's run of equal scores

    def ends(self, num_bins: int) -> I64:
        """Return end_CG (C, G + 1): bin g holds the places end_CG[:, g + 1] to end_CG[:, g]."""
        rank_G = np.arange(num_bins + 1)
        # Ranks count from the lowest score; here scores fall, so the bin that starts at rank r of n ends before place n - r, moved
        # to the end of its run of ties.
        place_CG = self.ranked.num_known_C[:, None] - rank_G * self.ranked.num_known_C[:, None] // num_bins
        if self.run_end_CN.shape[1] == 0:
            return place_CG
        end_CG: I64 = np.where(place_CG > 0, np.take_along_axis(self.run_end_CN, np.maximum(place_CG - 1, 0), axis=1), 0)
        return end_CG

    def totals(self, value_CN: NDArray[Any]) -> F64:
        """Return the sums (C, N + 1) over the known rows before each place; `value_CN` is in the order of `ranked`."""
        known_CN = np.arange(value_CN.shape[1]) < self.ranked.num_known_C[:, None]
        return np.pad(np.cumsum(np.where(known_CN, value_CN, 0.0), axis=1), ((0, 0), (1, 0)))

    def sums(self, *ends_CG: I64) -> "list[BinSums]":
        """Return what bins come to, for each array that tells their places as `ends` does."""
        target_CN, prob_CN = self.ranked.target_CN, self.ranked.score_CN.astype(np.float64)
        values = (target_CN, prob_CN, prob_CN**2, np.where(target_CN, prob_CN, 0.0))
        sums: list[list[Any]] = [[-np.diff(end_CG, axis=1)] for end_CG in ends_CG]
        for total_CN in map(self.totals, values):
            for parts, end_CG in zip(sums, ends_CG, strict=True):
                parts.append(-np.diff(np.take_along_axis(total_CN, end_CG, axis=1), axis=1))
        return [BinSums(*parts) for parts in sums]


def ranked_rows(prob_NK: Any, target_NK: Any, mask_NK: Any) -> Iterator[RankedRows]:
    """Yield the rows of all heads, some heads at a time, in column order.

    Raises:
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    for ranked in ranked_blocks(*check_probs(prob_NK, target_NK, mask_NK)):
        num_rows = ranked.score_CN.shape[1]
        end_CN = np.where(ranked.tie_end_CN, np.arange(1, num_rows + 1), num_rows)
        yield RankedRows(ranked, np.minimum.accumulate(end_CN[:, ::-1], axis=1)[:, ::-1])


@dataclass(frozen=True, slots=True)
class BinSums:
    """What the known rows of each bin (K, G) come to; an empty bin has 0 throughout."""

    count_KG: I64
    positive_KG: F64  # their number
    prob_KG: F64  # the sum of the probabilities
    prob2_KG: F64  # of their squares
    both_KG: F64  # of the probabilities of positives

    @property
    def num_rows_K(self) -> I64:
        """The known rows of each head."""
        num_K: I64 = self.count_KG.sum(axis=1)
        return num_K

    @property
    def mean_prob_KG(self) -> F64:
        """The mean probability, NaN in an empty bin."""
        return np.clip(self._mean(self.prob_KG), 0.0, 1.0)

    @property
    def share_KG(self) -> F64:
        """The share of positives, NaN in an empty bin."""
        return self._mean(self.positive_KG)

    @property
    def part_KG(self) -> F64:
        """The share of the head's rows that each bin holds; NaN without a known row."""
        with np.errstate(invalid="ignore"):
            part_KG: F64 = self.count_KG / self.num_rows_K[:, None]
        return part_KG

    def _mean(self, sum_KG: F64) -> F64:
        with np.errstate(invalid="ignore"):
            mean_KG: F64 = sum_KG / self.count_KG
        return mean_KG


def bin_sums(prob_NK: Any, target_NK: Any, mask_NK: Any, *, num_bins: int = NUM_BINS) -> BinSums:
    """Return the sums of the bins of all heads.

    Raises:
        ConfigError: `num_bins` below 1.
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    check_num_bins(num_bins)
    return joined([rows.sums(rows.ends(num_bins))[0] for rows in ranked_rows(prob_NK, target_NK, mask_NK)])


def joined(parts: Sequence[BinSums]) -> BinSums:
    """Return the sums of all heads from those of consecutive blocks of heads."""
    return BinSums(*(np.concatenate([getattr(part, name) for part in parts]) for name in BinSums.__slots__))


def width_sums(prob_NK: Any, target_NK: Any, mask_NK: Any, *, num_bins: int = NUM_BINS) -> BinSums:
    """Return the sums of bins of equal width: bin g holds g / G <= prob < (g + 1) / G; the last one holds 1 too.

    Raises:
        ConfigError: `num_bins` below 1.
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    check_num_bins(num_bins)
    prob_NK, target_NK, mask_NK = check_probs(prob_NK, target_NK, mask_NK)
    prob_NK, num_heads = prob_NK.astype(np.float64), prob_NK.shape[1]
    edge_G = np.arange(num_bins + 1) / num_bins
    bin_NK = np.minimum((prob_NK * num_bins).astype(np.int64), num_bins - 1)
    # The product may be rounded over the edge that the bin is defined by.
    bin_NK -= prob_NK < edge_G[bin_NK]
    bin_NK += (prob_NK >= edge_G[bin_NK + 1]) & (bin_NK < num_bins - 1)
    bin_E = (bin_NK + num_bins * np.arange(num_heads))[mask_NK]
    prob_E, target_E = prob_NK[mask_NK], target_NK[mask_NK]

    def total(weight_E: NDArray[Any] | None) -> Any:
        return np.bincount(bin_E, weight_E, minlength=num_bins * num_heads).reshape(num_heads, num_bins)

    return BinSums(total(None), *(total(value_E) for value_E in (target_E, prob_E, prob_E**2, np.where(target_E, prob_E, 0.0))))


def check_num_bins(num_bins: int) -> None:
    """Check a number of bins.

    Raises:
        ConfigError: below 1.
    """
    if num_bins < 1:
        raise ConfigError(f"num_bins is {num_bins}; expected at least 1")
