"""The limit above which decisions are wrong no more often than promised. Knows nothing of how probabilities are made.

N = rows
"""

from typing import Any

import numpy as np

from ovr.core.thresholds import Thresholds
from ovr.threshold.cuts import check_promise
from ovr.threshold.precision_at_least import precision_thresholds


class TargetRisk:
    """Plug-in: the lowest limit for which at most `risk` of the future rows that are decided on are decided wrongly, with
    probability 1 - delta (selection with guaranteed risk; Geifman & El-Yaniv 2017).

    A row is right if every class of it is decided rightly. It is `precision_thresholds` with right rows as positives, which tells
    of the exact binomial test and of what is assumed. Probabilities and decisions must have been settled without the labels of
    these rows: neither calibrations nor thresholds that decide may have been fitted on them (`ovr.abstention.promises`).
    """

    promises = True
    looks_at_labels = True

    def __init__(self, *, risk: float, delta: float = 0.05, fallback: float = 1.0) -> None:
        """Take the share of wrong decisions, how often there may be more, and the limit where that cannot be promised.

        Raises:
            ConfigError: `risk` or `delta` not strictly between 0 and 1, or `fallback` not from 0 to 1.
        """
        check_promise("risk", risk, delta=delta, fallback=fallback)
        self.risk, self.delta, self.fallback = risk, delta, fallback

    def fit(self, highest_N: Any, right_N: Any, known_N: Any) -> Thresholds:
        """Return the limit as one threshold, from each row's highest probability (N,), whether it is decided rightly, and whether
        that is known.

        Raises:
            DataError: probabilities that are NaN or outside [0, 1], or shapes that differ.
        """
        columns = (np.asarray(values)[:, None] for values in (highest_N, right_N, known_N))
        return precision_thresholds(
            *columns, precision=1.0 - self.risk, delta=self.delta, fallback=self.fallback, counted="rows decided rightly"
        )
