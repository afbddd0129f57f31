"""Intervals of proportions. Knows nothing of what is counted."""

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ConfigError

F64 = NDArray[np.float64]
CONFIDENCE = 0.95


def normal_quantile(confidence: float) -> float:
    """Return z such that a standard normal lies within -z .. z with probability `confidence`.

    Raises:
        ConfigError: `confidence` outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}; expected a number above 0 and below 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(successes: Any, trials: Any, *, confidence: float = CONFIDENCE) -> tuple[F64, F64]:
    """Return (low, high), each of the shape of `trials`: Wilson's interval of a proportion, in [0, 1] (Wilson 1927).

    That of 0 of n starts at 0 and that of n of n ends at 1, and both have some width. Without a trial it is NaN.

    Raises:
        ConfigError: `confidence` outside (0, 1).
    """
    z2 = normal_quantile(confidence) ** 2
    n, s = np.broadcast_arrays(np.asarray(trials, dtype=np.float64), np.asarray(successes, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (s + z2 / 2) / (n + z2)
        half = np.sqrt(z2 * (s * (n - s) / n + z2 / 4)) / (n + z2)
        # At the ends rounding would leave 1e-17 where the bound is 0 or 1.
        low = np.where(s > 0, centre - half, 0.0)
        high = np.where(s < n, centre + half, 1.0)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)
