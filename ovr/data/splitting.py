"""Which rows are trained on, validated, calibrated and tested on: the rule, and the rows it gives.

Knows labels and the cells of one column, not where they come from. Rows are counted from 0.

N = rows, B = rows of one split, S = splits
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.data.labels import Labels
from ovr.data.splits import SPLIT_NAMES, stratified_split
from ovr.data.stratify import spread_groups, spread_rows
from ovr.errors import DataError

I64 = NDArray[np.int64]

RULES = ("stratified", "file", "column", "time", "group")
WITH_COLUMN = ("column", "time", "group")
SPELLINGS = {
    **{name: name for name in SPLIT_NAMES},
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "development": "val",
    "calibration": "calib",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How rows are split.

    - stratified: at random by `seed`, every class in proportion; with several labels a row by iterative stratification.
    - file: by the file that a row came from, which stands for a split.
    - column: `column` names the split of a row: train, val, calib or test, or one of `SPELLINGS`.
    - time: by `column`: the oldest rows are train, then val, calib and test; rows of one time stay together.
    - group: no value of `column` is in two splits; classes as far in proportion as that allows.

    `fractions` are the shares of the splits. With "file" and "column", splits that are not there come off the training rows,
    stratified, in the proportions that `fractions` has for train and for them; the others' fractions are not used.
    """

    by: str
    column: str | None = None
    fractions: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in RULES:
            raise DataError(f"split.by is {self.by!r}; expected one of {', '.join(RULES)}")
        if (self.column is not None) != (self.by in WITH_COLUMN):
            expected = "the name of a column" if self.by in WITH_COLUMN else "null"
            raise DataError(f"split.column is {self.column!r} with split.by={self.by}; expected {expected}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise DataError(f"the seed of the split must be a whole number of at least 0, got {self.seed!r}")
        if not isinstance(self.fractions, Mapping):
            raise DataError(f"split.fractions is {self.fractions!r}; expected a share for each of {', '.join(SPLIT_NAMES)}")
        if unknown := [name for name in self.fractions if name not in SPLIT_NAMES]:
            raise DataError(f"split.fractions names {', '.join(map(repr, unknown))}; expected {', '.join(SPLIT_NAMES)}")
        shares = list(self.fractions.values())
        if not all(isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1 for share in shares):
            raise DataError(f"split.fractions must be numbers above 0 and at most 1, got {dict(self.fractions)}")
        if self.by not in ("file", "column"):
            if "train" not in self.fractions:
                raise DataError(f"split.fractions has no share for train, got {dict(self.fractions)}")
            if abs(sum(shares) - 1) > 1e-6:
                raise DataError(f"split.fractions must sum to 1, got {dict(self.fractions)} with sum {sum(shares):g}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "SplitRule":
        """Return the rule that a data yaml describes: by, column, fractions and seed.

        Raises:
            DataError: another setting, or one that is wrong.
        """
        names = ("by", "column", "fractions", "seed")
        if unknown := [name for name in settings if name not in names]:
            raise DataError(f"split has {', '.join(map(repr, unknown))}; expected {', '.join(names)}")
        if "by" not in settings:
            raise DataError(f"split.by is not given; expected one of {', '.join(RULES)}")
        return cls(**settings)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"by": self.by, "column": self.column, "fractions": dict(self.fractions), "seed": self.seed}


def split_rows(
    rule: SplitRule, labels: Labels, values: Sequence[Any] | None = None, *, where: Callable[[int], str] = "row {}".format
) -> dict[str, I64]:
    """Return disjoint ascending row numbers that together are all rows, by the name of their split, in the order of `SPLIT_NAMES`.

    The result depends on the rule, the labels and the values only. Where splits are drawn ("stratified", "group", and what comes
    off the training rows) train has a row of every class that has any; unknown labels are not looked at.

    Args:
        values: one a row: the cells of `rule.column`; with "file" the split that the row's file stands for; None with "stratified".
        where: how messages call a row.

    Raises:
        DataError: values that are missing, too many or cannot be used (naming the row); a split without a row; fractions that lack
            a split.
    """
    if len(labels) == 0:
        raise DataError("got no rows to split")
    if (values is None) != (rule.by == "stratified"):
        expected = "no values" if rule.by == "stratified" else "one value a row"
        raise DataError(f"split.by={rule.by} takes {expected}, got {'none' if values is None else len(values)}")
    if values is not None and len(values) != len(labels):
        raise DataError(f"got {len(values)} values to split by for {len(labels)} rows; expected one a row")
    if values is None:
        rows = _stratified(rule, labels, np.arange(len(labels)), list(rule.fractions))
    elif rule.by == "time":
        rows = _by_time(rule, values, where)
    elif rule.by == "group":
        rows = _by_group(rule, labels, values, where)
    else:
        rows = _by_name(rule, labels, values, where)
    if empty := [name for name, row_B in rows.items() if not len(row_B)]:
        raise DataError(
            f"split {', '.join(empty)} would have no row: {len(labels)} rows are too few for split.fractions={dict(rule.fractions)}"
        )
    return {name: rows[name] for name in SPLIT_NAMES if name in rows}


def split_name(cell: Any) -> str | None:
    """Return the split that a cell names, in any case and with blanks around it; None if it names none."""
    return SPELLINGS.get(str(cell).strip().lower())


def _stratified(rule: SplitRule, labels: Labels, among_B: I64, names: Sequence[str]) -> dict[str, I64]:
    """Return the rows of `among_B` for each of the names, in the proportions of their fractions."""
    order = sorted(names, key=SPLIT_NAMES.index)  # the split of the first place has a row of every class
    share_S = np.array([rule.fractions[name] for name in order], dtype=np.float64)
    share_S /= share_S.sum()
    some = labels.take(among_B)
    if (np.diff(some.positives.start_N1) == 1).all():
        column_B = some.positives.column_P
        rows = stratified_split(column_B, dict(zip(order, share_S.tolist(), strict=True)), seed=rule.seed)
        return {name: among_B[row_B] for name, row_B in rows.items()}
    split_B = spread_rows(some.positives, share_S, num_heads=labels.num_heads, rng=np.random.default_rng(rule.seed))
    return {name: among_B[split_B == s] for s, name in enumerate(order)}


def _by_name(rule: SplitRule, labels: Labels, values: Sequence[Any], where: Callable[[int], str]) -> dict[str, I64]:
    what = f"column {rule.column!r}" if rule.by == "column" else "the file's split"
    spelled: dict[str, str] = {}
    place: dict[Any, int] = {}  # of each value there is, so that a million rows are few look-ups
    split_N = np.empty(len(values), np.int64)
    for row, value in enumerate(values):
        if value not in place:
            if (name := split_name(value)) is None:
                raise DataError(f"{where(row)}: {what} holds {value!r}, which names no split; expected {_spellings()}")
            spelling = str(value).strip().lower()
            if spelled.setdefault(name, spelling) != spelling:
                raise DataError(
                    f"{where(row)}: {what} holds {spelling!r}, an earlier row {spelled[name]!r}, and both mean {name}; use one"
                )
            place[value] = SPLIT_NAMES.index(name)
        split_N[row] = place[value]
    given = {name: np.flatnonzero(split_N == s) for s, name in enumerate(SPLIT_NAMES) if name in spelled}
    if "train" not in given:
        raise DataError(f"{what}: no row is train; the rows are {', '.join(given)}")
    missing = [name for name in SPLIT_NAMES if name not in given]
    if not missing:
        return given
    if unnamed := [name for name in ("train", *missing) if name not in rule.fractions]:
        raise DataError(
            f"{what}: no row is {', '.join(missing)}; such rows come off train by split.fractions, "
            f"which lacks {', '.join(unnamed)}: got {dict(rule.fractions)}"
        )
    return given | _stratified(rule, labels, given["train"], ["train", *missing])


def _by_time(rule: SplitRule, values: Sequence[Any], where: Callable[[int], str]) -> dict[str, I64]:
    """Bounds lie between two times, as near to the fractions as they come."""
    names = [name for name in SPLIT_NAMES if name in rule.fractions]
    time_N = _times(rule.column, values, where)
    order_N = np.argsort(time_N, kind="stable")
    start_T = np.flatnonzero(np.diff(time_N[order_N]) > 0) + 1  # where another time begins
    if len(start_T) + 1 < len(names):
        raise DataError(
            f"column {rule.column!r} has {len(start_T) + 1} distinct times; expected at least {len(names)}, one for each of "
            f"{', '.join(names)}"
        )
    bounds: list[int] = []
    wanted_S = np.cumsum([rule.fractions[name] for name in names])[:-1] * len(values)
    least = 0
    for s, wanted in enumerate(wanted_S):
        usable_T = start_T[least : len(start_T) - (len(wanted_S) - 1 - s)]
        nearest = int(np.argmin(np.abs(usable_T - wanted)))
        bounds.append(int(usable_T[nearest]))
        least += nearest + 1
    return {name: np.sort(row_B) for name, row_B in zip(names, np.split(order_N, bounds), strict=True)}


def _times(column: str | None, values: Sequence[Any], where: Callable[[int], str]) -> NDArray[np.float64]:
    """Return the values as numbers that order them: all numbers, or all ISO 8601 dates (with or without time and zone)."""
    time_N = np.empty(len(values))
    kind, began = "", ""
    for row, value in enumerate(values):
        here, time_N[row] = _time(value)
        said = f"column {column!r} holds {value!r}"
        if not here:
            raise DataError(f"{where(row)}, {said}; expected a number or a date such as 2024-05-31T12:00:00")
        if kind and here != kind:
            raise DataError(f"{where(row)}, {said}, {here}; the first row holds {began!r}, {kind}; expected one kind in all rows")
        kind, began = here, began or str(value)
    return time_N


def _time(value: Any) -> tuple[str, float]:
    """Return what the value is and where it lies: a number as it is, a date in seconds; "" if it is neither."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                value = datetime.fromisoformat(value.strip())
            except ValueError:
                return "", math.nan
    if value is None or value != value:  # NaN, NaT
        return "", math.nan
    if isinstance(value, np.datetime64):
        return "a date without a zone", float(value.astype("datetime64[us]").astype(np.int64)) / 1e6
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            return "a date without a zone", (value - datetime(1970, 1, 1)).total_seconds()
        return "a date with a zone", value.timestamp()
    if isinstance(value, Real | np.number) and not isinstance(value, bool) and math.isfinite(value):
        return "a number", float(value)
    return "", math.nan


def _by_group(rule: SplitRule, labels: Labels, values: Sequence[Any], where: Callable[[int], str]) -> dict[str, I64]:
    names = [name for name in SPLIT_NAMES if name in rule.fractions]
    number: dict[Any, int] = {}
    group_N = np.empty(len(values), np.int64)
    for row, value in enumerate(values):
        if value is None or value == "" or value != value:
            raise DataError(f"{where(row)}, column {rule.column!r} is empty; expected the group of the row")
        group_N[row] = number.setdefault(value, len(number))
    if len(number) < len(names):
        raise DataError(
            f"column {rule.column!r} has {len(number)} groups; expected at least {len(names)}, one for each of {', '.join(names)}"
        )
    share_S = np.array([rule.fractions[name] for name in names], dtype=np.float64)
    rng = np.random.default_rng(rule.seed)
    split_G = spread_groups(group_N, labels.positives, share_S, num_heads=labels.num_heads, rng=rng)
    rows = {name: np.flatnonzero(split_G[group_N] == s) for s, name in enumerate(names)}
    if empty := [name for name, row_B in rows.items() if not len(row_B)]:
        raise DataError(
            f"split {', '.join(empty)} would have no group of column {rule.column!r}: each class has a group in train, and the "
            f"{len(number)} groups do not go further"
        )
    return rows


def _spellings() -> str:
    return "; ".join(" or ".join(cell for cell, of in SPELLINGS.items() if of == name) for name in SPLIT_NAMES)
