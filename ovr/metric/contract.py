"""The calibration contract: may each head's calibration error still be above its limit? Knows not where probabilities come from.

A head passes if the upper bound of its error (`ece_upper_bound`) is at or below its limit: then the rows show that it keeps it. It
fails if they show that it does not, or are many enough to show it and do not. Between the two it is undecided: with so few rows a
perfectly calibrated head could not pass either, and the verdict says how many would do.

N = rows, K = heads
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ovr.core.taxonomy import Taxonomy
from ovr.errors import ConfigError
from ovr.metric.bins import bin_sums
from ovr.metric.calibration_bound import ece_interval, ece_upper_bound, rows_needed
from ovr.metric.intervals import CONFIDENCE

LIMIT = 0.05
Outcome = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True, slots=True)
class HeadVerdict:
    """What the rows say of one head. `ece` is None without a known row."""

    class_id: str
    outcome: Outcome
    ece: float | None
    upper: float  # the true error is at most that, with the confidence asked for
    limit: float
    num_rows: int
    num_positives: int
    num_rows_needed: int  # known rows with probabilities like these, so that a calibrated head passes in 8 of 10 draws

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def __str__(self) -> str:
        measured = "no known row" if self.ece is None else f"ECE {self.ece:.4f}, at most {self.upper:.4f}"
        more = f"; it needs about {self.num_rows_needed} rows to decide" if self.outcome == "undecided" else ""
        counts = f"{self.num_rows} rows, {self.num_positives} positive"
        return f"{self.class_id!r}: {self.outcome} ({measured}; limit {self.limit:g}; {counts}{more})"


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
    low_K, _ = ece_interval(bin_sums(prob_NK, target_NK, mask_NK), confidence=confidence)
    needed_K = np.zeros(len(limit_K), np.int64)
    for limit in np.unique(limit_K).tolist():
        here = limit_K == limit
        needed_K[here] = rows_needed(limit, np.asarray(prob_NK)[:, here], np.asarray(mask_NK)[:, here], confidence=confidence)
    known_NK = np.asarray(mask_NK).astype(np.bool_)
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
        )
        for k, class_id in enumerate(class_ids)
    ]
