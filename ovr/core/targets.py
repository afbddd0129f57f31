"""Partly known targets: the check of scores, targets and mask that belong together. Knows nothing of what is made of them.

N = rows, K = heads
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import DataError


def check_targets(
    score_NK: Any, target_NK: Any, mask_NK: Any, *, score_name: str
) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the three arrays, all (N, K): scores as they are in float32 or float64, target and mask as bool.

    Where mask is False the label is unknown and the target's value is not looked at. Scores must be finite there too: a NaN says
    that the model is broken, whatever is known of the row.

    Args:
        score_name: what messages call the scores, such as "logit".

    Raises:
        DataError: not (N, K) with K >= 1, shapes that differ, scores that are not numbers or not finite (naming row and column),
            targets or mask that are neither bool nor 0 and 1.
    """
    score_NK = check_scores(score_NK, score_name=score_name)
    mask_NK = check_flags(mask_NK, name="mask", shape_NK=score_NK.shape)
    return score_NK, check_flags(target_NK, name="target", shape_NK=score_NK.shape, known_NK=mask_NK), mask_NK


def check_probs(
    prob_NK: Any, target_NK: Any, mask_NK: Any
) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return what `check_targets` does for probabilities.

    Raises:
        DataError: as `check_targets`, and probabilities outside [0, 1] (naming row and column).
    """
    prob_NK, target_NK, mask_NK = check_targets(prob_NK, target_NK, mask_NK, score_name="probability")
    outside = (prob_NK < 0) | (prob_NK > 1)
    if outside.any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        raise DataError(f"probability of row {row}, head column {column} is {prob_NK[row, column]}; expected 0 to 1")
    return prob_NK, target_NK, mask_NK


def check_scores(score_NK: Any, *, score_name: str) -> NDArray[np.floating[Any]]:
    """Return finite scores (N, K) in float32 or float64.

    Raises:
        DataError: not (N, K) with K >= 1, not numbers, or not finite (naming row and column).
    """
    array = np.asarray(score_NK)
    if array.dtype.kind not in "fiu":
        raise DataError(f"{score_name} must be numbers, got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[1] == 0:
        raise DataError(f"{score_name} has shape {array.shape}; expected (rows, heads) with at least one head")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise DataError(
            f"{score_name} of row {row}, head column {column} is {array[row, column]}; every one must be finite "
            f"({int((~finite).sum())} of {finite.size} are not)"
        )
    return array


def check_flags(
    flag_NK: Any, *, name: str, shape_NK: tuple[int, ...], known_NK: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Return `flag_NK`, bool or 0 and 1, as bool. Entries where `known_NK` is False are not looked at.

    Raises:
        DataError: another shape, not numbers, or an entry other than 0 and 1 (naming row and column).
    """
    array = np.asarray(flag_NK)
    if array.shape != shape_NK:
        raise DataError(f"{name} has shape {array.shape}; expected {shape_NK}")
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name} must be bool or 0 and 1, got dtype {array.dtype}")
    wrong = (array != 0) & (array != 1)
    if known_NK is not None:
        wrong &= known_NK
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise DataError(f"{name} of row {row}, head column {column} is {array[row, column]}; expected 0 or 1")
    return np.asarray(array == 1)
