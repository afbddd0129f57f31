"""From logits and calibrations to probabilities, in float64. Knows nothing of how a calibration was fitted.

B = batch, K = heads, M = knots
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import MIN_KNOT_STEP, Calibration
from ovr.core.calibrations import Calibrations
from ovr.core.targets import check_scores
from ovr.errors import DataError

F64 = NDArray[np.float64]


def calibrated_prob(logit_BK: Any, calibrations: Sequence[Calibration]) -> F64:
    """Return the probabilities (B, K) float64 in [0, 1] that `Calibration` defines, one calibration a head.

    Those of affine and beta calibrations are exact to the last digits for logits of any size. None falls where its logit rises.

    Raises:
        DataError: NaN or infinite logits, another count of calibrations than heads, or parameters that are not finite.
    """
    logit_BK, columns = _checked(logit_BK, calibrations)
    prob_BK = sigmoid(_scaled(logit_BK, columns))
    for column in np.flatnonzero(columns.columns["kind"] == "isotonic").tolist():
        knots, probs = (np.asarray(columns.columns[name][column]) for name in ("knot_logits", "knot_probs"))
        prob_BK[:, column] = interpolated(logit_BK[:, column], knots, probs)
    return prob_BK


def calibrated_logit(logit_BK: Any, calibrations: Sequence[Calibration]) -> F64:
    """Return the log-odds (B, K) float64 of `calibrated_prob`: a likelihood from them loses no digit of a probability near 1.

    Those beyond float64 are its largest number.

    Raises:
        DataError: as `calibrated_prob`.
    """
    logit_BK, columns = _checked(logit_BK, calibrations)
    scaled_BK = _scaled(logit_BK, columns)
    for column in np.flatnonzero(columns.columns["kind"] == "isotonic").tolist():
        knots, probs = (np.asarray(columns.columns[name][column]) for name in ("knot_logits", "knot_probs"))
        prob_B = interpolated(logit_BK[:, column], knots, probs)
        scaled_BK[:, column] = np.log(prob_B) - np.log1p(-prob_B)
    return np.nan_to_num(scaled_BK, copy=False)


def scale_and_bias(calibrations: Sequence[Calibration]) -> tuple[F64, F64]:
    """Return scale (K,) and bias (K,) of affine calibrations, in column order.

    Raises:
        ArtifactError: one of them is of another kind.
    """
    columns = Calibrations.of(calibrations)
    columns.check_affine(where="what takes a scale and a bias")
    return columns.scale_K, columns.bias_K


def sigmoid(logit: F64) -> F64:
    """Return 1 / (1 + exp(-logit)), exact to the last digits."""
    # exp of minus the magnitude never overflows, and keeps every digit of a small probability.
    small = np.exp(-np.abs(logit))
    prob: F64 = np.where(logit >= 0, 1.0, small) / (1.0 + small)
    return prob


def softplus(logit: F64) -> F64:
    """Return log(1 + exp(logit)), exact to the last digits."""
    value: F64 = np.maximum(logit, 0.0) + np.log1p(np.exp(-np.abs(logit)))
    return value


def interpolated(logit_B: NDArray[np.floating[Any]], knot_M: F64, prob_M: F64) -> F64:
    """Return the value at each logit of the line through the knots, constant outside; the same sums as in the ONNX graph."""
    logit_B = np.clip(logit_B.astype(np.float64), knot_M[0], knot_M[-1])
    right_B = np.searchsorted(knot_M, logit_B, side="right")
    left_B, right_B = np.maximum(right_B - 1, 0), np.minimum(right_B, len(knot_M) - 1)
    # At the last knot there is no width and no rise: the width must not be 0, whatever it is.
    width_B = np.maximum(knot_M[right_B] - knot_M[left_B], MIN_KNOT_STEP)
    part_B = (logit_B - knot_M[left_B]) / width_B
    # The minimum: rounding must not lift the end of a line above the start of the next.
    prob_B: F64 = np.minimum(prob_M[left_B] + part_B * (prob_M[right_B] - prob_M[left_B]), prob_M[right_B])
    return prob_B


def _scaled(logit_BK: NDArray[np.floating[Any]], columns: Calibrations) -> F64:
    with np.errstate(over="ignore"):  # a scaled logit beyond float64 is a probability of 0 or 1
        scaled_BK: F64 = logit_BK * columns.scale_K + columns.bias_K
        beta = np.flatnonzero(columns.columns["kind"] == "beta")
        if len(beta):
            logit_BC = logit_BK[:, beta].astype(np.float64)
            scale_negative_C = columns.columns["scale_negative"][beta].astype(np.float64)
            rising_BC = scale_negative_C * softplus(logit_BC)
            scaled_BK[:, beta] = rising_BC - columns.scale_K[beta] * softplus(-logit_BC) + columns.bias_K[beta]
    return scaled_BK


def _checked(logit_BK: Any, calibrations: Sequence[Calibration]) -> tuple[NDArray[np.floating[Any]], Calibrations]:
    logit_BK, columns = check_scores(logit_BK, score_name="logit"), Calibrations.of(calibrations)
    if len(columns) != logit_BK.shape[1]:
        raise DataError(f"{len(columns)} calibrations for {logit_BK.shape[1]} heads; expected one a head")
    values = {"scale": columns.scale_K, "bias": columns.bias_K}
    if "scale_negative" in columns.columns:
        values["scale_negative"] = np.array([value or 0.0 for value in columns.columns["scale_negative"]])
    for name, value_K in values.items():
        if not np.isfinite(value_K).all():
            raise DataError(f"{name} of head column {int(np.argmin(np.isfinite(value_K)))} is not finite")
    return logit_BK, columns
