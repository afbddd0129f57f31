"""The threshold of highest F-beta for each head. Knows nothing of the test split or of how probabilities are made.

N = rows, K = heads, C = heads of one block
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.ranking import Ranked, ranked_blocks
from ovr.core.targets import check_probs
from ovr.core.thresholds import NO_POSITIVE, OK, Thresholds
from ovr.errors import ConfigError
from ovr.threshold.cuts import check_prob, cut_thresholds


def max_f_beta_thresholds(prob_NK: Any, target_NK: Any, mask_NK: Any, *, beta: float = 1.0, fallback: float = 0.5) -> Thresholds:
    """Return for each head the threshold (K,) of highest F-beta over its known rows, where a row is positive at prob >= threshold.

    F-beta is (1 + b^2) TP / (taken + b^2 positives): recall weighs b times as much as precision (van Rijsbergen 1979).
    Probabilities are compared as float32, and every threshold found is a float32 number (held as float64), so that float32 and
    float64 decide alike. It lies in the middle between the lowest score taken and the next lower one (or 0), above the lower and at
    or below the upper. Of cuts of equal F-beta the highest is chosen. Heads without a known positive keep `fallback`.

    Raises:
        ConfigError: `fallback` is not from 0 to 1, or `beta` not above 0.
        DataError: probabilities that are NaN or outside [0, 1], shapes that differ, targets or mask other than 0 and 1.
    """
    _check(beta, fallback)
    prob_NK, target_NK, mask_NK = check_probs(prob_NK, target_NK, mask_NK)
    threshold_K = np.full(prob_NK.shape[1], fallback, dtype=np.float64)
    found_K = (target_NK & mask_NK).any(axis=0)
    for ranked in ranked_blocks(prob_NK.astype(np.float32), target_NK, mask_NK):
        found_C = found_K[ranked.columns]
        if found_C.any():
            threshold_K[ranked.columns][found_C] = _best_cuts(ranked, beta)[found_C]
    return Thresholds(threshold_K, tuple(OK if found else NO_POSITIVE for found in found_K))


def _best_cuts(ranked: Ranked, beta: float) -> NDArray[np.float32]:
    """Return the threshold of highest F-beta for each head of the block; meaningless for heads without positives."""
    taken_N = np.arange(1, ranked.score_CN.shape[1] + 1)
    true_positives_CN = np.cumsum(ranked.target_CN, axis=1)
    # One rounding of a ratio (of integers, for beta = 1): equal F-beta gives equal floats.
    f_CN = (1 + beta**2) * true_positives_CN / (taken_N + beta**2 * ranked.num_positives_C[:, None])
    return cut_thresholds(ranked, np.argmax(np.where(ranked.tie_end_CN, f_CN, -1.0), axis=1))


def _check(beta: float, fallback: float) -> None:
    check_prob("fallback threshold", fallback)
    if not isinstance(beta, int | float) or not 0.0 < beta < np.inf:
        raise ConfigError(f"beta is {beta!r}; expected a number above 0: how much more recall weighs than precision")


class MaxFBeta:
    """Plug-in: `max_f_beta_thresholds` with its settings."""

    def __init__(self, *, beta: float = 1.0, fallback: float = 0.5) -> None:
        """Take the weight of recall and the threshold of heads without a known positive.

        Raises:
            ConfigError: `fallback` is not from 0 to 1, or `beta` not above 0.
        """
        _check(beta, fallback)
        self.beta, self.fallback = beta, fallback

    def fit(self, prob_NK: Any, target_NK: Any, mask_NK: Any) -> Thresholds:
        """Return thresholds (K,); arguments and errors are those of `max_f_beta_thresholds`."""
        return max_f_beta_thresholds(prob_NK, target_NK, mask_NK, beta=self.beta, fallback=self.fallback)
