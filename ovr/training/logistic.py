"""L2-regularised logistic regression of all heads at once on given features. Knows arrays, not models, files or configuration.

N = rows, D = features, E = D + 1 (features and intercept), K = heads, C = heads of one block

A head minimises what scikit-learn's LogisticRegression does, the intercept b apart from the penalty:

    C sum_n weight_n softplus(-y_n (w . x_n + b)) + |w|^2 / 2,    y_n = 1 or -1, unknown rows left out

`lbfgs` solves a block of heads; here is what comes before and after it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ovr.core.counts import ClassCounts
from ovr.core.targets import check_flags
from ovr.errors import ConfigError, DataError
from ovr.training.lbfgs import RIDGE, Rows, block_of, solve

FitStatus = Literal["ok", "no_rows", "one_class", "not_converged"]
F64 = NDArray[np.float64]

BLOCK_VALUES = 1 << 23  # of (C, N) at a time: some ten such arrays are held, 0.5 GB in float64
MAX_FEATURE = 1e15  # sums of squares must stay within float32


@dataclass(frozen=True, slots=True)
class LogisticFit:
    """Heads in column order, float64, and how well each was solved."""

    weight_KD: F64
    bias_K: F64
    status: list[FitStatus]
    num_steps_K: NDArray[np.int64]
    max_abs_grad_K: F64  # of the objective over C times the sum of weights, as scikit-learn stops on; NaN where nothing was solved


def fit_logistic(
    feature_ND: NDArray[np.floating[Any]],
    target_NK: NDArray[Any],
    mask_NK: NDArray[Any],
    *,
    C: float,
    tol: float,
    max_iter: int,
    pos_weight_K: NDArray[Any] | None = None,
    device: str = "cpu",
) -> LogisticFit:
    """Return all heads' optima; where the mask is False the target is unknown to the head, and the row is not there for it.

    A head without known rows gets weight and bias 0; one whose known rows are of one class has no finite optimum, and gets weight 0
    and the log-odds of its (positives + 1/2) to its (negatives + 1/2), without a positive weight. Heads are solved in blocks, in
    bounded memory. The same arguments give the same bits on the same machine with the same number of threads.

    Args:
        C: inverse strength of the penalty, as in scikit-learn.
        tol: a head is done when no component of its gradient, a mean over its weighted rows, is larger; scikit-learn's rule.
        max_iter: steps after which a head is given back as it is, "not_converged".
        pos_weight_K: the weight of a head's positive rows; 1 by default.

    Raises:
        ConfigError: as `check_settings`.
        DataError: shapes that do not belong together, features that are not finite or above 1e15 (naming row and column), targets
            or mask other than 0 and 1, a positive weight that is not above 0.
    """
    target_NK, mask_NK = _checked_targets(feature_ND, target_NK, mask_NK)
    num_positives_K = target_NK.sum(axis=0)
    return fit_logistic_blocks(
        feature_ND,
        ClassCounts(num_positives_K, mask_NK.sum(axis=0) - num_positives_K),
        lambda columns: (target_NK[:, columns], mask_NK[:, columns]),
        C=C,
        tol=tol,
        max_iter=max_iter,
        pos_weight_K=pos_weight_K,
        device=device,
    )


def fit_logistic_blocks(
    feature_ND: NDArray[np.floating[Any]],
    counts: ClassCounts,
    labels_of: Callable[[NDArray[np.int64]], tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    *,
    C: float,
    tol: float,
    max_iter: int,
    pos_weight_K: NDArray[Any] | None = None,
    device: str = "cpu",
) -> LogisticFit:
    """Return what `fit_logistic` does, of targets that are never all there at once.

    Args:
        counts: of the positive and negative rows of each head.
        labels_of: gives target and mask (N, C), without a target outside the mask, of some columns, ascending; `block_heads` of
            them at the most.
    """
    check_settings(C=C, tol=tol, max_iter=max_iter)
    num_positives_K, num_negatives_K = counts.num_positives_K, counts.num_negatives_K
    feature_ND, pos_weight_K = _checked_features(feature_ND), _checked_weights(pos_weight_K, len(num_positives_K))
    num_known_K = num_positives_K + num_negatives_K
    num_heads = len(num_known_K)
    weight_KD = np.zeros((num_heads, feature_ND.shape[1]))
    bias_K = np.log((num_positives_K + 0.5) / (num_negatives_K + 0.5))
    num_steps_K, max_abs_grad_K = np.zeros(num_heads, dtype=np.int64), np.full(num_heads, np.nan)
    solvable_K = (num_positives_K > 0) & (num_negatives_K > 0)
    if solvable_K.any():
        total_K = num_negatives_K + pos_weight_K * num_positives_K  # the sum of weights
        effective_K = (num_negatives_K * pos_weight_K * num_positives_K / np.maximum(total_K, 1))[solvable_K]
        rows = Rows.centred(feature_ND, RIDGE / (C * float(np.median(effective_K))), device)
        for columns in _blocks(np.flatnonzero(solvable_K), len(feature_ND)):
            heads, start_CE = block_of(rows, *labels_of(columns), pos_weight_K[columns], C)
            w_CE, steps_C, grad_C = solve(rows, heads, start_CE, tol=tol, max_iter=max_iter)
            weight_KD[columns] = w_CE[:, :-1].cpu().numpy()
            bias_K[columns] = (w_CE[:, -1] - w_CE[:, :-1] @ rows.mean_D).cpu().numpy()
            num_steps_K[columns], max_abs_grad_K[columns] = steps_C.cpu().numpy(), grad_C.cpu().numpy()
    statuses: list[FitStatus] = [
        "no_rows" if known == 0 else "one_class" if not solvable else "ok" if grad <= tol else "not_converged"
        for known, solvable, grad in zip(num_known_K, solvable_K, max_abs_grad_K, strict=True)
    ]
    return LogisticFit(weight_KD, bias_K, statuses, num_steps_K, max_abs_grad_K)


def check_settings(*, C: float, tol: float, max_iter: int) -> None:
    """Check the settings of `fit_logistic`.

    Raises:
        ConfigError: C or tol that is not a finite number above 0, max_iter that is not a whole number above 0.
    """
    for name, value in (("C", C), ("tol", tol), ("max_iter", max_iter)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not (np.isfinite(value) and value > 0):
            raise ConfigError(f"solver.{name} must be a finite number above 0, got {value!r}")
    if not isinstance(max_iter, int):
        raise ConfigError(f"solver.max_iter must be a whole number, got {max_iter}")


def _checked_features(feature_ND: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    feature_ND = np.asarray(feature_ND)
    usable_ND = np.abs(feature_ND) <= MAX_FEATURE
    if not usable_ND.all():
        row, column = (int(i) for i in np.argwhere(~usable_ND)[0])
        raise DataError(
            f"feature {column} of row {row} is {feature_ND[row, column]}; expected finite ones of at most {MAX_FEATURE:g}"
        )
    return feature_ND


def _checked_targets(feature_ND: Any, target_NK: NDArray[Any], mask_NK: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    shape, shape_ND = np.shape(target_NK), np.shape(feature_ND)
    if len(shape_ND) != 2 or len(shape) != 2 or shape[0] != shape_ND[0]:
        raise DataError(f"features have shape {shape_ND} and targets {shape}; expected (rows, features) and (rows, heads)")
    mask_NK = check_flags(mask_NK, name="mask", shape_NK=shape)
    return check_flags(target_NK, name="target", shape_NK=shape, known_NK=mask_NK) & mask_NK, mask_NK


def _checked_weights(pos_weight_K: NDArray[Any] | None, num_heads: int) -> F64:
    weight_K = np.ones(num_heads) if pos_weight_K is None else np.asarray(pos_weight_K, dtype=np.float64)
    if weight_K.shape != (num_heads,) or not (np.isfinite(weight_K) & (weight_K > 0)).all():
        raise DataError(f"positive weights must be {num_heads} finite numbers above 0, got {weight_K}")
    return weight_K


def _blocks(columns: NDArray[np.intp], num_rows: int) -> Iterator[NDArray[np.intp]]:
    size = block_heads(num_rows)
    for start in range(0, len(columns), size):
        yield columns[start : start + size]


def block_heads(num_rows: int) -> int:
    """Return how many heads are solved together."""
    return max(1, BLOCK_VALUES // num_rows)
