"""The calibration contract: may each head's calibration error still be above its limit? Knows not where probabilities come from.

A head passes if the upper bound of its error (`ece_upper_bound`) is at or below its limit: then the rows show that it keeps it. It
fails if they show that it does not, or are many enough to show it and do not. Between the two it is undecided: with so few rows a
perfectly calibrated head could not pass either, and the verdict says how many would do: at least that many for a head without
any error, more for one whose error stays what the rows show of it.

N = rows, K = heads
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ovr.core.taxonomy import Taxonomy
from ovr.errors import ConfigError
from ovr.metric.binned import debiased_ece
from ovr.metric.bins import bin_sums
from ovr.metric.calibration_bound import ece_interval, ece_upper_bound, rows_needed
from ovr.metric.intervals import CONFIDENCE

LIMIT = 0.05
Outcome = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True, slots=True)
class HeadVerdict:
    """What the rows say of one head, or of one in one cohort. `ece` and what is made of it are None without a known row."""

    class_id: str
    outcome: Outcome
    ece: float | None
    upper: float  # the true error is at most that, with the confidence asked for
    limit: float
    num_rows: int
    num_positives: int
    num_rows_needed: int  # known rows with probabilities like these, so that a calibrated head passes in 8 of 10 draws
    ece_debiased: float | None  # less what noise is expected to add to it
    num_rows_needed_as_measured: int | None  # if the true error is that; None: no number of rows would do
    cohort: str | None = None  # of the rows; None: all rows

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def __str__(self) -> str:
        measured = "no known row" if self.ece is None else f"ECE {self.ece:.4f}, at most {self.upper:.4f}"
        name = self.class_id if self.cohort is None else f"{self.class_id} ({self.cohort})"
        counts = f"{self.num_rows} rows, {self.num_positives} positive"
        return f"{name!r}: {self.outcome} ({measured}; limit {self.limit:g}; {counts}{self._needs()})"

    def _needs(self) -> str:
        undecided, number = self.outcome == "undecided", self.num_rows_needed_as_measured
        least = f"; it needs about {self.num_rows_needed} rows to decide if it is perfectly calibrated" if undecided else ""
        if self.outcome == "pass" or self.ece_debiased is None or (number is None and not undecided):
            return least
        stays = f"if its ECE is {self.ece_debiased:.4f} (as measured, less the noise of so few rows)"
        if number is None:
            return f"{least}; no number would do {stays}"
        return f"{least}, {number} {stays}" if undecided else f"; about {number} rows would show that it keeps it {stays}"


def limits_of(taxonomy: Taxonomy, limit: float = LIMIT, of_class: Mapping[str, float] | None = None) -> NDArray[np.float64]:
    """Return the limit (K,) of each class: that of `of_class`, else its own in the taxonomy, else `limit`.

    Raises:
        ConfigError: a limit outside (0, 1], or one for a class that there is not.
    """
    of_class = of_class or {}
    if unknown := taxonomy.unknown(of_class):
        raise ConfigError(f"contract limits are for classes that the model of {len(taxonomy)} classes does not have: {unknown}")
    for what, value in {"": limit, **of_class}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            of = f" of class {what!r}" if what else ""
            raise ConfigError(f"the contract's limit{of} is {value!r}; expected a number above 0 and at most 1")
    own = (limit if spec.max_ece is None else spec.max_ece for spec in taxonomy)
    return np.array([of_class.get(spec.id, value) for spec, value in zip(taxonomy, own, strict=True)], dtype=np.float64)


def judge(
    prob_NK: Any,
    target_NK: Any,
    mask_NK: Any,
    *,
    class_ids: Sequence[str],
    limit_K: NDArray[np.float64],
    confidence: float = CONFIDENCE,
) -> list[HeadVerdict]:
    """Return the verdict on every head, in column order; each at `confidence` on its own.

    Raises:
        ConfigError: `confidence` outside (0, 1).
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    ece_K, upper_K = ece_upper_bound(prob_NK, target_NK, mask_NK, confidence=confidence)
    sums = bin_sums(prob_NK, target_NK, mask_NK)
    low_K, _ = ece_interval(sums, confidence=confidence)
    debiased_K = np.maximum(debiased_ece(sums), 0.0)
    prob_NK, known_NK = np.asarray(prob_NK), np.asarray(mask_NK).astype(np.bool_)

    def needed(assumed_K: NDArray[np.float64]) -> NDArray[np.int64]:
        needed_K = np.zeros(len(limit_K), np.int64)  # 0: no number would do
        for limit in np.unique(limit_K[assumed_K < limit_K]).tolist():
            here = (limit_K == limit) & (assumed_K < limit)
            arrays = prob_NK[:, here], known_NK[:, here]
            needed_K[here] = rows_needed(limit, *arrays, assumed=assumed_K[here], confidence=confidence)
        return needed_K

    needed_K, as_measured_K = needed(np.zeros(len(limit_K))), needed(debiased_K)
    num_rows_K = known_NK.sum(axis=0)
    num_positives_K = (np.asarray(target_NK).astype(np.bool_) & known_NK).sum(axis=0)
    with np.errstate(invalid="ignore"):
        passes_K, shown_K = upper_K <= limit_K, low_K > limit_K
    decided_K = shown_K | (num_rows_K >= needed_K)
    return [
        HeadVerdict(
            class_id,
            "pass" if passes_K[k] else "fail" if decided_K[k] else "undecided",
            None if np.isnan(ece_K[k]) else float(ece_K[k]),
            float(upper_K[k]),
            float(limit_K[k]),
            int(num_rows_K[k]),
            int(num_positives_K[k]),
            int(needed_K[k]),
            None if np.isnan(debiased_K[k]) else float(debiased_K[k]),
            int(as_measured_K[k]) or None,
        )
        for k, class_id in enumerate(class_ids)
    ]


def judge_cohorts(
    prob_NK: Any,
    target_NK: Any,
    mask_NK: Any,
    *,
    cohort_N: NDArray[np.str_],
    fitted: Mapping[str, NDArray[np.bool_]],
    class_ids: Sequence[str],
    limit_K: NDArray[np.float64],
    confidence: float = CONFIDENCE,
) -> list[HeadVerdict]:
    """Return the verdict on every head in every cohort that it has a calibration of its own for, cohort after cohort.

    A head that is right on average may be off in each cohort, so this is asked beside `judge`, with the limits of the head.

    Args:
        cohort_N: to which cohort each row belongs.
        fitted: which heads (K,) have a calibration of their own, by cohort. One without a row in `cohort_N` is undecided.

    Raises:
        ConfigError, DataError: as `judge`.
    """
    verdicts = []
    for name, fitted_K in fitted.items():
        heads = np.flatnonzero(fitted_K)
        if not len(heads):
            continue
        mask_NH = np.asarray(mask_NK)[:, heads] * (cohort_N == name)[:, None]
        prob_NH, target_NH = np.asarray(prob_NK)[:, heads], np.asarray(target_NK)[:, heads]
        of = [class_ids[k] for k in heads.tolist()]
        found = judge(prob_NH, target_NH, mask_NH, class_ids=of, limit_K=limit_K[heads], confidence=confidence)
        verdicts += [replace(verdict, cohort=name) for verdict in found]
    return verdicts
