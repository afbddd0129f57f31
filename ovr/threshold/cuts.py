"""Cuts between ranked scores and the thresholds that make them. Knows nothing of why a cut is chosen.

N = rows, C = heads of one block
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.ranking import Ranked
from ovr.errors import ConfigError


def cut_thresholds(ranked: Ranked, last_C: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the thresholds (C,) that take the rows up to position `last_C` of each head, and their ties.

    Each lies in the middle between that row's score and the next lower one (0 behind the last): above the lower, at or below the
    upper. A float32 number, so that float32 and float64 decide alike.
    """
    upper_C = np.take_along_axis(ranked.score_CN, last_C[:, None], axis=1)[:, 0].astype(np.float32)
    below_CN = np.where(
        (np.arange(ranked.score_CN.shape[1]) < ranked.num_known_C[:, None]) & (ranked.score_CN < upper_C[:, None]),
        ranked.score_CN,
        np.float32(0),
    )
    lower_C = below_CN.max(axis=1)
    middle_C = (0.5 * (upper_C.astype(np.float64) + lower_C)).astype(np.float32)
    return np.where((middle_C > lower_C) & (middle_C <= upper_C), middle_C, upper_C)


def check_prob(name: str, value: Any, *, open_interval: bool = False) -> None:
    """Raise ConfigError unless `value` is a number from 0 to 1, the ends left out with `open_interval`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0.0 < value < 1.0 if open_interval else 0.0 <= value <= 1.0):
        expected = "a number between 0 and 1, neither of them" if open_interval else "a probability from 0 to 1"
        raise ConfigError(f"{name} is {value!r}; expected {expected}")


def check_promise(name: str, value: Any, *, delta: Any, fallback: Any) -> None:
    """Raise ConfigError unless the promised `value` and `delta` are strictly between 0 and 1, and `fallback` from 0 to 1."""
    check_prob(name, value, open_interval=True)
    check_prob("delta", delta, open_interval=True)
    check_prob("fallback", fallback)


def check_over(over: Any) -> None:
    """Raise ConfigError unless `over` says what a promise is over."""
    if over not in ("class", "all"):
        raise ConfigError(f"over is {over!r}; expected 'all' (all of them together) or 'class' (each promise by itself)")
