"""A calibration for each cohort of rows, shrunk towards the one of all rows. Knows not where cohorts come from.

With x a head's calibrated logit, the cohort's probability is sigmoid(a x + d), where a and d minimise

    sum over the cohort's known rows of softplus(-s (a x + d)) + strength (a - 1 - log a) + strength d^2 / 2

(s = 1 for a positive, -1 for a negative row). The penalties are the logarithms of a prior: before a row of the cohort is seen,
log a and d are thought to be 1 / sqrt(strength) from 0, which is the pooled calibration. A cohort of n positives among many
negatives is so moved by n / (n + strength) of the way that its own rows would move it, more or less. The problem is convex, has one
optimum, and there the likelihood of the cohort's rows is never below that of the pooled calibration.

N = rows, C = cohorts, K = heads
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_logit, calibrated_prob, scale_and_bias, softplus
from ovr.core.artifact import Calibration
from ovr.core.calibrations import cohort_calibrations
from ovr.core.cohorts import POOLED, CohortCalibrations
from ovr.core.targets import check_targets
from ovr.errors import ArtifactError, ConfigError, DataError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MIN_POSITIVES = 20
PRIOR_STRENGTH = 5.0
MAX_STEPS = 100
MAX_HALVINGS = 40
GRADIENT_TOLERANCE = 1e-8  # of a mean over rows


@dataclass(frozen=True, slots=True)
class CohortFit:
    """What each cohort's rows say of some heads."""

    names: tuple[str, ...]
    scale_CK: F64
    bias_CK: F64
    fitted_CK: NDArray[np.bool_]  # False: too few rows, the values are the pooled ones
    num_rows_CK: I64
    num_positives_CK: I64


def fit_cohorts(
    logit_NK: Any,
    target_NK: Any,
    mask_NK: Any,
    cohort_N: NDArray[np.str_],
    calibrations: Sequence[Calibration],
    *,
    min_positives: int = MIN_POSITIVES,
    prior_strength: float = PRIOR_STRENGTH,
) -> CohortFit:
    """Return the calibration of every head for each cohort, in the order of the cohorts' names; "" is no cohort.

    Args:
        logit_NK, target_NK, mask_NK: as in `fit_temperature`.
        cohort_N: to which cohort each row belongs.
        calibrations: the heads' pooled ones, all of them affine.
        min_positives: positive and negative rows that a cohort needs of a head; with fewer it keeps the pooled calibration.
        prior_strength: of the prior, above 0.

    Raises:
        ArtifactError: a pooled calibration that is not affine.
        ConfigError: `min_positives` below 1, or `prior_strength` not above 0.
        DataError: what `fit_temperature` refuses; not a cohort a row.
    """
    _check(min_positives, prior_strength)
    logit_NK, target_NK, mask_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
    if cohort_N.shape != (len(logit_NK),):
        raise DataError(f"got cohorts {cohort_N.shape} for {len(logit_NK)} rows; expected one a row")
    try:
        scale_K, bias_K = scale_and_bias(calibrations)
    except ArtifactError as error:
        raise ArtifactError(
            f"cohorts are fitted beside an affine calibration: {error}; choose another calibrator, or one calibration for all "
            "rows: cohort=null"
        ) from None
    names = tuple(str(name) for name in np.unique(cohort_N) if name)
    shape = (len(names), logit_NK.shape[1])
    scale_CK, bias_CK = np.broadcast_to(scale_K, shape).copy(), np.broadcast_to(bias_K, shape).copy()
    num_rows_CK, num_positives_CK = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for c, name in enumerate(names):
        rows = np.flatnonzero(cohort_N == name)
        mask_nK = mask_NK[rows]
        target_nK = target_NK[rows] & mask_nK
        num_rows_CK[c], num_positives_CK[c] = mask_nK.sum(axis=0), target_nK.sum(axis=0)
        enough = np.flatnonzero(np.minimum(num_positives_CK[c], num_rows_CK[c] - num_positives_CK[c]) >= min_positives)
        if len(enough):
            x_nE = scale_K[enough] * logit_NK[np.ix_(rows, enough)].astype(np.float64) + bias_K[enough]
            a_E, d_E = _optimum(x_nE, target_nK[:, enough], mask_nK[:, enough], prior_strength)
            scale_CK[c, enough], bias_CK[c, enough] = a_E * scale_K[enough], a_E * bias_K[enough] + d_E
    fitted_CK = np.minimum(num_positives_CK, num_rows_CK - num_positives_CK) >= min_positives
    return CohortFit(names, scale_CK, bias_CK, fitted_CK, num_rows_CK, num_positives_CK)


class CohortCalibrator:
    """`fit_cohorts` with its settings, and the column that it is for."""

    def __init__(self, *, column: str | None, min_positives: int = MIN_POSITIVES, prior_strength: float = PRIOR_STRENGTH) -> None:
        """Take the cohorts' column; None is one calibration for all rows.

        Raises:
            ConfigError: a column that is no name, `min_positives` below 1, or `prior_strength` not above 0.
        """
        if column is not None and (not isinstance(column, str) or not column):
            raise ConfigError(f"cohort.column is {column!r}; expected the name of a column, or null")
        _check(min_positives, prior_strength)
        self.column, self.min_positives, self.prior_strength = column, min_positives, prior_strength

    def fit(
        self, logit_NK: Any, target_NK: Any, mask_NK: Any, cohort_N: NDArray[np.str_], calibrations: Sequence[Calibration]
    ) -> CohortFit:
        """Return what `fit_cohorts` returns."""
        settings = {"min_positives": self.min_positives, "prior_strength": self.prior_strength}
        return fit_cohorts(logit_NK, target_NK, mask_NK, cohort_N, calibrations, **settings)  # type: ignore[arg-type]

    def joined(self, parts: Sequence[CohortFit]) -> CohortCalibrations:
        """Return the cohorts of all heads from those of blocks of heads; a cohort too small for every head is left out.

        Raises:
            DataError: every cohort is.
        """
        assert self.column is not None
        columns = {
            name: np.concatenate([getattr(part, f"{name}_CK") for part in parts], axis=1)
            for name in ("scale", "bias", "fitted", "num_rows", "num_positives")
        }
        kept = np.flatnonzero(columns["fitted"].any(axis=1))
        if not len(kept):
            raise DataError(
                f"none of the {len(parts[0].names)} cohorts of column {self.column!r} has {self.min_positives} positive and as "
                f"many negative calibration rows of any class (the most positives are {columns['num_positives'].max(initial=0)}); "
                "give more calibration rows, lower cohort.min_positives, or do with one calibration for all rows: cohort=null"
            )
        columns["status"] = np.where(columns.pop("fitted"), "ok", "pooled")
        tables = {name: tuple(map(tuple, value_CK[kept].tolist())) for name, value_CK in columns.items()}
        return CohortCalibrations(self.column, tuple(parts[0].names[c] for c in kept), **tables)


def cohort_prob(
    logit_NK: Any,
    calibrations: Sequence[Calibration],
    cohorts: CohortCalibrations | None,
    number_N: I64 | None,
    *,
    columns: slice = slice(None),
) -> F64:
    """Return the probabilities (N, K) of rows of several cohorts, float64; the pooled ones without cohorts.

    Args:
        calibrations: the pooled ones of these heads.
        number_N: of each row's cohort, see `CohortCalibrations.numbers`.
        columns: which of the cohorts' heads these are.
    """
    return _by_cohort(calibrated_prob, logit_NK, calibrations, cohorts, number_N, columns)


def cohort_logit(
    logit_NK: Any,
    calibrations: Sequence[Calibration],
    cohorts: CohortCalibrations | None,
    number_N: I64 | None,
    *,
    columns: slice = slice(None),
) -> F64:
    """Return the log-odds (N, K) of `cohort_prob`, float64."""
    return _by_cohort(calibrated_logit, logit_NK, calibrations, cohorts, number_N, columns)


def _by_cohort(
    apply: Callable[[Any, Sequence[Calibration]], F64],
    logit_NK: Any,
    calibrations: Sequence[Calibration],
    cohorts: CohortCalibrations | None,
    number_N: I64 | None,
    columns: slice,
) -> F64:
    value_NK = apply(logit_NK, calibrations)
    if cohorts is not None and number_N is not None:
        for number in np.unique(number_N[number_N != POOLED]).tolist():
            rows = np.flatnonzero(number_N == number)
            value_NK[rows] = apply(np.asarray(logit_NK)[rows], cohort_calibrations(cohorts, number - 1)[columns])
    return value_NK


def _optimum(x_NK: F64, target_NK: NDArray[np.bool_], mask_NK: NDArray[np.bool_], strength: float) -> tuple[F64, F64]:
    """Return a (K,) and d (K,) of least penalised likelihood, by Newton's method with halved steps where they do not lower it."""
    num_heads = x_NK.shape[1]
    sign_NK = np.where(target_NK, 1.0, -1.0)
    num_K = np.maximum(mask_NK.sum(axis=0), 1)
    a_K, d_K = np.ones(num_heads), np.zeros(num_heads)

    def loss(a_K: F64, d_K: F64) -> F64:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            fit_K = np.where(mask_NK, softplus(-sign_NK * (a_K * x_NK + d_K)), 0.0).sum(axis=0)
            total_K: F64 = fit_K + strength * (a_K - 1 - np.log(a_K) + d_K**2 / 2)
        return np.where((a_K > 0) & np.isfinite(total_K), total_K, np.inf)

    value_K = loss(a_K, d_K)
    for _ in range(MAX_STEPS):
        # The probability of the label that the row does not have: the gradient is its sum with a sign.
        other_NK = np.where(mask_NK, np.exp(-softplus(sign_NK * (a_K * x_NK + d_K))), 0.0)
        slope_NK, bend_NK = -sign_NK * other_NK, other_NK * (1 - other_NK)
        slope_a_K = (slope_NK * x_NK).sum(axis=0) + strength * (1 - 1 / a_K)
        slope_d_K = slope_NK.sum(axis=0) + strength * d_K
        if (np.maximum(np.abs(slope_a_K), np.abs(slope_d_K)) <= GRADIENT_TOLERANCE * num_K).all():
            break
        aa_K = (bend_NK * x_NK**2).sum(axis=0) + strength / a_K**2
        ad_K, dd_K = (bend_NK * x_NK).sum(axis=0), bend_NK.sum(axis=0) + strength
        det_K = aa_K * dd_K - ad_K**2
        step_a_K, step_d_K = (ad_K * slope_d_K - dd_K * slope_a_K) / det_K, (ad_K * slope_a_K - aa_K * slope_d_K) / det_K
        size_K = np.ones(num_heads)
        for _ in range(MAX_HALVINGS):
            new_K = loss(a_K + size_K * step_a_K, d_K + size_K * step_d_K)
            if not (worse_K := new_K > value_K).any():
                break
            size_K[worse_K] /= 2
        else:
            size_K[worse_K] = 0.0  # by rounding alone: it is the optimum
            new_K = np.where(worse_K, value_K, new_K)
        moved = bool((value_K - new_K > 1e-14 * np.abs(value_K)).any())
        a_K, d_K, value_K = a_K + size_K * step_a_K, d_K + size_K * step_d_K, new_K
        if not moved:
            break
    return a_K, d_K


def _check(min_positives: int, prior_strength: float) -> None:
    if not isinstance(min_positives, int) or isinstance(min_positives, bool) or min_positives < 1:
        raise ConfigError(f"cohort.min_positives is {min_positives!r}; expected a whole number of at least 1")
    if not 0.0 < prior_strength < np.inf:
        raise ConfigError(f"cohort.prior_strength is {prior_strength!r}; expected a number above 0")
