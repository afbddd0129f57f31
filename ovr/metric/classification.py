"""How well each class is found: counts, precision, recall, F1, average precision, accuracy. Knows nothing of models.

N = rows, K = heads, C = heads of one block

Only rows whose label is known count. A figure that the rows do not define is NaN, never a silent 0: precision where nothing was
decided on, recall where nothing is positive, F1 where both hold, average precision without a positive.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ovr.core.ranking import ranked_blocks
from ovr.core.targets import check_flags, check_targets
from ovr.errors import DataError
from ovr.metric.intervals import CONFIDENCE, wilson

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Counts:
    """What the decisions of each head (K,) came to on its known rows."""

    num_rows_K: I64
    num_positives_K: I64
    num_decided_K: I64
    true_positives_K: I64

    @property
    def precision_K(self) -> F64:
        """The share of positives among the rows decided on."""
        return _ratio(self.true_positives_K, self.num_decided_K)

    @property
    def recall_K(self) -> F64:
        """The share of positives that were decided on."""
        return _ratio(self.true_positives_K, self.num_positives_K)

    @property
    def num_negatives_K(self) -> I64:
        """The known rows that are not of the class."""
        return self.num_rows_K - self.num_positives_K

    @property
    def false_positives_K(self) -> I64:
        """The negatives that were decided on."""
        return self.num_decided_K - self.true_positives_K

    @property
    def false_positive_rate_K(self) -> F64:
        """The share of negatives that were decided on."""
        return _ratio(self.false_positives_K, self.num_negatives_K)

    @property
    def false_negative_rate_K(self) -> F64:
        """The share of positives that were not decided on."""
        return _ratio(self.num_positives_K - self.true_positives_K, self.num_positives_K)

    def proportions(self) -> dict[str, tuple[I64, I64]]:
        """Return successes and trials (K,) of each figure that is a share of rows."""
        return {
            "precision": (self.true_positives_K, self.num_decided_K),
            "recall": (self.true_positives_K, self.num_positives_K),
            "false_positive_rate": (self.false_positives_K, self.num_negatives_K),
            "false_negative_rate": (self.num_positives_K - self.true_positives_K, self.num_positives_K),
        }

    @property
    def f1_K(self) -> F64:
        """2 TP / (decided + positives): the harmonic mean of precision and recall, and 0 where no decision was right."""
        return _ratio(2 * self.true_positives_K, self.num_decided_K + self.num_positives_K)


def f1_interval(counts: Counts, *, confidence: float = CONFIDENCE) -> tuple[F64, F64]:
    """Return (low_K, high_K) of F1: 2 J / (1 + J) of Wilson's interval of J, the share of right rows among all decided or positive.

    Of these rows each is right or not, so that J is a plain share, and F1 rises with it.

    Raises:
        ConfigError: `confidence` outside (0, 1).
    """
    either_K = counts.num_decided_K + counts.num_positives_K - counts.true_positives_K
    low_K, high_K = wilson(counts.true_positives_K, either_K, confidence=confidence)
    return 2 * low_K / (1 + low_K), 2 * high_K / (1 + high_K)


def confusion(label_NK: Any, target_NK: Any, mask_NK: Any) -> Counts:
    """Return the counts for decisions `label_NK`, such as `Decision.label_BK`.

    Args:
        label_NK: bool or 0 and 1.
        target_NK: bool or 0 and 1; not looked at where unknown.
        mask_NK: bool or 0 and 1; False where the label is unknown.

    Raises:
        DataError: not (N, K), shapes that differ, or entries other than 0 and 1.
    """
    label_NK, target_NK, mask_NK = check_decisions(label_NK, target_NK, mask_NK)
    label_NK, target_NK = label_NK & mask_NK, target_NK & mask_NK
    return Counts(*(array.sum(axis=0, dtype=np.int64) for array in (mask_NK, target_NK, label_NK, label_NK & target_NK)))


def average_precision(score_NK: Any, target_NK: Any, mask_NK: Any) -> F64:
    """Return the average precision (K,), the sum over thresholds of precision times the rise of recall; NaN without a positive.

    Rows of equal score enter together. It is what `sklearn.metrics.average_precision_score` computes.

    Raises:
        DataError: scores that are not finite, shapes that differ, targets or mask other than 0 and 1.
    """
    score_NK, target_NK, mask_NK = check_targets(score_NK, target_NK, mask_NK, score_name="score")
    ap_K = np.full(score_NK.shape[1], np.nan)
    for ranked in ranked_blocks(score_NK, target_NK, mask_NK):
        hits_CN = np.cumsum(ranked.target_CN, axis=1)
        precision_CN = hits_CN / np.arange(1, hits_CN.shape[1] + 1)
        # A positive counts with the precision at the end of its run of ties: carry that back over the run.
        at_end_CN = np.where(ranked.tie_end_CN, hits_CN, 0)
        before_CN = np.maximum.accumulate(np.pad(at_end_CN[:, :-1], ((0, 0), (1, 0))), axis=1)
        gained_CN = np.where(ranked.tie_end_CN, hits_CN - before_CN, 0)
        ap_K[ranked.columns] = _ratio((gained_CN * precision_CN).sum(axis=1), ranked.num_positives_C)
    return ap_K


class RowAccuracy:
    """The share of rows on which every class is decided rightly; an abstained row that has a class is wrong.

    With one class a row it is the usual accuracy, with several the subset accuracy. Rows with an unknown label do not count.
    """

    def __init__(self, num_rows: int) -> None:
        self._right_N, self._known_N = np.ones(num_rows, np.bool_), np.ones(num_rows, np.bool_)

    def update(self, label_NC: Any, target_NC: Any, mask_NC: Any) -> None:
        """Take the next heads.

        Raises:
            DataError: not (N, C), shapes that differ, or entries other than 0 and 1.
        """
        label_NC, target_NC, mask_NC = check_decisions(label_NC, target_NC, mask_NC)
        self._known_N &= mask_NC.all(axis=1)
        self._right_N &= (label_NC == target_NC).all(axis=1)

    def rows(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which rows (N,) are right, and of which that is known."""
        return self._right_N & self._known_N, self._known_N

    def result(self) -> float:
        """Return the share; NaN where no row is known throughout."""
        return float(self._right_N[self._known_N].mean()) if self._known_N.any() else float("nan")


def accuracy(label_NK: Any, target_NK: Any, mask_NK: Any) -> float:
    """Return what `RowAccuracy` does of all heads at once.

    Raises:
        DataError: not (N, K), shapes that differ, or entries other than 0 and 1.
    """
    rows = RowAccuracy(len(label_NK))
    rows.update(label_NK, target_NK, mask_NK)
    return rows.result()


def mean_defined(value_K: ArrayLike) -> float:
    """Return the mean over the heads for which the figure is defined (macro average); NaN where it is for none."""
    value_K = np.asarray(value_K, dtype=np.float64)
    defined_K = ~np.isnan(value_K)
    return float(value_K[defined_K].mean()) if defined_K.any() else float("nan")


def _ratio(top_K: NDArray[Any], bottom_K: I64) -> F64:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_K: F64 = np.where(bottom_K > 0, top_K / bottom_K, np.nan)
    return ratio_K


def check_decisions(label_NK: Any, target_NK: Any, mask_NK: Any) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return decisions, targets and mask as bool, all (N, K).

    Raises:
        DataError: not (N, K), shapes that differ, or entries other than 0 and 1.
    """
    shape_NK = np.shape(label_NK)
    if len(shape_NK) != 2:
        raise DataError(f"decisions have shape {shape_NK}; expected (rows, heads)")
    mask_NK = check_flags(mask_NK, name="mask", shape_NK=shape_NK)
    target_NK = check_flags(target_NK, name="target", shape_NK=shape_NK, known_NK=mask_NK)
    return check_flags(label_NK, name="decision", shape_NK=shape_NK), target_NK, mask_NK
