"""Which classes are taken for which: the most confused pairs, counted sparsely. Knows columns, not names.

A class that belongs to a row and is not decided on is missed; one that is decided on and does not belong is wrong. Of a row,

- instead: every missed class pairs with every wrong one. With one class a row it is the confusion matrix off its diagonal.
- beside: every class that belongs and is decided on pairs with every wrong one. It only occurs with several classes a row.
- nothing: a missed class of a row on which no wrong class is decided on: abstained, or below its threshold.

Unknown labels are in no pair. Rows on which more than `MAX_WRONG` classes are wrong are counted apart: what is decided there is no
confusion of two classes.

N = rows, K = heads, C = heads of one block, E = entries, P = pairs
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.metric.classification import check_decisions

I64 = NDArray[np.int64]

MAX_WRONG = 32


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of columns and the number of rows of each, the most frequent first; of equal ones the lower columns first."""

    true_P: I64
    decided_P: I64
    count_P: I64

    def __len__(self) -> int:
        return len(self.count_P)

    def top(self, num: int) -> "Pairs":
        """Return the first `num`."""
        return Pairs(self.true_P[:num], self.decided_P[:num], self.count_P[:num])


@dataclass(frozen=True, slots=True)
class Confusions:
    """What `ConfusedPairs` found."""

    instead: Pairs
    beside: Pairs
    nothing_K: I64  # rows on which the class is missed and nothing wrong is decided on
    num_left_out: int  # rows with more than `MAX_WRONG` wrong classes


class ConfusedPairs:
    """Collects decisions block by block of columns; what it keeps grows with the positives and the wrong decisions."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows, self._num_heads = num_rows, 0
        self._num_wrong_N = np.zeros(num_rows, dtype=np.int64)
        self._entries: dict[str, list[tuple[I64, I64]]] = {"missed": [], "found": [], "wrong": []}

    def update(self, label_NC: Any, target_NC: Any, mask_NC: Any) -> None:
        """Take the next heads, in column order.

        Raises:
            DataError: not (N, C), shapes that differ, or entries other than 0 and 1.
        """
        label_NC, target_NC, mask_NC = check_decisions(label_NC, target_NC, mask_NC)
        positive_NC, wrong_NC = target_NC & mask_NC, label_NC & ~target_NC & mask_NC
        self._num_wrong_N += wrong_NC.sum(axis=1)
        wrong_NC &= (self._num_wrong_N <= MAX_WRONG)[:, None]
        for name, flag_NC in (("missed", positive_NC & ~label_NC), ("found", positive_NC & label_NC), ("wrong", wrong_NC)):
            row_E, column_E = np.nonzero(flag_NC)
            self._entries[name].append((row_E, column_E + self._num_heads))
        self._num_heads += label_NC.shape[1]

    def result(self) -> Confusions:
        """Return the pairs of all heads."""
        left_out_N = self._num_wrong_N > MAX_WRONG
        (missed_row, missed), (found_row, found), (wrong_row, wrong) = (
            self._sorted(name, left_out_N) for name in ("missed", "found", "wrong")
        )
        alone_E = (self._num_wrong_N == 0)[missed_row]
        return Confusions(
            self._paired(missed_row, missed, wrong_row, wrong),
            self._paired(found_row, found, wrong_row, wrong),
            np.bincount(missed[alone_E], minlength=self._num_heads),
            int(left_out_N.sum()),
        )

    def _sorted(self, name: str, left_out_N: NDArray[np.bool_]) -> tuple[I64, I64]:
        row_E = np.concatenate([row for row, _ in self._entries[name]] or [np.zeros(0, np.int64)])
        column_E = np.concatenate([column for _, column in self._entries[name]] or [np.zeros(0, np.int64)])
        kept_E = ~left_out_N[row_E]
        order_E = np.argsort(row_E[kept_E], kind="stable")
        return row_E[kept_E][order_E], column_E[kept_E][order_E]

    def _paired(self, row_E: I64, column_E: I64, wrong_row: I64, wrong: I64) -> Pairs:
        """Return the pairs of each class in `column_E` with the wrong ones of its row."""
        num_N = np.bincount(wrong_row, minlength=self._num_rows)
        start_N = np.cumsum(num_N) - num_N
        num_E = num_N[row_E]
        within = np.arange(num_E.sum()) - np.repeat(np.cumsum(num_E) - num_E, num_E)
        decided = wrong[np.repeat(start_N[row_E], num_E) + within]
        code_P, count_P = np.unique(np.repeat(column_E, num_E) * self._num_heads + decided, return_counts=True)
        order_P = np.argsort(-count_P, kind="stable")
        true_P, decided_P = np.divmod(code_P[order_P], max(self._num_heads, 1))
        return Pairs(true_P, decided_P, count_P[order_P])


def confused_pairs(label_NK: Any, target_NK: Any, mask_NK: Any) -> Confusions:
    """Return what `ConfusedPairs` does of all heads at once.

    Raises:
        DataError: not (N, K), shapes that differ, or entries other than 0 and 1.
    """
    pairs = ConfusedPairs(len(label_NK))
    pairs.update(label_NK, target_NK, mask_NK)
    return pairs.result()
