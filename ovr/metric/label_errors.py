"""Labels that are likely wrong, by confident learning (Northcutt, Jiang and Chuang 2021). Knows probabilities, not models.

A row counts as one of class k, whatever its label, where its probability of k is at least what the rows with label k have on
average. Where that says another class than the label, and the probability agrees, the label is likely wrong. Probabilities must
come from models that did not see the row. It is what `cleanlab` finds with filter_by="confident_learning".

N = rows, K = classes, C = classes of one block, I = likely errors
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.targets import check_targets
from ovr.errors import DataError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SLACK = 1e-6  # of a probability at its threshold, and of one that is as large as the label's


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """Likely errors, the surest first: by the probability that what was given is right, then by row."""

    row_I: I64
    given_I: I64  # a column; of one class alone 1 where the label was positive, else 0
    suggested_I: I64  # likewise
    prob_I: F64  # that what was given is right

    def __len__(self) -> int:
        return len(self.row_I)


def one_class_errors(prob_NK: NDArray[np.floating[Any]], column_N: NDArray[np.integer]) -> LabelErrors:
    """Return the likely errors of rows that have one class each.

    Args:
        prob_NK: of each class, a row's sum being 1, of a model that did not see the row.
        column_N: the class that each row was given.

    Raises:
        DataError: shapes that do not belong together, probabilities that are none or do not sum to 1, a column outside them.
    """
    prob_NK, column_N = np.asarray(prob_NK, dtype=np.float64), np.asarray(column_N)
    if prob_NK.ndim != 2 or column_N.shape != prob_NK.shape[:1]:
        raise DataError(f"probabilities {prob_NK.shape} and labels {column_N.shape}; expected (rows, classes) and (rows,)")
    if not (prob_NK >= 0).all() or not np.allclose(prob_NK.sum(axis=1), 1, atol=1e-3):
        raise DataError("the probabilities of a row must be at least 0 and sum to 1")
    num_classes = prob_NK.shape[1]
    if ((column_N < 0) | (column_N >= num_classes)).any():
        raise DataError(f"a label is outside columns 0 to {num_classes - 1}")
    given_N = prob_NK[np.arange(len(prob_NK)), column_N]
    count_K = np.bincount(column_N, minlength=num_classes)
    with np.errstate(divide="ignore", invalid="ignore"):
        threshold_K = np.bincount(column_N, weights=given_N, minlength=num_classes) / count_K
    threshold_K = np.where(count_K > 0, np.maximum(threshold_K, SLACK), np.inf)  # nothing counts as a class without rows
    counts_NK = prob_NK >= threshold_K - SLACK
    num_N = counts_NK.sum(axis=1)
    guess_N = np.where(num_N > 1, prob_NK.argmax(axis=1), counts_NK.argmax(axis=1))
    favoured_NK = prob_NK.copy()
    favoured_NK[np.arange(len(prob_NK)), column_N] += SLACK
    wrong_N = (num_N > 0) & (guess_N != column_N) & (favoured_NK.argmax(axis=1) != column_N)
    return _ranked(np.flatnonzero(wrong_N), column_N, guess_N, given_N)


def each_class_errors(
    prob_NC: NDArray[np.floating[Any]], target_NC: NDArray[np.bool_], mask_NC: NDArray[np.bool_]
) -> list[LabelErrors]:
    """Return the likely errors of each class on its own, for rows with any number of classes: it is given, or it is not.

    Rows whose label is unknown are not looked at; a class that has positive or negative rows only has no errors.

    Args:
        prob_NC: of a model that did not see the row.

    Raises:
        DataError: shapes that differ, values that are none.
    """
    prob_NC, target_NC, mask_NC = check_targets(prob_NC, target_NC, mask_NC, score_name="probability")
    if ((prob_NC < 0) | (prob_NC > 1)).any():
        raise DataError("probabilities must be from 0 to 1")
    found = []
    for prob_N, target_N, mask_N in zip(prob_NC.T, target_NC.T, mask_NC.T, strict=True):
        known_R = np.flatnonzero(mask_N)
        prob_R2 = np.stack([1 - prob_N[known_R], prob_N[known_R]], axis=1)
        errors = one_class_errors(prob_R2, target_N[known_R].astype(np.int64))
        found.append(LabelErrors(known_R[errors.row_I], errors.given_I, errors.suggested_I, errors.prob_I))
    return found


def _ranked(row_I: I64, column_N: NDArray[np.integer], guess_N: I64, given_N: F64) -> LabelErrors:
    row_I = row_I[np.argsort(given_N[row_I], kind="stable")]
    return LabelErrors(row_I, column_N[row_I].astype(np.int64), guess_N[row_I], given_N[row_I])
