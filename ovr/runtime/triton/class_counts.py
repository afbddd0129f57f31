"""Counts of what was answered, by class and head version, between two readings. Knows nothing of Triton.

B = rows of some requests, N = of all, R = requests, C = classes of a request, E = upper bounds of a histogram
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SCORE_BOUNDS_E = np.linspace(0.1, 1.0, 10).astype(np.float32)  # probabilities
LATENCY_BOUNDS_E = np.array([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5])  # seconds
POOLED = ""  # the class of the group that holds all classes without one of their own


@dataclass(slots=True)
class Counts:
    """Of one group. Histograms are cumulative: how many are at most each bound, and last how many there are."""

    requests: int = 0
    rows: int = 0
    decided: int = 0
    abstained: int = 0
    unavailable: int = 0
    score_sum: float = 0.0
    score: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SCORE_BOUNDS_E) + 1, np.int64))
    latency_s_sum: float = 0.0
    latency: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(LATENCY_BOUNDS_E) + 1, np.int64))

    def increments(self) -> Iterator[tuple[str, str | None, float]]:
        """Yield family, upper bound (None: no histogram) and increment of what is not 0."""
        for name in ("requests", "rows", "decided", "abstained", "unavailable"):
            if value := getattr(self, name):
                yield name, None, value
        for name, bounds_E in (("score", SCORE_BOUNDS_E), ("latency", LATENCY_BOUNDS_E)):
            counts = getattr(self, name)
            for bound, count in zip([*(f"{bound:.4g}" for bound in bounds_E), "+Inf"], counts.tolist(), strict=True):
                if count:
                    yield name, bound, count
        if self.score[-1]:
            yield "score_sum", None, self.score_sum
        if self.latency[-1]:
            yield "latency_sum", None, self.latency_s_sum


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers to requests for the same columns of the model (None: all) and, for each row, what came out."""

    column_C: NDArray[np.int64] | None
    prob_BC: NDArray[np.float32]  # what was scored; NaN where a class was unavailable
    label_BC: NDArray[np.bool_]
    abstained_B: NDArray[np.bool_]
    top_B: NDArray[np.int64]  # among the request's columns, -1: none. A row that was abstained on counts for this class
    head_version_BC: NDArray[np.int64]  # 0 where nothing answered
    rows_R: Sequence[int]  # of each request, which together are B
    latency_s: float  # of each request: they were answered at the same time


def own_series(is_critical: Sequence[bool], max_classes: int) -> NDArray[np.bool_]:
    """Return which classes (K,) have series of their own: critical ones first, then by column."""
    order = sorted(range(len(is_critical)), key=lambda column: (not is_critical[column], column))
    is_own_K = np.zeros(len(order), np.bool_)
    is_own_K[order[:max_classes]] = True
    return is_own_K


class ClassCounts:
    """Groups: a class and the version of its head that answered, for `max_classes` classes; one for all others together.

    Answers are only noted when they are given, as counting many of them at once takes a hundredth of the time.
    """

    def __init__(self, class_ids: Sequence[str], *, is_critical: Sequence[bool], max_classes: int) -> None:
        """Give groups of their own to critical classes first, then by column."""
        self._is_own_K = own_series(is_critical, max_classes)
        self._ids = class_ids
        self._noted: list[Answered] = []
        self.num_noted = 0  # probabilities

    def note(self, answered: Answered) -> None:
        """Keep an answer for the next reading."""
        self._noted.append(answered)
        self.num_noted += answered.prob_BC.size

    def take(self) -> list[Answered]:
        """Return what was noted since the last time."""
        noted, self._noted, self.num_noted = self._noted, [], 0
        return noted

    def count(self, noted: Sequence[Answered]) -> dict[tuple[str, int], Counts]:
        """Return the groups (class, head version) of these answers."""
        by_columns: dict[bytes | None, list[Answered]] = {}
        for answered in noted:
            key = None if answered.column_C is None else answered.column_C.tobytes()
            by_columns.setdefault(key, []).append(answered)
        groups: dict[tuple[str, int], Counts] = {}
        for alike in by_columns.values():
            self._count(alike, groups)
        return groups

    def _count(self, noted: list[Answered], groups: dict[tuple[str, int], Counts]) -> None:
        """Count answers of the same columns."""
        column_C = noted[0].column_C
        column_C = np.arange(len(self._ids)) if column_C is None else column_C
        prob_NC, label_NC, version_NC = (
            np.concatenate([getattr(answered, name) for answered in noted]) for name in ("prob_BC", "label_BC", "head_version_BC")
        )
        abstained_N, top_N = (np.concatenate([getattr(answered, name) for answered in noted]) for name in ("abstained_B", "top_B"))
        refused_N = np.where(abstained_N, top_N, -1)
        rows_R = [num_rows for answered in noted for num_rows in answered.rows_R]
        first_R = np.cumsum([0, *rows_R[:-1]])
        latency_R = np.repeat([answered.latency_s for answered in noted], [len(answered.rows_R) for answered in noted])
        is_own_C = self._is_own_K[column_C]
        for c in np.flatnonzero(is_own_C).tolist():
            version_N = version_NC[:, c]
            for version in np.unique(version_N).tolist():
                here_N, asked_R = version_N == version, version_N[first_R] == version
                group = groups.setdefault((self._ids[int(column_C[c])], version), Counts())
                _add_requests(group, latency_R[asked_R])
                _add_scores(group, prob_NC[here_N, c])
                group.decided += int(label_NC[here_N, c].sum())
                group.abstained += int((refused_N[here_N] == c).sum())
        if not is_own_C.all():
            group = groups.setdefault((POOLED, 0), Counts())
            _add_requests(group, latency_R)
            _add_scores(group, prob_NC[:, ~is_own_C].ravel())
            group.decided += int(label_NC[:, ~is_own_C].sum())
            group.abstained += int(np.isin(refused_N, np.flatnonzero(~is_own_C)).sum())


def _add_requests(group: Counts, latency_R: NDArray[np.float64]) -> None:
    group.requests += len(latency_R)
    group.latency += _cumulative(latency_R, LATENCY_BOUNDS_E)
    group.latency_s_sum += float(latency_R.sum())


def _add_scores(group: Counts, prob_N: NDArray[np.float32]) -> None:
    group.rows += len(prob_N)
    missing_N = np.isnan(prob_N)
    group.unavailable += int(missing_N.sum())
    prob_N = prob_N[~missing_N]
    group.score += _cumulative(prob_N, SCORE_BOUNDS_E)
    group.score_sum += float(prob_N.sum(dtype=np.float64))


def _cumulative(values_N: NDArray[np.floating], bounds_E: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return how many values are at most each bound, and how many there are: a quarter of a binary search's time."""
    return np.array([*(np.count_nonzero(values_N <= bound) for bound in bounds_E), len(values_N)], np.int64)
