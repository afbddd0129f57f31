"""Which split each row, or each group of rows, goes to, so that every class is spread in proportion. Knows no names of splits.

The first split is the one that is trained on: it has a row of every class that has any.

N = rows, K = heads, P = positives, G = groups, S = splits, E = pairs of a group and a class
"""

import heapq
from array import array

import numpy as np
from numpy.typing import NDArray

from ovr.data.entries import Entries

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


def spread_rows(positives: Entries, share_S: F64, *, num_heads: int, rng: np.random.Generator) -> I64:
    """Return the split of each row (N,) of multi-label data, by iterative stratification.

    Of the classes with rows left the rarest is taken first, and each of its rows goes where most of that class is still wanted,
    then where most rows are wanted, then at random (Sechidis, Tsoumakas and Vlahavas 2011, algorithm 1). A row whose going
    elsewhere would leave a class without a row in the first split goes there. Rows without a positive fill up what is wanted, at
    random.
    """
    num_rows, num_splits = len(positives), len(share_S)
    split_N = np.full(num_rows, -1, np.int64)
    tie_NS = rng.random((num_rows, num_splits))
    drawn_N = rng.permutation(num_rows)
    rank_N = np.argsort(drawn_N)
    left_K = np.bincount(positives.column_P, minlength=num_heads)
    # Plain numbers in the loop: indexing an array entry by entry takes several times as long.
    wanted_KS = array("d", (left_K[:, None] * share_S).ravel().tolist())
    wanted_S: list[float] = (num_rows * share_S).tolist()
    left: list[int] = left_K.tolist()
    in_first = bytearray(num_heads)
    heap = [(count, column) for column, count in enumerate(left) if count]
    heapq.heapify(heap)
    while heap:
        count, column = heapq.heappop(heap)
        if count != left[column]:  # out of date: it was pushed again with fewer
            continue
        row_E, _ = positives.of_columns(column, column + 1)
        row_E = row_E[split_N[row_E] < 0]
        touched = set()
        for row in row_E[np.argsort(rank_N[row_E])].tolist():
            columns = positives.column_P[positives.start_N1[row] : positives.start_N1[row + 1]].tolist()
            if any(left[k] == 1 and not in_first[k] for k in columns):
                split = 0
            else:
                tie_S, at = tie_NS[row], column * num_splits
                split = max(range(num_splits), key=lambda s: (wanted_KS[at + s], wanted_S[s], tie_S[s]))
            split_N[row] = split
            wanted_S[split] -= 1
            for k in columns:
                left[k] -= 1
                wanted_KS[k * num_splits + split] -= 1
                in_first[k] |= split == 0
            touched.update(columns)
        for k in touched:
            if left[k]:
                heapq.heappush(heap, (left[k], k))
    unlabelled_M = drawn_N[split_N[drawn_N] < 0]
    split_N[unlabelled_M] = np.repeat(np.arange(num_splits), _shares_of(len(unlabelled_M), np.maximum(wanted_S, 0)))
    return split_N


def spread_groups(group_N: I64, positives: Entries, share_S: F64, *, num_heads: int, rng: np.random.Generator) -> I64:
    """Return the split of each group (G,), where row n is of group `group_N[n]` in 0 .. G - 1 and every group has a row.

    First, from the rarest class on, the smallest group of each class that the first split lacks goes there. The other groups, the
    largest first, go where the squared error of the shares grows least: of the rows, and on average of the group's classes. No
    split stays empty while there is a group for it.
    """
    num_rows, num_splits = len(group_N), len(share_S)
    size_G = np.bincount(group_N)
    num_groups = len(size_G)
    pair_E, count_E = np.unique(group_N[positives.row_P] * num_heads + positives.column_P, return_counts=True)
    group_E, column_E = pair_E // num_heads, pair_E % num_heads
    start_G1 = np.searchsorted(group_E, np.arange(num_groups + 1))
    share_E = count_E / np.bincount(positives.column_P, minlength=num_heads)[column_E]
    has_KS, has_S = np.zeros((num_heads, num_splits)), np.zeros(num_splits)
    split_G = np.full(num_groups, -1, np.int64)
    drawn_G = rng.permutation(num_groups)

    def put(group: int, split: int) -> None:
        here = slice(start_G1[group], start_G1[group + 1])
        split_G[group] = split
        has_KS[column_E[here], split] += share_E[here]
        has_S[split] += size_G[group] / num_rows

    by_column_E = np.lexsort((drawn_G[group_E], size_G[group_E], column_E))
    first_K1 = np.searchsorted(column_E[by_column_E], np.arange(num_heads + 1))
    for column in np.argsort(np.diff(first_K1), kind="stable"):
        start, stop = first_K1[column], first_K1[column + 1]
        if stop > start and not has_KS[column, 0]:
            put(int(group_E[by_column_E[start]]), 0)
    waiting_M = np.lexsort((drawn_G, -size_G))
    waiting_M = waiting_M[split_G[waiting_M] < 0]
    for done, group in enumerate(waiting_M.tolist()):
        here = slice(start_G1[group], start_G1[group + 1])
        # (has + more - share)^2 - (has - share)^2
        more, more_E = size_G[group] / num_rows, share_E[here, None]
        growth_S = more * (2 * (has_S - share_S) + more)
        if here.stop > here.start:
            growth_S = growth_S + (more_E * (2 * (has_KS[column_E[here]] - share_S) + more_E)).mean(axis=0)
        empty_S = has_S == 0
        if len(waiting_M) - done <= empty_S.sum():
            growth_S = np.where(empty_S, growth_S, np.inf)
        put(group, int(np.argmin(growth_S)))
    return split_G


def _shares_of(num_rows: int, weight_S: NDArray[np.float64]) -> I64:
    """Return whole numbers (S,) in proportion to the weights that sum to `num_rows`, by largest remainder."""
    total = weight_S.sum()
    exact_S = num_rows * (weight_S / total if total > 0 else np.full(len(weight_S), 1 / len(weight_S)))
    count_S: I64 = np.floor(exact_S).astype(np.int64)
    count_S[np.argsort(count_S - exact_S, kind="stable")[: num_rows - count_S.sum()]] += 1
    return count_S
