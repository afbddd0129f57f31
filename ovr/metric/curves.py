"""Reliability and precision-recall curves of heads, as plain arrays to draw. Knows nothing of drawing.

N = rows, K = heads, G = bins, P = points of a curve
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.ranking import ranked_blocks
from ovr.core.targets import check_targets
from ovr.errors import ConfigError
from ovr.metric.bins import NUM_BINS, bin_sums
from ovr.metric.intervals import CONFIDENCE, wilson

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reliability:
    """What each bin (K, G) of a head holds, by rising probability; an empty bin has count 0 and NaN."""

    count_KG: I64  # known rows
    mean_prob_KG: F64
    share_KG: F64  # of positives
    low_KG: F64  # Wilson's interval of the share
    high_KG: F64


def reliability(
    prob_NK: Any, target_NK: Any, mask_NK: Any, *, num_bins: int = NUM_BINS, confidence: float = CONFIDENCE
) -> Reliability:
    """Return the reliability curve of every head, with the bins of equal mass that `ece_equal_mass` has.

    The mean over rows of |share - mean probability| is that error.

    Raises:
        ConfigError: `num_bins` below 1, `confidence` outside (0, 1).
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    sums = bin_sums(prob_NK, target_NK, mask_NK, num_bins=num_bins)
    interval = wilson(sums.positive_KG, sums.count_KG, confidence=confidence)
    return Reliability(sums.count_KG, sums.mean_prob_KG, sums.share_KG, *interval)


def precision_recall(score_NK: Any, target_NK: Any, mask_NK: Any, *, max_points: int = 200) -> list[tuple[F64, F64, F64]]:
    """Return (threshold_P, precision_P, recall_P) of every head, by falling threshold; rows with score >= threshold are decided on.

    Every point is one of the exact curve. Points between two of the same recall are left out, and where more than `max_points`
    are left, those are kept that have about evenly spaced recall, with the first and the last. A head without a positive has the
    points of lowest and highest threshold and a recall of NaN; one without a known row has no point.

    Raises:
        ConfigError: `max_points` below 2.
        DataError: scores that are not finite, shapes that differ, targets or mask other than 0 and 1.
    """
    if max_points < 2:
        raise ConfigError(f"max_points is {max_points}; expected at least 2")
    score_NK, target_NK, mask_NK = check_targets(score_NK, target_NK, mask_NK, score_name="score")
    curves = []
    for ranked in ranked_blocks(score_NK, target_NK, mask_NK):
        hits_CN = np.cumsum(ranked.target_CN, axis=1)
        for column in range(len(hits_CN)):
            place_P = np.flatnonzero(ranked.tie_end_CN[column])
            hits_P = hits_CN[column, place_P]
            kept_P = np.ones(len(place_P), dtype=np.bool_)
            kept_P[1:-1] = (hits_P[1:-1] != hits_P[:-2]) | (hits_P[1:-1] != hits_P[2:])
            place_P = place_P[kept_P]
            if len(place_P) > max_points:
                hits_P = hits_CN[column, place_P]
                wanted = np.linspace(hits_P[0], hits_P[-1], max_points)
                at_P = np.searchsorted(hits_P, wanted)  # the first point of at least this recall: that of highest precision
                at_P[-1] = len(place_P) - 1
                place_P = place_P[np.unique(at_P)]
            hits_P = hits_CN[column, place_P]
            with np.errstate(invalid="ignore"):
                recall_P = hits_P / np.float64(ranked.num_positives_C[column])
            curves.append((ranked.score_CN[column, place_P].astype(np.float64), hits_P / (place_P + 1.0), recall_P))
    return curves
