"""Which classes are taken for which, and on what rows the model errs most. Knows no pages.

N = rows, K = heads, A = pairs of a row and one of its classes, H = heads shown, P = pairs
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import DecisionPolicy
from ovr.decision.decide import abstains, labels_decided

Bool = NDArray[np.bool_]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BLOCK_VALUES = 1 << 22  # rows times heads that are looked at together
MAX_OF_CLASS = 3  # examples with the same class as their worst


@dataclass(frozen=True, slots=True)
class Confused:
    """How often class `given` of a row was missed and class `taken`, which the row does not have, was decided on instead.

    `taken` is K where nothing was decided on in its place.
    """

    given_P: I64
    taken_P: I64
    num_rows_P: I64
    num_given_K: I64  # rows that are known to have the class
    num_found_K: I64  # of these, rows on which it was decided on

    def largest(self, most: int) -> list[tuple[int, int, int]]:
        """Return (given, taken, rows) of the most frequent pairs of two classes, most frequent first."""
        pairs = zip(self.given_P.tolist(), self.taken_P.tolist(), self.num_rows_P.tolist(), strict=True)
        between = [pair for pair in pairs if pair[1] < len(self.num_given_K)]
        return sorted(between, key=lambda pair: (-pair[2], pair[0], pair[1]))[:most]

    def part(self, most: int) -> tuple[I64, NDArray[np.int64]]:
        """Return the columns (H,) of the classes that are confused most, at most `most` and in column order, and their counts.

        The counts (H, H + 2) are rows with the given class by what was decided on: the classes shown, any other class, none.
        """
        num_heads = len(self.num_given_K)
        chosen: dict[int, None] = {}
        for given, taken, _ in self.largest(len(self.given_P)) if num_heads > most else []:
            if len(chosen | {given: None, taken: None}) <= most:
                chosen |= {given: None, taken: None}
        column_H = np.array(sorted(chosen) if num_heads > most else range(num_heads), np.int64)
        place_K1 = np.full(num_heads + 1, len(column_H))
        place_K1[column_H] = np.arange(len(column_H))
        place_K1[num_heads] = len(column_H) + 1
        count_HH = np.zeros((len(column_H) + 1, len(column_H) + 2), np.int64)
        count_HH[np.arange(len(column_H)), np.arange(len(column_H))] = self.num_found_K[column_H]
        np.add.at(count_HH, (np.minimum(place_K1[self.given_P], len(column_H)), place_K1[self.taken_P]), self.num_rows_P)
        return column_H, count_HH[: len(column_H)]


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


def confused(prob_NK: NDArray[Any], decided_NK: Bool, target_NK: Bool, mask_NK: Bool) -> Confused:
    """Return the mistakes, one for each known class of a row that was not decided on.

    It counts for the most probable class that the row is known not to have, if that was decided on, and for none otherwise. With
    one class a row and argmax this is the usual confusion matrix without its diagonal.
    """
    num_rows, num_heads = prob_NK.shape
    pair_count: dict[int, int] = {}
    step = max(1, BLOCK_VALUES // num_heads)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        target_BK = target_NK[rows] & mask_NK[rows]
        wrong_BK = decided_NK[rows] & ~target_NK[rows] & mask_NK[rows]
        score_BK = np.where(wrong_BK, prob_NK[rows], -1.0)
        taken_B = np.where(wrong_BK.any(axis=1), score_BK.argmax(axis=1), num_heads)
        row_A, given_A = np.nonzero(target_BK & ~decided_NK[rows])
        for key, count in zip(*np.unique(given_A * (num_heads + 1) + taken_B[row_A], return_counts=True), strict=True):
            pair_count[int(key)] = pair_count.get(int(key), 0) + int(count)
    key_P = np.array(sorted(pair_count), np.int64)
    known_NK = target_NK & mask_NK
    return Confused(
        key_P // (num_heads + 1),
        key_P % (num_heads + 1),
        np.array([pair_count[int(key)] for key in key_P], np.int64),
        known_NK.sum(axis=0),
        (known_NK & decided_NK).sum(axis=0),
    )


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
