"""Isotonic regression of 0 and 1 for many heads at once. Knows nothing of logits beyond their order.

Pool adjacent violators (Ayer et al. 1955; Barlow et al. 1972): neighbours whose means do not rise become one block, until all
rise. Every pass here pools all runs of such neighbours in all heads; a run belongs to one block of the optimum whole, whatever the
order of pooling. Means are compared as products of counts, without rounding.

G = groups of equal scores, of all heads one after the other; J = blocks
"""

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MAX_PASSES = 64  # some 10 are the rule; rows made for it need as many as there are groups, and those heads are done in turn


def pooled(head_G: I64, positives_G: F64, rows_G: F64) -> tuple[I64, F64]:
    """Return the first group (J,) of every block and the block's mean (J,), rising within each head.

    Args:
        head_G: which head each group is of, never falling.
        positives_G, rows_G: weights of the positives and of all rows; rows above 0.
    """
    first_J = np.arange(len(head_G))
    positives_J, rows_J = positives_G, rows_G
    for _ in range(MAX_PASSES):
        falls = _falls(head_G[first_J], positives_J, rows_J)
        if not falls.any():
            break
        start = np.flatnonzero(np.concatenate([[True], ~falls]))
        first_J = first_J[start]
        positives_J, rows_J = np.add.reduceat(positives_J, start), np.add.reduceat(rows_J, start)
    else:
        keep = _in_turn(head_G[first_J], positives_J, rows_J)
        first_J = first_J[keep]
        start = np.flatnonzero(keep)
        positives_J, rows_J = np.add.reduceat(positives_J, start), np.add.reduceat(rows_J, start)
    return first_J, positives_J / rows_J


def _falls(head_J: I64, positives_J: F64, rows_J: F64) -> NDArray[np.bool_]:
    """Return which blocks (J - 1,) are followed by one of the same head whose mean is not above theirs."""
    falls: NDArray[np.bool_] = (head_J[1:] == head_J[:-1]) & (positives_J[:-1] * rows_J[1:] >= positives_J[1:] * rows_J[:-1])
    return falls


def _in_turn(head_J: I64, positives_J: F64, rows_J: F64) -> NDArray[np.bool_]:
    """Return which blocks begin one of the optimum, found from the left with a stack."""
    keep = np.ones(len(head_J), dtype=np.bool_)
    stack: list[tuple[int, int, float, float]] = []
    for index, (head, positives, rows) in enumerate(zip(head_J.tolist(), positives_J.tolist(), rows_J.tolist(), strict=True)):
        block = (index, head, positives, rows)
        while stack and stack[-1][1] == block[1] and stack[-1][2] * block[3] >= block[2] * stack[-1][3]:
            keep[block[0]] = False
            last = stack.pop()
            block = (last[0], head, last[2] + block[2], last[3] + block[3])
        stack.append(block)
    return keep
