"""Rows ranked by score for many heads at once, ties and unknown labels included. Knows nothing of metrics or thresholds.

N = rows, K = heads, C = heads of one block
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_VALUES = 1 << 20  # values sorted at a time: some tens of MB of working arrays however many heads there are


@dataclass(frozen=True, slots=True)
class Ranked:
    """Heads `columns` with their rows by falling score; rows whose label is unknown come last and count for nothing."""

    columns: slice
    score_CN: NDArray[np.floating[Any]]  # falling over the known rows; meaningless behind them
    target_CN: NDArray[np.bool_]  # False behind the known rows
    tie_end_CN: NDArray[np.bool_]  # the last known row of each run of equal scores
    num_known_C: NDArray[np.int64]
    num_positives_C: NDArray[np.int64]
    order_CN: NDArray[np.int64]  # the row at each place


def ranked_blocks(
    score_NK: NDArray[np.floating[Any]], target_NK: NDArray[np.bool_], mask_NK: NDArray[np.bool_]
) -> Iterator[Ranked]:
    """Yield all heads, some at a time, in column order. The arrays must have passed `check_targets`."""
    num_rows, num_heads = score_NK.shape
    step = max(1, BLOCK_VALUES // max(1, num_rows))
    for start in range(0, num_heads, step):
        columns = slice(start, min(start + step, num_heads))
        known_CN = mask_NK[:, columns].T
        # Adding 0 turns -0.0 into 0.0. Unknown rows sort behind every finite score.
        key_CN = np.where(known_CN, 0.0 - score_NK[:, columns].T, score_NK.dtype.type(np.inf))
        order_CN = np.argsort(key_CN, axis=1)
        key_CN = np.take_along_axis(key_CN, order_CN, axis=1)
        target_CN = np.take_along_axis(target_NK[:, columns].T & known_CN, order_CN, axis=1)
        num_known_C = known_CN.sum(axis=1, dtype=np.int64)
        tie_end_CN = np.empty(key_CN.shape, dtype=np.bool_)
        if num_rows:
            tie_end_CN[:, :-1] = key_CN[:, :-1] != key_CN[:, 1:]
            tie_end_CN[:, -1] = True
            tie_end_CN &= np.arange(num_rows) < num_known_C[:, None]
        yield Ranked(columns, -key_CN, target_CN, tie_end_CN, num_known_C, target_CN.sum(axis=1, dtype=np.int64), order_CN)
