"""Which classes are taken for which, and on what rows the model errs most. Knows no pages.

N = rows, K = heads, H = heads shown, P = pairs
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import DecisionPolicy
from ovr.decision.decide import abstains, labels_decided
from ovr.metric.classification import confusion
from ovr.metric.pairs import Pairs, confused_pairs

Bool = NDArray[np.bool_]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BLOCK_VALUES = 1 << 22  # rows times heads that are looked at together
MAX_OF_CLASS = 3  # examples with the same class as their worst


@dataclass(frozen=True, slots=True)
class Confused:
    """The pairs that `ovr.metric.pairs` counts, and what else the map of them takes.

    `instead` are rows on which class `true` was missed and `decided`, which the row does not have, was decided on. A row with
    several of either is in several pairs.
    """

    instead: Pairs
    nothing_K: I64  # rows on which the class was missed and nothing wrong decided on
    num_given_K: I64  # rows that are known to have the class
    num_found_K: I64  # of these, rows on which it was decided on
    num_left_out: int  # rows that are in no pair, too many classes being wrong

    def part(self, most: int) -> tuple[I64, I64]:
        """Return the columns (H,) of the classes that are confused most, at most `most` and in column order, and their counts.

        The counts (H, H + 2) are rows with the given class by what was decided on: itself, the other classes shown in its place,
        any other class, none.
        """
        num_heads = len(self.num_given_K)
        pairs = zip(self.instead.true_P.tolist(), self.instead.decided_P.tolist(), strict=True)
        chosen: dict[int, None] = {}
        for given, taken in pairs if num_heads > most else ():
            if len(chosen | {given: None, taken: None}) <= most:
                chosen |= {given: None, taken: None}
        column_H = np.array(sorted(chosen) if num_heads > most else range(num_heads), np.int64)
        num_shown = len(column_H)
        place_K = np.full(num_heads, num_shown)
        place_K[column_H] = np.arange(num_shown)
        count_HH = np.zeros((num_shown + 1, num_shown + 2), np.int64)
        np.add.at(count_HH, (place_K[self.instead.true_P], place_K[self.instead.decided_P]), self.instead.count_P)
        count_HH[np.arange(num_shown), np.arange(num_shown)] = self.num_found_K[column_H]
        count_HH[:num_shown, -1] = self.nothing_K[column_H]
        return column_H, count_HH[:num_shown]


@dataclass(frozen=True, slots=True)
class Example:
    """A row on which one known label had little probability."""

    row: int
    column: int  # the class that the model was most wrong about
    prob: float  # that the model gave to what is true of this class
    given: tuple[int, ...]
    decided: tuple[int, ...]
    top: tuple[tuple[int, float], ...]  # classes by falling probability


def decisions(prob_NK: NDArray[Any], threshold_K: F64, policy: DecisionPolicy) -> Bool:
    """Return the classes (N, K) that the policy decides on, compared as float32 like every decision."""
    prob_NK = prob_NK.astype(np.float32)
    top_N = prob_NK.argmax(axis=1)
    return labels_decided(
        prob_NK,
        first_column=0,
        top_B=top_N,
        abstained_B=abstains(prob_NK.max(axis=1), policy),
        threshold_C=threshold_K.astype(np.float32),
        policy=policy,
    )


def confused(decided_NK: Bool, target_NK: Bool, mask_NK: Bool) -> Confused:
    """Return what `ovr.metric.pairs.confused_pairs` finds, with the counts of each class."""
    found, counts = confused_pairs(decided_NK, target_NK, mask_NK), confusion(decided_NK, target_NK, mask_NK)
    return Confused(found.instead, found.nothing_K, counts.num_positives_K, counts.true_positives_K, found.num_left_out)


def worst_examples(
    prob_NK: NDArray[Any], decided_NK: Bool, target_NK: Bool, mask_NK: Bool, *, most: int, num_top: int = 3
) -> list[Example]:
    """Return the rows with the least probability of something that is known of them, at most `MAX_OF_CLASS` a class."""
    num_rows, num_heads = prob_NK.shape
    least_N, column_N = np.empty(num_rows), np.empty(num_rows, np.int64)
    step = max(1, BLOCK_VALUES // num_heads)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        true_BK = np.where(target_NK[rows], prob_NK[rows], 1.0 - prob_NK[rows])
        true_BK = np.where(mask_NK[rows], true_BK, np.inf)
        column_N[rows] = true_BK.argmin(axis=1)
        least_N[rows] = true_BK.min(axis=1)
    examples: list[Example] = []
    num_of_class: dict[int, int] = {}
    for row in np.argsort(least_N, kind="stable").tolist():
        column = int(column_N[row])
        if len(examples) == most or least_N[row] >= 0.5:
            break
        num_of_class[column] = num_of_class.get(column, 0) + 1
        if num_of_class[column] > MAX_OF_CLASS:
            continue
        top_M = np.argsort(-prob_NK[row], kind="stable")[:num_top]
        examples.append(
            Example(
                row,
                column,
                float(least_N[row]),
                tuple(np.flatnonzero(target_NK[row] & mask_NK[row]).tolist()),
                tuple(np.flatnonzero(decided_NK[row]).tolist()),
                tuple((int(k), float(prob_NK[row, k])) for k in top_M),
            )
        )
    return examples


def thinned(num: int, most: int) -> I64:
    """Return at most `most` places from 0 to `num` - 1, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, max(0, num - 1), min(num, most)).round().astype(np.int64))
