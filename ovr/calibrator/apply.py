"""From logits and calibrations to probabilities, in float64. Knows nothing of how a calibration was fitted.

B = batch, K = heads
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ovr.core.artifact import Calibration
from ovr.core.calibrations import Calibrations
from ovr.core.targets import check_scores
from ovr.errors import DataError


def calibrated_prob(logit_BK: Any, scale_K: ArrayLike, bias_K: ArrayLike) -> NDArray[np.float64]:
    """Return sigmoid(scale * logit + bias) as float64 (B, K), exact to the last digits for logits of any size.

    Raises:
        DataError: NaN or infinite logits, or not one finite scale and bias a head.
    """
    logit_BK = check_scores(logit_BK, score_name="logit")
    scale_K, bias_K = np.asarray(scale_K, dtype=np.float64), np.asarray(bias_K, dtype=np.float64)
    for name, value_K in (("scale", scale_K), ("bias", bias_K)):
        if value_K.shape != (logit_BK.shape[1],):
            raise DataError(f"{name} has shape {value_K.shape}; expected ({logit_BK.shape[1]},), one a head")
        if not np.isfinite(value_K).all():
            raise DataError(f"{name} of head column {int(np.argmin(np.isfinite(value_K)))} is not finite")
    with np.errstate(over="ignore"):  # a scaled logit beyond float64 is a probability of 0 or 1
        scaled_BK = logit_BK * scale_K + bias_K
    # exp of minus the magnitude never overflows, and keeps every digit of a small probability.
    small_BK = np.exp(-np.abs(scaled_BK))
    prob_BK: NDArray[np.float64] = np.where(scaled_BK >= 0, 1.0, small_BK) / (1.0 + small_BK)
    return prob_BK


def scale_and_bias(calibrations: Sequence[Calibration]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scale (K,) and bias (K,) of the heads' calibrations, in column order."""
    if isinstance(calibrations, Calibrations):
        return calibrations.scale_K, calibrations.bias_K
    return np.array([c.scale for c in calibrations], dtype=np.float64), np.array([c.bias for c in calibrations], dtype=np.float64)
