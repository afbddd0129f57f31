"""Draws of rows with replacement, for intervals of figures that are sums over rows. Knows nothing of the figures.

The Poisson bootstrap (Hanley and MacGibbon 2006): in each draw every row counts as often as a Poisson number of mean 1 says.
All heads share the draws, so that means over heads have intervals too, and a sum over rows is a product of matrices. Rows whose
label a head does not know add nothing to its sums.

N = rows, C = heads of one block, R = draws, G = groups of rows
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ConfigError
from ovr.metric.intervals import CONFIDENCE, normal_quantile

F64 = NDArray[np.float64]

NUM_DRAWS = 300
MAX_GROUPS = 1 << 14  # rows beyond are dealt into so many groups that are drawn whole: 20 MB of weights however many rows there are


class RowDraws:
    """Weights of rows (or of groups of rows, where they are many) in each draw; they depend on the seed and the number of rows."""

    def __init__(self, num_rows: int, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> None:
        """Draw the weights.

        Raises:
            ConfigError: `num_draws` below 2.
        """
        if num_draws < 2:
            raise ConfigError(f"the number of draws is {num_draws}; expected at least 2")
        self._num_groups = min(num_rows, MAX_GROUPS)
        weight_RG = np.random.default_rng(seed).poisson(1.0, (num_draws, self._num_groups))
        self._weight_RG = weight_RG.astype(np.float32)

    def sums(self, value_NC: NDArray[Any]) -> F64:
        """Return the sum over rows (R, C) of values in each draw."""
        num_rows, num_heads = value_NC.shape
        group_GC = np.zeros((self._num_groups, num_heads))
        for start in range(0, num_rows, max(self._num_groups, 1)):
            part_BC = value_NC[start : start + self._num_groups]
            group_GC[: len(part_BC)] += part_BC
        # In float32 the sums of a draw are good to five digits: they make the ends of an interval, not a figure.
        sum_RC: F64 = (self._weight_RG @ group_GC.astype(np.float32)).astype(np.float64)
        return sum_RC

    def ratio_interval(self, top_N: NDArray[Any], bottom_N: NDArray[Any]) -> tuple[F64, F64]:
        """Return (low_1, high_1) of a ratio of sums over rows; NaN where there is nothing below."""
        top_R, bottom_R = self.sums(np.stack([top_N, bottom_N], axis=1)).T
        return quantiles(ratio(top_R, bottom_R)[:, None])


def quantiles(value_RC: F64, *, confidence: float = CONFIDENCE) -> tuple[F64, F64]:
    """Return (low_C, high_C): what `confidence` of the draws lie between, those left out in which the figure is undefined.

    A head for which it is undefined in all draws has NaN.

    Raises:
        ConfigError: `confidence` outside (0, 1).
    """
    normal_quantile(confidence)
    defined_RC = ~np.isnan(value_RC)
    ranked_RC = np.sort(np.where(defined_RC, value_RC, np.inf), axis=0)
    num_C = defined_RC.sum(axis=0)
    ends = []
    for part in ((1 - confidence) / 2, (1 + confidence) / 2):
        place_C = np.maximum(num_C - 1, 0) * part
        below_C = place_C.astype(np.int64)
        above_C = np.minimum(below_C + 1, np.maximum(num_C - 1, 0))
        low_C, high_C = (np.take_along_axis(ranked_RC, at_C[None], axis=0)[0] for at_C in (below_C, above_C))
        with np.errstate(invalid="ignore"):
            ends.append(np.where(num_C > 0, low_C + (high_C - low_C) * (place_C - below_C), np.nan))
    return ends[0], ends[1]


def ratio(top: NDArray[Any], bottom: NDArray[Any]) -> F64:
    """Return top / bottom; NaN where there is nothing below."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value: F64 = np.where(bottom > 0, top / bottom, np.nan)
    return value
