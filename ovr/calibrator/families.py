"""The parametric calibrations as logistic regressions: their features, bounds and parameters. Knows no rows and no priors.

C = heads of one block, N = rows, P = parameters
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import sigmoid, softplus
from ovr.calibrator.logistic import combined
from ovr.core.artifact import MAX_KNOT, Calibration, CalibrationStatus
from ovr.errors import ConfigError

F64 = NDArray[np.float64]

MIN_SCALE, MAX_SCALE = 0.05, 20.0  # the temperatures' own bounds
BLOCK_VALUES = 1 << 18  # rows times heads brought into rows at a time: some ten float64 arrays of 2 MB
# Logits beyond are fitted as if they were at it: their squares must not drown all others.
MAX_LOGIT = MAX_KNOT


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of calibration: slopes that must stay above 0, and an intercept or none.

    One with `cuts` is a straight line of the log-odds between each two of them and beyond, with a slope each (a linear spline).
    """

    kind: str
    num_slopes: int
    intercept: bool
    min_scale: float = MIN_SCALE
    max_scale: float = MAX_SCALE
    cuts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.min_scale <= 1.0 <= self.max_scale < np.inf:
            raise ConfigError(
                f"scale bounds are {self.min_scale} and {self.max_scale}; expected 0 < min_scale <= 1 <= max_scale < infinity"
            )

    @property
    def identity_P(self) -> F64:
        """The parameters that leave a logit as it is."""
        return np.array([1.0] * self.num_slopes + [0.0] * self.intercept)

    @property
    def lower_P(self) -> F64:
        """The least that each parameter may be."""
        return np.array([self.min_scale] * self.num_slopes + [-np.inf] * self.intercept)

    @property
    def upper_P(self) -> F64:
        """The most that each parameter may be."""
        return np.array([self.max_scale] * self.num_slopes + [np.inf] * self.intercept)

    def features(self, logit_CN: NDArray[np.floating[Any]]) -> list[F64]:
        """Return the arrays (C, N) that the calibrated logit is a sum of, a slope times each."""
        z_CN: F64 = np.clip(logit_CN.astype(np.float64), -MAX_LOGIT, MAX_LOGIT)
        if self.cuts:
            edges = (-np.inf, *self.cuts, np.inf)
            return [np.clip(z_CN, low, high) - np.clip(0.0, low, high) for low, high in pairwise(edges)]
        return [z_CN] if self.num_slopes == 1 else [-softplus(-z_CN), softplus(z_CN)]

    def probs(self, logit_N: F64, theta_P: F64) -> F64:
        """Return the probabilities (N,) of one head."""
        prob_N: F64 = sigmoid(combined(self.features(logit_N[None]), theta_P[None]))[0]
        return prob_N

    def calibration(
        self, theta_P: F64, status: CalibrationStatus, num_rows: int, num_positives: int, details: dict[str, Any] | None = None
    ) -> Calibration:
        """Return the calibration of one head."""
        values = theta_P.tolist()
        return Calibration(
            self.kind,
            values[0],
            values[-1] if self.intercept else 0.0,
            status,
            int(num_rows),
            int(num_positives),
            scale_negative=values[1] if self.num_slopes == 2 else None,
            details=details or {},
        )


TEMPERATURE = Family("temperature", 1, intercept=False)
PLATT = Family("platt", 1, intercept=True)
BETA = Family("beta", 2, intercept=True)


def smoothed(target_CN: NDArray[np.bool_], num_rows_C: NDArray[np.int64], num_positives_C: NDArray[np.int64]) -> F64:
    """Return Platt's targets (C, N): (n+ + 1) / (n+ + 2) for a positive row, 1 / (n- + 2) for a negative one.

    Platt 1999, "Probabilistic outputs for support vector machines", section 2.2: what the rows themselves would be taught if one
    more of each class had been seen, so that classes that a logit parts have an optimum too.
    """
    negatives_C = num_rows_C - num_positives_C
    return np.where(target_CN, ((num_positives_C + 1) / (num_positives_C + 2))[:, None], (1 / (negatives_C + 2))[:, None])
