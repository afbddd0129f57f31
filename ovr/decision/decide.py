"""The one function that turns probabilities into a decision, used by every runtime. Knows nothing of where they came from.

B = batch, K = heads, C = heads of one block, M = top-k

Probabilities, thresholds and the abstention limit are compared as float32, the type that a served model answers in: a threshold
of 0.7 takes a float32 probability of 0.7. Each row is decided on alone, so its outcome is the same in every batch.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ovr.core.artifact import DecisionPolicy
from ovr.core.prediction import Decision
from ovr.errors import ArtifactError, InputError

_ONE_BITS = np.float32(1).view(np.uint32)  # bits of float32 numbers from 0 on sort as they do, those of -0.0 and NaN after all


def decide(
    prob_BK: Any, *, threshold_K: ArrayLike, policy: DecisionPolicy, available_BK: NDArray[np.bool_] | None = None
) -> Decision:
    """Return the classes decided on, the rows abstained on and the top columns for probabilities in [0, 1].

    argmax decides on the most probable class, of equal ones that with the lower column, and looks at no threshold; multilabel on
    every class whose probability is at or above its threshold. A row whose highest probability is below `abstain_below` gets no
    class in either mode. `top_BM` has min(top_k, K) columns, and is there for abstained rows too.

    Args:
        available_BK: False where a class was not scored: it is not decided on whatever `prob_BK` holds there, and not among the
            top columns, which are -1 where a row has too few others; a row with none that is available is abstained on.

    Raises:
        InputError: not (B, K) with K >= 1, not numbers, NaN, or outside [0, 1].
        ArtifactError: not one threshold a head, or a threshold that is NaN.
    """
    if available_BK is not None:
        prob_BK = np.where(available_BK, prob_BK, np.float32(0))
    prob_BK = _checked(prob_BK)
    num_heads = prob_BK.shape[1]
    threshold_K = np.asarray(threshold_K, dtype=np.float32)
    if threshold_K.shape != (num_heads,) or np.isnan(threshold_K).any():
        raise ArtifactError(f"thresholds are {threshold_K} of shape {threshold_K.shape}; expected {num_heads} numbers, one a head")
    top_BM = _top(prob_BK, min(policy.top_k, num_heads), available_BK)
    highest_B = np.take_along_axis(prob_BK, top_BM[:, :1], axis=1)[:, 0]
    abstained_B = abstains(highest_B, policy)
    if available_BK is not None:
        abstained_B |= top_BM[:, 0] < 0
    label_BK = labels_decided(
        prob_BK, first_column=0, top_B=top_BM[:, 0], abstained_B=abstained_B, threshold_C=threshold_K, policy=policy
    )
    if available_BK is not None:
        label_BK &= available_BK
    return Decision(label_BK=label_BK, abstained_B=abstained_B, top_BM=top_BM)


def abstains(highest_B: NDArray[np.float32], policy: DecisionPolicy) -> NDArray[np.bool_]:
    """Return the rows (B,) that get no class, from the highest probability of each."""
    abstained_B: NDArray[np.bool_] = highest_B < np.float32(policy.abstain_below)
    return abstained_B


def labels_decided(
    prob_BC: NDArray[np.float32],
    *,
    first_column: int,
    top_B: NDArray[np.int64],
    abstained_B: NDArray[np.bool_],
    threshold_C: NDArray[np.float32],
    policy: DecisionPolicy,
) -> NDArray[np.bool_]:
    """Return the classes decided on (B, C) among consecutive columns, given the column of each row's highest probability of all."""
    if policy.mode == "multilabel":
        label_BC = prob_BC >= threshold_C
        label_BC[abstained_B] = False
        return label_BC
    label_BC = np.zeros(prob_BC.shape, bool)
    column_B = top_B - first_column
    row_P = np.flatnonzero(~abstained_B & (column_B >= 0) & (column_B < prob_BC.shape[1]))
    label_BC[row_P, column_B[row_P]] = True
    return label_BC


def _checked(prob_BK: Any) -> NDArray[np.float32]:
    array = np.asarray(prob_BK)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"probabilities have shape {array.shape} and dtype {array.dtype}; expected numbers (rows, heads)")
    if array.dtype == np.float32 and array.size and array.flags.c_contiguous and array.view(np.uint32).max() <= _ONE_BITS:
        return array  # nothing above 1 or below 0, no NaN and no -0.0: one look at all in place of four
    if len(array) and not (array.min() >= 0 and array.max() <= 1):  # of NaN neither is true
        row, column = (int(i) for i in np.argwhere(~((array >= 0) & (array <= 1)))[0])
        raise InputError(f"probability of row {row}, head column {column} is {array[row, column]}; expected 0 to 1")
    return array.astype(np.float32, copy=False) + np.float32(0)  # -0.0 becomes 0.0, whose bits sort below all others


def _top(prob_BK: NDArray[np.float32], num_top: int, available_BK: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Return the columns of the `num_top` highest probabilities, falling; ties by rising column; -1 for what is not available.

    The bits of a float32 from 0 on sort as the number does. With the column below them every key differs, so that a partial sort
    has one answer.
    """
    num_heads = prob_BK.shape[1]
    if num_top == 1 and available_BK is None:
        best_B1: NDArray[np.int64] = prob_BK.argmax(axis=1)[:, None]  # of equal ones the first
        return best_B1
    key_BK = prob_BK.view(np.uint32).astype(np.int64) << 32
    key_BK += np.arange(num_heads - 1, -1, -1)
    if available_BK is not None:
        key_BK[~available_BK] = -1
    if num_top < num_heads:
        key_BK = np.partition(key_BK, num_heads - num_top, axis=1)[:, num_heads - num_top :]
    key_BK.sort(axis=1)
    column_BM: NDArray[np.int64] = num_heads - 1 - (key_BK[:, ::-1] & 0xFFFFFFFF)
    if available_BK is not None:
        column_BM[key_BK[:, ::-1] < 0] = -1
    return column_BM
