"""Which heads are better off with a calibration fitted again once their weights have fewer bits. Knows nothing of weights.

A calibration that was fitted on rows looks better on them than it is. So what a new one is worth is told by rows that it was not
fitted on, in FOLDS parts, and the one that the bundle has is kept wherever the new one is no better by that.

N = rows, K = heads
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.calibrator.platt import Platt
from ovr.calibrator.temperature import Temperature
from ovr.core.artifact import Calibration
from ovr.metric.calibration_bound import ece_upper_bound

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

FOLDS = 5
# Of calibrations that each head's own logits decide.
REFITTERS: dict[str, Temperature | Platt] = {"temperature": Temperature(), "platt": Platt()}


def better_calibrations(
    logit_NK: F32, target_NK: Bool, mask_NK: Bool, calibrations: Sequence[Calibration], *, keep: Collection[int] = ()
) -> tuple[list[Calibration], F64]:
    """Return each head's calibration, fitted again where that is better, and what fitting again is worth (K,).

    That is the upper bound of the calibration error, each row's probability by a calibration fitted on the other folds; NaN where
    none is fitted: calibrations other than temperature and Platt, columns in `keep`, heads without rows of both kinds in a fold.
    Better is a bound below that of the calibration as it was, on the same logits.
    """
    was_K = ece_upper_bound(calibrated_prob(logit_NK, calibrations), target_NK, mask_NK)[1]
    fold_NK = _folds(target_NK, mask_NK)
    prob_NK, is_fitted_K = np.full(logit_NK.shape, 0.5), np.ones(len(calibrations), bool)
    for fold in range(FOLDS):
        here_NK = fold_NK == fold
        fitted = _refitted(logit_NK, target_NK, mask_NK & ~here_NK, calibrations, keep)
        is_fitted_K &= [new is not None for new in fitted]
        used = [old if new is None else new for old, new in zip(calibrations, fitted, strict=True)]
        prob_NK = np.where(here_NK, calibrated_prob(logit_NK, used), prob_NK)
    worth_K = np.where(is_fitted_K, ece_upper_bound(prob_NK, target_NK, mask_NK)[1], np.nan)
    fitted = _refitted(logit_NK, target_NK, mask_NK, calibrations, keep)
    chosen = [
        new if new is not None and worth_K[k] < was_K[k] else old
        for k, (old, new) in enumerate(zip(calibrations, fitted, strict=True))
    ]
    return chosen, worth_K


def _refitted(
    logit_NK: F32, target_NK: Bool, mask_NK: Bool, calibrations: Sequence[Calibration], keep: Collection[int]
) -> list[Calibration | None]:
    """Return calibrations of the same kinds, with their default settings; None where none is fitted."""
    made: list[Calibration | None] = [None] * len(calibrations)
    for kind, calibrator in REFITTERS.items():
        here = [k for k, old in enumerate(calibrations) if old.kind == kind and k not in keep]
        if here:
            for k, new in zip(here, calibrator.fit(logit_NK[:, here], target_NK[:, here], mask_NK[:, here]), strict=True):
                made[k] = None if new.status in ("no_rows", "one_class") else new
    return made


def _folds(target_NK: Bool, mask_NK: Bool) -> NDArray[np.int64]:
    """Return which fold each row is in (N, K): each head's rows of its class in turn, and its rows of others."""
    ranks: list[Any] = [np.cumsum(target_NK & mask_NK, axis=0), np.cumsum(~target_NK & mask_NK, axis=0)]
    fold_NK: NDArray[np.int64] = np.where(target_NK, *ranks).astype(np.int64) % FOLDS
    return fold_NK
