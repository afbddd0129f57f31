"""How many of a row's k most probable classes are right, plainly and weighed by propensity. Knows nothing of models.

Both are defined in Jain, Prabhu and Varma 2016, "Extreme Multi-label Loss Functions for Recommendation, Tagging, Ranking & Other
Missing Label Applications", and are reported as its repository's scripts do: propensity-scored precision is divided by the highest
that any order of the classes could reach.

N = rows, K = heads, C = heads of one block, M = top classes
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.targets import check_probs
from ovr.errors import ConfigError, DataError

F64 = NDArray[np.float64]
MAX_COLUMNS = 1 << 31


@dataclass(frozen=True, slots=True)
class Propensity:
    """How likely a class that belongs to a row was noted, from how often it was: p = 1 / (1 + C exp(-A log(n + B))).

    n is the class's number of positive training rows, C = (log N - 1) (B + 1)^A with N training rows, and 0 where that is negative
    (N < 3). A and B are a property of how a set was labelled: 0.55 and 1.5 where nothing better is known.
    """

    A: float
    B: float

    def __post_init__(self) -> None:
        for name, value, least in (("A", self.A, "above 0"), ("B", self.B, "at least 0")):
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or value < 0 or (name == "A" and value == 0):
                raise ConfigError(f"propensity.{name} must be a finite number {least}, got {value!r}")

    def of(self, num_positives_K: NDArray[np.integer[Any]], *, num_rows: int) -> F64:
        """Return the propensity (K,), in (0, 1]; with B = 0, a class without a positive has 0."""
        c = max(0.0, (math.log(max(num_rows, 1)) - 1) * (self.B + 1) ** self.A)
        with np.errstate(divide="ignore"):
            p_K: F64 = 1 / (1 + c * (num_positives_K + self.B) ** -self.A)
        return p_K


class PrecisionAt:
    """Precision among the k most probable classes of each row, for any k up to `most`, found block by block of columns.

    Probabilities are compared as float32, and of equal ones the lower column comes first: the classes are those that `decide` gives
    as the top ones. A class whose label is unknown for a row is passed over there; a row of which nothing is known counts for
    nothing, a row without a positive class counts as all wrong.
    """

    def __init__(self, num_rows: int, propensity_K: Any, *, most: int) -> None:
        """Take the propensities of all heads.

        Raises:
            DataError: a propensity that is not in (0, 1]; too many heads.
        """
        propensity_K = np.asarray(propensity_K, dtype=np.float64)
        if propensity_K.ndim != 1 or not ((propensity_K > 0) & (propensity_K <= 1)).all():
            raise DataError(f"propensities must be one number a head, above 0 and at most 1; got shape {propensity_K.shape}")
        if len(propensity_K) >= MAX_COLUMNS:
            raise DataError(f"the top classes of {len(propensity_K)} heads are not found; expected less than {MAX_COLUMNS}")
        self._gain_K, self._most = 1 / propensity_K, min(most, len(propensity_K))
        self._key_NM = np.full((num_rows, self._most), -1, dtype=np.int64)
        self._ideal_NM = np.zeros((num_rows, self._most))
        self._known_N = np.zeros(num_rows, dtype=np.bool_)

    def update(self, prob_NC: Any, target_NC: Any, mask_NC: Any, *, first_column: int) -> None:
        """Take the next heads, of higher columns than those before.

        Raises:
            DataError: what `check_probs` refuses.
        """
        prob_NC, target_NC, mask_NC = check_probs(prob_NC, target_NC, mask_NC)
        column_C = np.arange(first_column, first_column + prob_NC.shape[1])
        positive_NC = target_NC & mask_NC
        # The bits of a float32 from 0 on sort as the number does. Below them lie the column, turned round, and whether it is right.
        key_NC = (prob_NC.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.int64) << 32
        key_NC |= ((MAX_COLUMNS - 1 - column_C) << 1) | positive_NC
        key_NC[~mask_NC] = -1
        self._key_NM = _highest(np.concatenate([self._key_NM, key_NC], axis=1), self._most)
        gain_NC = np.where(positive_NC, self._gain_K[column_C], 0.0)
        self._ideal_NM = _highest(np.concatenate([self._ideal_NM, gain_NC], axis=1), self._most)
        self._known_N |= mask_NC.any(axis=1)

    def precision(self, k: int) -> float:
        """Return P@k, the mean over rows of (right classes among the top k) / k; NaN without a row or with fewer than k heads."""
        return _over(*self.precision_rows(k))

    def ps_precision(self, k: int) -> float:
        """Return PSP@k: the sum over rows and their top k of right / propensity, over its highest possible value.

        NaN where `precision` is, and without a positive.
        """
        return _over(*self.ps_precision_rows(k))

    def precision_rows(self, k: int) -> tuple[F64, F64]:
        """Return (right classes among the top k) / k and 1 for each row (N,) that counts, and 0 and 0 for others: P@k is the ratio
        of the sums."""
        return self._hits(k).sum(axis=1) / k, np.where(self._known_N & (k <= self._most), 1.0, 0.0)

    def ps_precision_rows(self, k: int) -> tuple[F64, F64]:
        """Return the sum over each row's top k of right / propensity, and the highest possible one (N,): PSP@k is the ratio of the
        sums."""
        column_NM = MAX_COLUMNS - 1 - ((self._key_NM[:, :k] & 0xFFFFFFFF) >> 1)
        hit_NM = self._hits(k)
        gain_NM = np.where(hit_NM, self._gain_K[np.where(hit_NM, column_NM, 0)], 0.0)
        return gain_NM.sum(axis=1), self._ideal_NM[:, :k].sum(axis=1) * (k <= self._most)

    def _hits(self, k: int) -> NDArray[np.bool_]:
        key_NM = self._key_NM[:, :k]
        hit_NM: NDArray[np.bool_] = (key_NM >= 0) & (key_NM & 1 == 1)
        return hit_NM


def _over(top_N: F64, bottom_N: F64) -> float:
    return float(top_N.sum() / bottom_N.sum()) if bottom_N.any() else float("nan")


def _highest(value_NC: NDArray[Any], num: int) -> NDArray[Any]:
    """Return the `num` highest of each row, falling."""
    if num < value_NC.shape[1]:
        value_NC = np.partition(value_NC, value_NC.shape[1] - num, axis=1)[:, value_NC.shape[1] - num :]
    return np.sort(value_NC, axis=1)[:, ::-1]
