"""The limit that sends at most a given share of rows to people. Knows nothing of labels or of how probabilities are made.

N = rows
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.binomial import most_left_out
from ovr.core.thresholds import Thresholds
from ovr.threshold.cuts import check_promise
from ovr.threshold.recall_at_least import lowest_positive_thresholds


class ReviewRate:
    """Plug-in: the highest limit below which at most `rate` of future rows fall, with probability 1 - delta.

    Future rows are thought to be drawn as the rows given were; rows of another kind come on top of that share. Of n rows the limit
    is the j-th lowest confidence, with the largest j for which P(Binomial(n, rate) <= j - 1) <= delta: the exact tolerance limit of
    Wilks (1941), for confidences that were settled before these rows were seen. The rule looks at no label, but a calibration that
    was fitted on the labels of the same rows does, so the promise is made on other rows (`ovr.abstention.promises`).
    """

    promises = True
    looks_at_labels = False

    def __init__(self, *, rate: float, delta: float = 0.05, fallback: float = 0.0) -> None:
        """Take the share of rows that can be reviewed, how often more may come, and the limit where the rows are too few.

        Raises:
            ConfigError: `rate` or `delta` not strictly between 0 and 1, or `fallback` not from 0 to 1.
        """
        check_promise("rate", rate, delta=delta, fallback=fallback)
        self.rate, self.delta, self.fallback = rate, delta, fallback

    def fit(self, highest_N: Any, right_N: Any, known_N: Any) -> Thresholds:
        """Return the limit as one threshold, from each row's highest probability (N,); the other arguments are not looked at."""
        prob_N1 = np.asarray(highest_N, dtype=np.float32)[:, None]
        every_N1: NDArray[np.bool_] = np.ones(prob_N1.shape, dtype=np.bool_)
        rank_1 = most_left_out([len(prob_N1)], self.rate, self.delta)
        needed = int(np.ceil(np.log(self.delta) / np.log1p(-self.rate) - 1e-9))
        return lowest_positive_thresholds(
            prob_N1, every_N1, every_N1, rank_1, needed=needed, fallback=self.fallback, counted="rows"
        )
