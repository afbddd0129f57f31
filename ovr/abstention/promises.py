"""On which rows a rule may choose and still promise something. Knows neither how rules choose nor how calibrations are fitted.

A promise holds where what orders the rows was settled without their labels. A calibration is fitted on labels. It leaves a head's
own order of rows as the logits have it, unless it makes ties (isotonic) or differs by cohort; the order of rows by the highest
probability of several heads it changes, unless it is the identity.

K = heads
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import AFFINE_KINDS, DecisionPolicy
from ovr.core.thresholds import NOT_PROMISED, OK, Thresholds

Kinds = Sequence[str] | NDArray[Any]  # of calibrations: one a head, or those that a calibrator may give

RISING_KINDS = (*AFFINE_KINDS, "beta")  # strictly, so that a head's rows keep their order
SAME_ROWS = f"{NOT_PROMISED}: the model was calibrated on the same rows; give other rows with data="
SAME_THRESHOLDS = f"{NOT_PROMISED}: the thresholds of what is decided were chosen on the same rows; give other rows with data="


def heads_in_doubt(rule: object, kinds: Kinds, *, cohorts: bool) -> NDArray[np.bool_]:
    """Return for each kind whether a rule of thresholds can promise nothing on rows that its calibration was fitted on.

    Args:
        cohorts: whether cohorts have calibrations of their own.
    """
    rising_K = np.isin(np.asarray(kinds, dtype=str), RISING_KINDS)
    return ~rising_K | cohorts if _promises(rule) else np.zeros_like(rising_K)


def limit_in_doubt(
    rule: object, policy: DecisionPolicy, kinds: Kinds, *, cohorts: bool, calibrated: bool, chosen: bool
) -> str | None:
    """Return why a rule of abstention can promise nothing on its rows, or None.

    Args:
        cohorts: whether cohorts have calibrations of their own.
        calibrated: whether the calibrations, of these kinds, were fitted on its rows.
        chosen: whether the thresholds were chosen on its rows.
    """
    if calibrated and _promises(rule) and (cohorts or bool((np.asarray(kinds, dtype=str) != "identity").any())):
        return SAME_ROWS
    return SAME_THRESHOLDS if chosen and looks_at_thresholds(rule, policy) else None


def looks_at_thresholds(rule: object, policy: DecisionPolicy) -> bool:
    """Return whether a rule of abstention promises something of decisions that thresholds make."""
    return _promises(rule) and getattr(rule, "looks_at_labels", True) and policy.mode == "multilabel"


def without_promise(thresholds: Thresholds, doubt_K: NDArray[np.bool_]) -> Thresholds:
    """Return the thresholds with `SAME_ROWS` in place of `OK` for the heads in `doubt_K`."""
    said_K = (SAME_ROWS if doubt and said == OK else said for said, doubt in zip(thresholds.status_K, doubt_K, strict=True))
    return replace(thresholds, status_K=tuple(said_K))


def _promises(rule: object) -> bool:
    """Return whether a rule promises something of future rows; it says so by an attribute `promises`."""
    return getattr(rule, "promises", False) is True
