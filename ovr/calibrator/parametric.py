"""Platt's and beta calibration of every head at once: the fit that the two plug-ins share. Knows nothing of pooling over heads.

N = rows, K = heads, C = heads of one block
"""

from typing import Any

import numpy as np

from ovr.calibrator.families import BLOCK_VALUES, Family, smoothed
from ovr.calibrator.known import known
from ovr.calibrator.logistic import fit_logistic
from ovr.core.artifact import Calibration
from ovr.core.targets import check_targets


def fit_family(family: Family, logit_NK: Any, target_NK: Any, mask_NK: Any) -> list[Calibration]:
    """Return one calibration a head, in column order, of least negative log-likelihood on Platt's targets, within the bounds.

    Args:
        logit_NK: finite logits, not probabilities.
        target_NK: bool or 0 and 1.
        mask_NK: bool or 0 and 1; False where the label is unknown.

    A head with no rows or with rows of one class keeps the identity. The statuses are those of `Known.status`.

    Raises:
        DataError: NaN or infinite logits, shapes that differ, targets or mask other than 0 and 1.
    """
    logit_NK, target_NK, mask_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
    about = known(logit_NK, target_NK, mask_NK)
    calibrations = [about.untouched(column) for column in range(logit_NK.shape[1])]
    fitted = np.flatnonzero(about.both_K)
    step = max(1, BLOCK_VALUES // max(1, len(logit_NK)))
    for start in range(0, len(fitted), step):
        here = fitted[start : start + step]
        num_rows_C, num_positives_C = about.num_rows_K[here], about.num_positives_K[here]
        target_CN = smoothed(np.ascontiguousarray(target_NK[:, here].T), num_rows_C, num_positives_C)
        fit = fit_logistic(
            family.features(np.ascontiguousarray(logit_NK[:, here].T)),
            target_CN,
            np.ascontiguousarray(mask_NK[:, here].T).astype(np.float64),
            start_CP=np.tile(family.identity_P, (len(here), 1)),
            lower_P=family.lower_P,
            upper_P=family.upper_P,
        )
        for c, column in enumerate(here.tolist()):
            status = about.status(column, at_bound=bool(fit.at_bound_C[c]))
            calibrations[column] = family.calibration(fit.theta_CP[c], status, num_rows_C[c], num_positives_C[c])
    return calibrations
