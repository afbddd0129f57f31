"""A threshold a head, chosen on calibration rows. Knows nothing of the test split or of how probabilities are made.

N = rows, K = heads, C = heads of one block
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.ranking import Ranked, ranked_blocks
from ovr.core.targets import check_probs
from ovr.errors import ConfigError


def max_f1_thresholds(prob_NK: Any, target_NK: Any, mask_NK: Any, *, fallback: float = 0.5) -> NDArray[np.float64]:
    """Return for each head the threshold (K,) of highest F1 over its known rows, where a row is positive at prob >= threshold.

    Probabilities are compared as float32, and every threshold found is a float32 number (held as float64), so that float32 and
    float64 decide alike. It lies in the middle between the lowest score taken and the next lower one (or 0), above the lower and at
    or below the upper. Of cuts of equal F1 the highest is chosen. Heads without a known positive keep `fallback`.

    Raises:
        ConfigError: `fallback` is not from 0 to 1.
        DataError: probabilities that are NaN or outside [0, 1], shapes that differ, targets or mask other than 0 and 1.
    """
    _check_fallback(fallback)
    prob_NK, target_NK, mask_NK = check_probs(prob_NK, target_NK, mask_NK)
    threshold_K = np.full(prob_NK.shape[1], fallback, dtype=np.float64)
    for ranked in ranked_blocks(prob_NK.astype(np.float32), target_NK, mask_NK):
        found_C = ranked.num_positives_C > 0
        if found_C.any():
            threshold_K[ranked.columns][found_C] = _best_cuts(ranked)[found_C]
    return threshold_K


def _best_cuts(ranked: Ranked) -> NDArray[np.float32]:
    """Return the threshold of highest F1 for each head of the block; meaningless for heads without positives."""
    taken_N = np.arange(1, ranked.score_CN.shape[1] + 1)
    true_positives_CN = np.cumsum(ranked.target_CN, axis=1)
    # F1 = 2 TP / (taken + positives), one rounding of a ratio of integers: equal F1 gives equal floats.
    f1_CN = 2 * true_positives_CN / (taken_N + ranked.num_positives_C[:, None])
    cut_C = np.argmax(np.where(ranked.tie_end_CN, f1_CN, -1.0), axis=1)
    upper_C = np.take_along_axis(ranked.score_CN, cut_C[:, None], axis=1)[:, 0]
    below_CN = np.pad(ranked.score_CN[:, 1:], ((0, 0), (0, 1)))
    lower_C = np.where(cut_C + 1 < ranked.num_known_C, np.take_along_axis(below_CN, cut_C[:, None], axis=1)[:, 0], np.float32(0))
    middle_C = (0.5 * (upper_C.astype(np.float64) + lower_C)).astype(np.float32)
    return np.where((middle_C > lower_C) & (middle_C <= upper_C), middle_C, upper_C)


def _check_fallback(fallback: float) -> None:
    if not 0.0 <= fallback <= 1.0:
        raise ConfigError(f"fallback threshold is {fallback}; expected a probability from 0 to 1")


class MaxF1:
    """Plug-in: `max_f1_thresholds` with its fallback."""

    def __init__(self, *, fallback: float = 0.5) -> None:
        """Take the threshold of heads without a known positive.

        Raises:
            ConfigError: it is not from 0 to 1.
        """
        _check_fallback(fallback)
        self.fallback = fallback

    def fit(self, prob_NK: Any, target_NK: Any, mask_NK: Any) -> NDArray[np.float64]:
        """Return thresholds (K,); arguments and errors are those of `max_f1_thresholds`."""
        return max_f1_thresholds(prob_NK, target_NK, mask_NK, fallback=self.fallback)
