"""One threshold a head, with what is to be said of it. Knows nothing of how thresholds are chosen.

K = heads
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

OK = "ok"
NO_POSITIVE = "no_positive"  # no known positive among the calibration rows: the rule's fallback stands
NOT_PROMISED = "cannot_be_promised"  # begins the status of a head whose rows do not bear the promise asked for; the fallback stands


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds (K,) float64, each a float32 number, and a status a head: `OK`, `NO_POSITIVE`, or `NOT_PROMISED` with its
    reason, such as "cannot_be_promised: n = 12 positives, needs at least 29"."""

    threshold_K: NDArray[np.float64]
    status_K: tuple[str, ...]

    @classmethod
    def of(cls, value: "Thresholds | ArrayLike") -> "Thresholds":
        """Return what a rule gave; a rule that returns numbers alone says nothing against them."""
        if isinstance(value, Thresholds):
            return value
        threshold_K = np.asarray(value, dtype=np.float64)
        return cls(threshold_K, (OK,) * len(threshold_K))

    @classmethod
    def joined(cls, parts: Sequence["Thresholds"]) -> "Thresholds":
        """Return the thresholds of all parts, one part after the other."""
        return cls(np.concatenate([part.threshold_K for part in parts]), tuple(s for part in parts for s in part.status_K))

    def __len__(self) -> int:
        return len(self.threshold_K)

    def columns_without_promise(self) -> list[int]:
        """Return the columns of the heads that have a threshold without the promise that was asked for."""
        return [column for column, status in enumerate(self.status_K) if status.startswith(NOT_PROMISED)]


@runtime_checkable
class KnowsClasses(Protocol):
    """A rule that asks which classes there are: it prices some by id, or its promise is over all of them."""

    def of_classes(self, class_ids: Sequence[str], columns: slice) -> Any:
        """Return the rule for the heads `columns` of these classes; errors name a class that is not there."""
        ...


def rule_for(rule: Any, class_ids: Sequence[str], columns: slice = slice(None)) -> Any:
    """Return the rule to `fit` on the probabilities of the heads `columns` among all `class_ids`.

    Raises:
        ConfigError: the rule names a class that is not there.
    """
    return rule.of_classes(class_ids, columns) if isinstance(rule, KnowsClasses) else rule
