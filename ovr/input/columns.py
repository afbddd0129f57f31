"""The columns of a table: what each may hold, and which numbers stand for a cell. Knows nothing of how they were fitted.

N = rows, P = rows with a problem, E = numbers that stand for one cell, V = different texts of a column
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ArtifactError
from ovr.input.cells import MISSING, Cells, Coded, Hashed, cell_at, read_texts, read_times, text_hash

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ALLOW, ERROR, CLIP = "allow", "error", "clip"
UNREADABLE = "unreadable"  # no number, time or text: always an error
IS_MISSING = "missing"
UNKNOWN = "unknown"
OUT_OF_RANGE = "out of range"

PARTS = ("year", "month sin", "month cos", "weekday sin", "weekday cos", "hour sin", "hour cos")


@dataclass(frozen=True, slots=True)
class Finding:
    """Cells of one column that are not as those of the training rows were, for one reason."""

    column: str
    reason: str  # UNREADABLE | IS_MISSING | UNKNOWN | OUT_OF_RANGE
    refused: bool  # whether the column's policy makes an error of it
    row_P: I64
    value: Any  # of the first row
    expected: str

    def __str__(self) -> str:
        more = f" ({len(self.row_P) - 1} more such rows)" if len(self.row_P) > 1 else ""
        return f"row {self.row_P[0]}, column {self.column!r} holds {self.value!r}; expected {self.expected}{more}"


def finding(column: str, reason: str, policy: str, row_P: I64, cells: Cells, expected: str) -> list[Finding]:
    """Return the finding of these rows as a list, empty where there are none."""
    if not len(row_P):
        return []
    return [Finding(column, reason, policy == ERROR, row_P, cell_at(cells, int(row_P[0])), expected)]


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """A number: (curve(value) - shift) * scale, of `fill` where it is missing; then 1 or 0 for missing where `flag`."""

    kind: ClassVar[str] = "numeric"
    name: str
    fill: float  # the median of the training rows
    shift: float
    scale: float
    low: float  # the least and the greatest of the training rows
    high: float
    flag: bool
    curve: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # straight lines between points (x, y), level beyond them
    missing: str = ALLOW
    out_of_range: str = ALLOW

    def __post_init__(self) -> None:
        check_policies(self.name, missing=self.missing, out_of_range=self.out_of_range)

    @property
    def labels(self) -> list[str]:
        """The names of the numbers."""
        return [self.name, f"{self.name} is missing"] if self.flag else [self.name]


@dataclass(frozen=True, slots=True)
class CategoryColumn:
    """A text: one place for each category, then one for those that are not known and one for missing, where training had such.

    A category that training had too seldom to learn of counts as not known (`rare`). With `layout` "hashed" the places are
    `num_buckets` of the text's hash, and with "index" there is one number instead: 0 for missing, 1 for not known, from 2 on the
    category, or the bucket of its hash where there are no `categories`.
    """

    kind: ClassVar[str] = "category"
    name: str
    categories: tuple[str, ...]
    rare: tuple[str, ...]
    unknown_place: bool
    missing_place: bool
    layout: str = "onehot"
    num_buckets: int = 0
    missing: str = ALLOW
    unknown: str = ALLOW

    def __post_init__(self) -> None:
        check_policies(self.name, missing=self.missing, unknown=self.unknown)
        if self.layout not in ("onehot", "hashed", "index"):
            raise ArtifactError(f"column {self.name!r} has layout {self.layout!r}; expected onehot, hashed or index")

    @property
    def labels(self) -> list[str]:
        """The names of the numbers."""
        if self.layout == "index":
            return [self.name]
        names = [f"{self.name}={category}" for category in self.categories]
        names += [f"{self.name}#{bucket}" for bucket in range(self.num_buckets)]
        names += [f"{self.name} is unknown"] * self.unknown_place
        return names + [f"{self.name} is missing"] * self.missing_place

    def encode(self, cells: Cells, marks: Collection[str], out_NE: NDArray[np.float32]) -> list[Finding]:
        """Write the numbers of these cells into `out_NE`, which is zero, and return what is to be said of them."""
        coded, bad_P = read_texts(cells, marks)
        found = finding(self.name, UNREADABLE, ERROR, bad_P, cells, "a text")
        if isinstance(coded, Hashed):
            missing_N, unknown_N = coded.hash_N < 0, np.zeros(len(coded), bool)
            place_N = np.zeros(len(coded), np.int64) if self.categories else coded.hash_N % self._num_hashed
        else:
            missing_N = coded.code_N == MISSING
            place_V, unknown_V = self._places(coded)
            place_N = np.append(place_V, 0)[coded.code_N]
            unknown_N = np.append(unknown_V, False)[coded.code_N]
        seen = self.categories + self.rare
        shown = ", ".join(map(repr, seen[:5])) + (f", ... ({len(seen)})" if len(seen) > 5 else "")
        missing_P = np.setdiff1d(np.flatnonzero(missing_N), bad_P)
        if not self.missing_place or self.missing == ERROR:
            found += finding(self.name, IS_MISSING, self.missing, missing_P, cells, "a text, as in every training row")
        found += finding(self.name, UNKNOWN, self.unknown, np.flatnonzero(unknown_N), cells, f"one of {shown}")
        if self.layout == "index":
            out_NE[:, 0] = np.where(missing_N, 0, place_N + 2)  # -1, not known, becomes 1
            return found
        num_own = len(self.categories) + self.num_buckets
        own_N = ~missing_N & (place_N >= 0)
        row_P = np.flatnonzero(own_N)
        out_NE[row_P, place_N[row_P]] = 1
        if self.unknown_place:
            out_NE[~missing_N & (place_N < 0), num_own] = 1
        if self.missing_place:
            out_NE[missing_N, num_own + self.unknown_place] = 1
        return found

    @property
    def _num_hashed(self) -> int:
        return self.num_buckets - 2 if self.layout == "index" else self.num_buckets

    def _places(self, coded: Coded) -> tuple[I64, NDArray[np.bool_]]:
        """Return for each text (its place, -1 for none of its own; whether training had no such text)."""
        if not self.categories:
            return np.array([text_hash(text) % self._num_hashed for text in coded.values], np.int64), np.zeros(
                len(coded.values), bool
            )
        place = {category: place for place, category in enumerate(self.categories)}
        place_V = np.array([place.get(text, -1) for text in coded.values], np.int64)
        rare = set(self.rare)
        return place_V, np.array([p < 0 and text not in rare for p, text in zip(place_V, coded.values, strict=True)], bool)


@dataclass(frozen=True, slots=True)
class DateColumn:
    """A time, as those of `PARTS` that vary: the year with its fraction, standardised, and points on circles; then missing."""

    kind: ClassVar[str] = "date"
    name: str
    parts: tuple[str, ...]
    fill: float  # seconds since 1970, the median of the training rows
    shift: float  # of the year
    scale: float
    low: float  # seconds since 1970
    high: float
    flag: bool
    formats: tuple[str, ...] = ()
    missing: str = ALLOW
    out_of_range: str = ALLOW

    def __post_init__(self) -> None:
        check_policies(self.name, missing=self.missing, out_of_range=self.out_of_range)

    @property
    def labels(self) -> list[str]:
        """The names of the numbers."""
        return [f"{self.name} {part}" for part in self.parts] + [f"{self.name} is missing"] * self.flag

    def encode(self, cells: Cells, marks: Collection[str], out_NE: NDArray[np.float32]) -> list[Finding]:
        """Write the numbers of these cells into `out_NE`, which is zero, and return what is to be said of them."""
        second_N, bad_P = read_times(cells, marks, self.formats)
        expected = f"a time of the form {' or '.join(self.formats)}" if self.formats else "a time of ISO 8601, such as 2024-01-31"
        found = finding(self.name, UNREADABLE, ERROR, bad_P, cells, expected)
        missing_N = np.isnan(second_N)
        missing_P = np.setdiff1d(np.flatnonzero(missing_N), bad_P)
        if not self.flag or self.missing == ERROR:
            found += finding(self.name, IS_MISSING, self.missing, missing_P, cells, "a time, as in every training row")
        outside_P = np.flatnonzero((second_N < self.low) | (second_N > self.high))
        span = f"{shown_time(self.low)} to {shown_time(self.high)}, as in the training rows"
        found += finding(self.name, OUT_OF_RANGE, self.out_of_range, outside_P, cells, span)
        second_N = np.where(missing_N, self.fill, second_N)
        if self.out_of_range == CLIP:
            second_N = np.clip(second_N, self.low, self.high)
        numbers = time_parts(second_N)
        for e, part in enumerate(self.parts):
            out_NE[:, e] = (numbers[part] - self.shift) * self.scale if part == "year" else numbers[part]
        if self.flag:
            out_NE[:, -1] = missing_N
        return found


Column = NumericColumn | CategoryColumn | DateColumn
COLUMNS: dict[str, type[Column]] = {column.kind: column for column in (NumericColumn, CategoryColumn, DateColumn)}


def time_parts(second_N: F64) -> dict[str, F64]:
    """Return what `PARTS` names of seconds since 1970."""
    time_N = (second_N * 1e6).astype("datetime64[us]")
    year_N = time_N.astype("datetime64[Y]")
    start_N, end_N = (year_N.astype("datetime64[us]").astype(np.int64), (year_N + 1).astype("datetime64[us]").astype(np.int64))
    within_N = (time_N.astype(np.int64) - start_N) / (end_N - start_N)
    day_N = time_N.astype("datetime64[D]")
    angle = {
        "month": (time_N.astype("datetime64[M]").astype(np.int64) % 12) / 12,
        "weekday": ((day_N.astype(np.int64) + 3) % 7) / 7,  # 1970-01-01 was a Thursday; Monday is 0
        "hour": (time_N - day_N.astype("datetime64[us]")).astype(np.int64) / 86_400e6,
    }
    parts: dict[str, F64] = {"year": year_N.astype(np.float64) + 1970 + within_N}
    for name, turn_N in angle.items():
        parts |= {f"{name} sin": np.sin(2 * np.pi * turn_N), f"{name} cos": np.cos(2 * np.pi * turn_N)}
    return parts


def shown_time(second: float) -> str:
    """Return seconds since 1970 as ISO 8601."""
    return str(np.datetime64(round(second * 1e6), "us").astype("datetime64[s]"))


def check_policies(column: str, **policies: str) -> None:
    """Raise ArtifactError unless each policy is one of those that its kind of finding has."""
    for name, policy in policies.items():
        known: Sequence[str] = (ALLOW, ERROR, CLIP) if name == "out_of_range" else (ALLOW, ERROR)
        if policy not in known:
            raise ArtifactError(f"column {column!r} has {name}={policy!r}; expected one of {', '.join(known)}")
