"""Rows of a head in bins of about equal mass, and what each bin adds up to. Knows nothing of what is made of the sums.

The lower edges of a head's bins are the scores of rank floor(g n / G), g = 0 .. G - 1, counted from the lowest. Rows of equal score
share a bin, whatever their order, so that ties, or fewer rows than bins, leave some bins empty.

N = rows, K = heads, C = heads of one block, G = bins, in order of rising probability
"""

from collections.abc import Iterator
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
class MassBins:
    """What the bins of the heads `columns` hold; an empty bin holds 0."""

    columns: slice
    ranked: Ranked
    end_CG: I64  # with the rows by falling probability, bin g holds places end_CG[:, g + 1] to end_CG[:, g]; (C, G + 1)

    @property
    def count_CG(self) -> I64:
        """The known rows of each bin."""
        return -np.diff(self.end_CG, axis=1)

    def sums(self, value_CN: NDArray[Any]) -> F64:
        """Return the sums (C, G) over the known rows of each bin; `value_CN` is in the order of `ranked`."""
        known_CN = np.arange(value_CN.shape[1]) < self.ranked.num_known_C[:, None]
        sum_CN = np.pad(np.cumsum(np.where(known_CN, value_CN, 0.0), axis=1), ((0, 0), (1, 0)))
        return -np.diff(np.take_along_axis(sum_CN, self.end_CG, axis=1), axis=1)


def mass_bins(prob_NK: Any, target_NK: Any, mask_NK: Any, *, num_bins: int = NUM_BINS) -> Iterator[MassBins]:
    """Yield the bins of all heads, some at a time, in column order.

    Raises:
        ConfigError: `num_bins` below 1.
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    check_num_bins(num_bins)
    rank_G = np.arange(num_bins + 1)
    for ranked in ranked_blocks(*check_probs(prob_NK, target_NK, mask_NK)):
        num_rows = ranked.score_CN.shape[1]
        # Ranks count from the lowest score; here scores fall, so the bin that starts at rank r of n ends before place n - r, moved
        # to the end of its run of ties.
        place_CG = ranked.num_known_C[:, None] - rank_G * ranked.num_known_C[:, None] // num_bins
        if num_rows:
            tie_end_CN = np.where(ranked.tie_end_CN, np.arange(1, num_rows + 1), num_rows)
            end_CN = np.minimum.accumulate(tie_end_CN[:, ::-1], axis=1)[:, ::-1]
            place_CG = np.where(place_CG > 0, np.take_along_axis(end_CN, np.maximum(place_CG - 1, 0), axis=1), 0)
        yield MassBins(ranked.columns, ranked, place_CG)


def check_num_bins(num_bins: int) -> None:
    """Check a number of bins.

    Raises:
        ConfigError: below 1.
    """
    if num_bins < 1:
        raise ConfigError(f"num_bins is {num_bins}; expected at least 1")
