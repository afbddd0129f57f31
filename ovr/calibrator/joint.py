"""Calibrations that make the heads rank against each other: one scale and bias a head, fitted on which class a row has.

Knows nothing of thresholds, nor how logits are made.

N = rows, K = heads
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import sigmoid, softplus
from ovr.core.artifact import Calibration, CalibrationStatus
from ovr.core.targets import check_targets
from ovr.errors import ConfigError, DataError

F64 = NDArray[np.float64]
MIN_SCALE = 1e-3  # a head's order is kept
MAX_STEPS = 200
MEMORY = 10  # steps that L-BFGS remembers
# A compromise (benchmarks/decisions.py, on rows that were not fitted): argmax accuracy at strength 3, 10, 30, 100 is 0.899, 0.891,
# 0.883, 0.877 for letter's heads (800 rows) put out of rank at random, and 0.870, 0.874, 0.877, 0.879 for clinc150's, which 1,500
# rows of 150 classes cannot improve on (0.879 without any).
STRENGTH = 10.0


def fit_joint(logit_NK: Any, target_NK: Any, mask_NK: Any, *, strength: float) -> tuple[F64, F64]:
    """Return the scale and bias (K,) of every head, fitted together.

    With u_k = scale_k z_k + bias_k, rows of one class each have the likelihood softmax(u): what K independent sigmoids say given
    that exactly one of them is positive, as the odds of head k are exp(u_k). Its negative logarithm, summed over the rows, plus
    strength / 2 times the squared distance of (log scale, bias) from one scale and bias shared by all heads is brought to its
    minimum (L-BFGS; Nocedal 1980). Then one scale above 0 and one bias for all heads, which change no row's order of classes, are
    fitted to the likelihood of all K sigmoids: the softmax says nothing of how probable it is that a row has none of the classes.

    Rows without a class and rows with unknown labels count in the second step alone, there for their known labels.

    Raises:
        ConfigError: `strength` is not above 0.
        DataError: a row with several classes (named), no row with one, logits that are not finite, shapes that differ, targets or
            mask other than 0 and 1.
    """
    _check(strength)
    logit_NK, target_NK, mask_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
    positive_NK = target_NK & mask_NK
    one_N = _rows_of_one_class(positive_NK.sum(axis=1), mask_NK.all(axis=1))
    z_NK = logit_NK[one_N].astype(np.float64)
    shared, _ = _level(logit_NK.astype(np.float64), target_NK, mask_NK)
    num_heads = z_NK.shape[1]
    start = np.concatenate([np.full(num_heads, np.log(shared)), np.zeros(num_heads)])  # a bias shared by all changes no softmax
    found = _minimise(_softmax_objective(z_NK, np.argmax(positive_NK[one_N], axis=1), start, strength), start)
    scale_K, bias_K = np.exp(found[:num_heads]), found[num_heads:]
    level, shift = _level(logit_NK * scale_K + bias_K, target_NK, mask_NK)
    return level * scale_K, level * bias_K + shift


def _rows_of_one_class(num_classes_N: NDArray[np.int64], known_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if (num_classes_N > 1).any():
        row = int(np.argmax(num_classes_N > 1))
        raise DataError(
            f"calibrator=joint is for rows of one class each; calibration row {row} has {num_classes_N[row]} "
            f"({int((num_classes_N > 1).sum())} of {len(num_classes_N)} rows have several)"
        )
    one_N: NDArray[np.bool_] = (num_classes_N == 1) & known_N
    if not one_N.any():
        raise DataError("calibrator=joint needs calibration rows of one class each whose labels are all known; there is none")
    return one_N


def _softmax_objective(z_NK: F64, class_N: NDArray[np.int64], start: F64, strength: float) -> Callable[[F64], tuple[float, F64]]:
    num_heads, rows_N = z_NK.shape[1], np.arange(len(z_NK))

    def objective(theta: F64) -> tuple[float, F64]:
        log_scale_K, bias_K = theta[:num_heads], theta[num_heads:]
        scale_K = np.exp(log_scale_K)
        u_NK = z_NK * scale_K + bias_K
        u_NK -= u_NK.max(axis=1, keepdims=True)
        own_N = u_NK[rows_N, class_N]
        np.exp(u_NK, out=u_NK)
        total_N = u_NK.sum(axis=1)
        value = float((np.log(total_N) - own_N).sum())
        u_NK /= total_N[:, None]
        u_NK[rows_N, class_N] -= 1.0
        away = theta - start
        value += 0.5 * strength * float(away @ away)
        gradient = np.concatenate([np.einsum("nk,nk->k", u_NK, z_NK) * scale_K, u_NK.sum(axis=0)]) + strength * away
        return value, gradient

    return objective


def _minimise(objective: Callable[[F64], tuple[float, F64]], theta: F64) -> F64:
    """Return where a smooth function is least, by L-BFGS with halved steps (Armijo's condition)."""
    value, gradient = objective(theta)
    steps: list[tuple[F64, F64]] = []
    tolerance = 1e-6 * max(1.0, float(np.abs(gradient).max()))
    for _ in range(MAX_STEPS):
        if np.abs(gradient).max() <= tolerance:
            break
        direction = -_times_inverse_hessian(gradient, steps)
        slope = float(direction @ gradient)
        length = 1.0 if steps else min(1.0, 1.0 / float(np.linalg.norm(gradient)))
        while True:
            moved = theta + length * direction
            new_value, new_gradient = objective(moved)
            if new_value <= value + 1e-4 * length * slope or length < 1e-12:
                break
            length *= 0.5
        if length < 1e-12:  # within rounding of the minimum
            break
        step, change = moved - theta, new_gradient - gradient
        if float(step @ change) > 1e-12 * float(change @ change):
            steps = [*steps[-MEMORY + 1 :], (step, change)]
        theta, value, gradient = moved, new_value, new_gradient
    return theta


def _times_inverse_hessian(gradient: F64, steps: list[tuple[F64, F64]]) -> F64:
    """Return L-BFGS's estimate of the inverse Hessian times the gradient (the two loops of Nocedal 1980)."""
    q, parts = gradient.copy(), []
    for step, change in reversed(steps):
        along = float(step @ q) / float(step @ change)
        q -= along * change
        parts.append(along)
    if steps:
        step, change = steps[-1]
        q *= float(step @ change) / float(change @ change)
    for (step, change), along in zip(steps, reversed(parts), strict=True):
        q += (along - float(change @ q) / float(step @ change)) * step
    return q


def _level(u_NK: F64, target_NK: NDArray[np.bool_], mask_NK: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the one scale (at least `MIN_SCALE`) and bias of greatest likelihood of the known labels of all heads (Newton)."""
    u, target = u_NK[mask_NK], target_NK[mask_NK].astype(np.float64)

    def value(a: float, b: float) -> float:
        return float((softplus(a * u + b) - target * (a * u + b)).sum())

    a, b = 1.0, 0.0
    before = value(a, b)
    for _ in range(50):
        prob = sigmoid(a * u + b)
        gap, weight = prob - target, prob * (1 - prob)
        gradient = np.array([gap @ u, gap.sum()])
        hessian = np.array([[weight @ (u * u), weight @ u], [weight @ u, weight.sum()]]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        length = 1.0
        while length > 1e-6:
            moved_a, moved_b = max(a - length * step[0], MIN_SCALE), b - length * step[1]
            after = value(moved_a, moved_b)
            if after <= before:
                break
            length *= 0.5
        if length <= 1e-6 or before - after <= 1e-10 * abs(before):
            break
        a, b, before = moved_a, moved_b, after
    return a, b


def _check(strength: Any) -> None:
    if not isinstance(strength, int | float) or isinstance(strength, bool) or not 0.0 < strength < np.inf:
        raise ConfigError(f"strength is {strength!r}; expected a number above 0: how much the fit shared by all heads holds")


class Joint:
    """Plug-in: `fit_joint`. It needs all heads at once."""

    all_heads = True
    kinds: tuple[str, ...] = ("joint",)

    def __init__(self, *, strength: float = STRENGTH) -> None:
        """Take how much the scale and bias shared by all heads hold each head's own.

        Raises:
            ConfigError: `strength` is not above 0.
        """
        _check(strength)
        self.strength = strength

    def check_rows(self, num_classes_N: NDArray[np.int64], known_N: NDArray[np.bool_]) -> None:
        """Check rows by how many classes each has, and whether all its labels are known, before any logit is made.

        Raises:
            DataError: a row has several classes, or none has one and all its labels known.
        """
        _rows_of_one_class(num_classes_N, known_N)

    def fit(self, logit_NK: Any, target_NK: Any, mask_NK: Any) -> list[Calibration]:
        """Return one calibration a head, in column order; arguments and errors are those of `fit_joint`.

        A head whose known labels are all alike, or that has none, is fitted as the others are and says so in its status.
        """
        scale_K, bias_K = fit_joint(logit_NK, target_NK, mask_NK, strength=self.strength)
        _, target_NK, mask_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
        num_rows_K, num_positives_K = mask_NK.sum(axis=0).tolist(), (target_NK & mask_NK).sum(axis=0).tolist()
        return [
            Calibration("joint", scale, bias, _status(num_rows, num_positives), num_rows, num_positives)
            for scale, bias, num_rows, num_positives in zip(
                scale_K.tolist(), bias_K.tolist(), num_rows_K, num_positives_K, strict=True
            )
        ]


def _status(num_rows: int, num_positives: int) -> CalibrationStatus:
    if num_rows == 0:
        return "no_rows"
    return "ok" if 0 < num_positives < num_rows else "one_class"
