"""Whether independent heads rank against each other: figures of each row's classes together, for rows of one class each.

Knows log-odds of heads and labels only. N = rows, C = heads of one block
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.targets import check_targets
from ovr.core.top import RunningTop
from ovr.metric.calibration import ece_equal_mass

F64 = NDArray[np.float64]


class Comparability:
    """Figures of all heads together, from the log-odds u = log(p / (1 - p)) of some heads at a time.

    Normalised probabilities are exp(u) / sum of exp(u), those of exactly one class (see `ovr.core.outcomes.prob_normalized`).
    Argmax accuracy and normalised figures are of the rows with exactly one class and all labels known.
    """

    def __init__(self, num_rows: int) -> None:
        self._top, self._right_N = RunningTop(num_rows), np.zeros(num_rows, np.bool_)
        self._log_sum_N, self._own_N, self._log_none_N = np.full(num_rows, -np.inf), np.zeros(num_rows), np.zeros(num_rows)
        self._num_classes_N, self._known_N = np.zeros(num_rows, np.int64), np.ones(num_rows, np.bool_)

    def update(self, log_odds_NC: Any, target_NC: Any, mask_NC: Any, *, first_column: int) -> None:
        """Take the next heads, of higher columns than those before.

        Raises:
            DataError: log-odds that are not finite, shapes that differ, targets or mask other than 0 and 1.
        """
        log_odds_NC, target_NC, mask_NC = check_targets(log_odds_NC, target_NC, mask_NC, score_name="log-odds")
        log_odds_NC, positive_NC = log_odds_NC.astype(np.float64), target_NC & mask_NC
        higher_N = self._top.update(log_odds_NC, first_column=first_column)
        here_N = np.clip(self._top.column_N - first_column, 0, positive_NC.shape[1] - 1)
        self._right_N = np.where(higher_N, np.take_along_axis(positive_NC, here_N[:, None], axis=1)[:, 0], self._right_N)
        highest_N1 = log_odds_NC.max(axis=1, keepdims=True)
        log_sum_N = highest_N1[:, 0] + np.log(np.exp(log_odds_NC - highest_N1).sum(axis=1))
        self._log_sum_N = np.logaddexp(self._log_sum_N, log_sum_N)
        self._own_N += np.where(positive_NC, log_odds_NC, 0.0).sum(axis=1)
        self._log_none_N -= (np.maximum(log_odds_NC, 0.0) + np.log1p(np.exp(-np.abs(log_odds_NC)))).sum(axis=1)
        self._num_classes_N += positive_NC.sum(axis=1)
        self._known_N &= mask_NC.all(axis=1)

    def result(self) -> dict[str, float]:
        """Return the figures by name; NaN where there is no row for one.

        argmax_accuracy: the share whose highest head is the row's class. normalized_nll: in nats, of the row's class.
        normalized_top_label_ece: of the highest normalised probability, with 15 bins of equal mass. mean_prob_none: the mean of the
        product of 1 - p over all rows (independent classes), to compare with the share of rows that have none.
        """
        one_N = self._known_N & (self._num_classes_N == 1)
        highest_N = np.exp(np.minimum(self._top.score_N - self._log_sum_N, 0.0))
        figures = {
            "argmax_accuracy": _mean(self._right_N[one_N]),
            "normalized_nll": _mean((self._log_sum_N - self._own_N)[one_N]),
            "normalized_top_label_ece": float(ece_equal_mass(highest_N[:, None], self._right_N[:, None], one_N[:, None])[0]),
            "mean_prob_none": _mean(np.exp(self._log_none_N)),
        }
        return figures


def _mean(value_N: NDArray[Any]) -> float:
    return float(value_N.mean()) if len(value_N) else float("nan")
