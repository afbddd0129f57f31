"""Fits a `TableEncoder` on training rows. Knows cells, no files and no labels.

N = rows, V = different values of a column
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import DataError
from ovr.input.cells import MISSING, Cells, Coded, Hashed, read_numbers, read_texts, read_times
from ovr.input.columns import ALLOW, ERROR, PARTS, CategoryColumn, Column, DateColumn, NumericColumn, time_parts
from ovr.input.table import TableEncoder

KINDS = ("numeric", "category", "date")
SCALES = ("standard", "quantile")
MAX_POINTS = 256  # of the curve of a quantile scale
MAX_RARE = 1000  # rare categories that are kept by name


@dataclass(frozen=True, slots=True)
class ColumnSettings:
    """How one column is read; None stands for the table's setting."""

    kind: str | None = None  # None: as the training rows look
    scale: str | None = None
    missing: str | None = None
    unknown: str | None = None
    out_of_range: str | None = None
    formats: tuple[str, ...] | None = None

    @classmethod
    def of(cls, name: str, value: Any) -> "ColumnSettings":
        """Return the settings that a configuration gives: a kind, or a mapping.

        Raises:
            DataError: another value, kind or setting.
        """
        settings: dict[str, Any] | None = (
            {"kind": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else None
        )
        if settings is None or (unknown := set(settings) - set(cls.__slots__)):
            raise DataError(
                f"column {name!r} has settings {value!r}; expected a kind ({', '.join(KINDS)}) or a mapping of "
                f"{', '.join(cls.__slots__)}" + (f", got {sorted(unknown)}" if settings is not None else "")
            )
        if settings.get("kind") not in (None, *KINDS):
            raise DataError(f"column {name!r} has kind {settings['kind']!r}; expected one of {', '.join(KINDS)}")
        if settings.get("formats") is not None:
            settings["formats"] = tuple(settings["formats"])
        return cls(**settings)


@dataclass(frozen=True, slots=True)
class TableSettings:
    """How columns are read that have no setting of their own."""

    marks: tuple[str, ...] = ("", "?", "NA", "N/A", "NULL", "null", "NaN", "nan")
    scale: str = "standard"  # standard | quantile
    missing: str = ALLOW
    unknown: str = ALLOW
    out_of_range: str = ALLOW
    date_formats: tuple[str, ...] = ()  # of strptime; none: ISO 8601
    max_categories: int = 100  # of a column with a place for each; above, the text's hash has one of `num_buckets`
    min_count: int = 2  # training rows below which a category counts as not known
    num_buckets: int = 256
    embedded: tuple[str, ...] = ()  # columns that are one number, the index of an embedding of `num_buckets`

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise DataError(f"the scale of numbers is {self.scale!r}; expected one of {', '.join(SCALES)}")
        for name, least in (("max_categories", 1), ("min_count", 1), ("num_buckets", 3)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError(f"{name} is {value!r}; expected a whole number of at least {least}")


def kind_of(cells: Cells, marks: Collection[str], formats: Sequence[str]) -> str | None:
    """Return the kind that all cells have: numeric, date or, of other texts, category; None where all are missing."""
    if isinstance(cells, Coded):
        cells = [cells.values[code] for code in np.unique(cells.code_N) if code != MISSING]
    value_N, bad_P = read_numbers(cells, marks)
    if not len(bad_P):
        return None if np.isnan(value_N).all() else "numeric"
    _, bad_P = read_times(cells, marks, formats)
    return "category" if len(bad_P) else "date"


def fit_table(
    cells: Iterable[tuple[str, Cells]],
    *,
    settings: TableSettings,
    columns: Mapping[str, ColumnSettings],
    ignored: Sequence[str] = (),
) -> tuple[TableEncoder, dict[str, str]]:
    """Return the encoder of these training rows, and a note for each column that tells nothing and is left out.

    Args:
        cells: the columns in order, each asked for once.
        columns: settings of some of them, by name.
        ignored: names of further columns, which rows may have and which are not looked at.

    Raises:
        DataError: a cell that is not of its column's kind (naming its row here), policies that do not exist, no column left.
    """
    fitted: list[Column] = []
    notes: dict[str, str] = {}
    for name, column in cells:
        own = columns.get(name, ColumnSettings())
        formats = settings.date_formats if own.formats is None else own.formats
        kind = own.kind or ("category" if name in settings.embedded else kind_of(column, settings.marks, formats))
        if kind is None:
            notes[name] = "no training row has a value"
            continue
        made = _fit_column(kind, name, column, settings, own)
        if isinstance(made, str):
            notes[name] = made
        else:
            fitted.append(made)
    if not fitted:
        raise DataError(f"no column tells the training rows apart: {'; '.join(f'{n!r}: {note}' for n, note in notes.items())}")
    return TableEncoder(tuple(fitted), settings.marks, (*ignored, *notes)), notes


def _fit_column(kind: str, name: str, cells: Cells, settings: TableSettings, own: ColumnSettings) -> Column | str:
    """Return the column, or a note of why it is left out."""
    if kind == "numeric":
        return _numeric(name, cells, settings, own)
    if kind == "date":
        return _date(name, cells, settings, own)
    return _category(name, cells, settings, own)


def _numeric(name: str, cells: Cells, settings: TableSettings, own: ColumnSettings) -> NumericColumn | str:
    value_N, bad_P = read_numbers(cells, settings.marks)
    _check_read(name, bad_P, "a finite number; columns={" + name + ": category} reads it as text")
    missing_N = np.isnan(value_N)
    value_N = value_N[~missing_N]
    if not len(value_N):
        return "no training row has a value"
    low, high = float(value_N.min()), float(value_N.max())
    if low == high and not missing_N.any():
        return f"every training row has {low:g}"
    curve = _normal_scores(value_N) if (own.scale or settings.scale) == "quantile" and low < high else None
    shown_N = value_N if curve is None else np.interp(value_N, *curve)
    shift, deviation = float(shown_N.mean()), float(shown_N.std())
    return NumericColumn(
        name,
        fill=float(np.median(value_N)),
        shift=shift,
        scale=1 / deviation if low < high and deviation > 0 else 0.0,  # of a constant beside missing ones only the flag tells
        low=low,
        high=high,
        flag=bool(missing_N.any()),
        curve=curve,
        missing=own.missing or settings.missing,
        out_of_range=own.out_of_range or settings.out_of_range,
    )


def _normal_scores(value_N: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return points (value, normal score of its mean rank), at most `MAX_POINTS`, evenly spread over the ranks."""
    value_V, count_V = np.unique(value_N, return_counts=True)
    share_V = (np.cumsum(count_V) - count_V / 2) / len(value_N)
    if len(value_V) > MAX_POINTS:
        kept = np.unique(np.searchsorted(share_V, np.linspace(share_V[0], share_V[-1], MAX_POINTS)))
        value_V, share_V = value_V[kept], share_V[kept]
    score = NormalDist().inv_cdf
    return tuple(value_V.tolist()), tuple(score(share) for share in share_V.tolist())


def _date(name: str, cells: Cells, settings: TableSettings, own: ColumnSettings) -> DateColumn | str:
    formats = settings.date_formats if own.formats is None else own.formats
    second_N, bad_P = read_times(cells, settings.marks, formats)
    _check_read(name, bad_P, f"a time of the form {' or '.join(formats)}" if formats else "a time of ISO 8601")
    missing_N = np.isnan(second_N)
    second_N = second_N[~missing_N]
    if not len(second_N):
        return "no training row has a value"
    if second_N.min() == second_N.max() and not missing_N.any():
        return "every training row has the same time"
    numbers = time_parts(second_N)
    deviation = float(numbers["year"].std())
    return DateColumn(
        name,
        parts=tuple(part for part in PARTS if np.ptp(numbers[part]) > 1e-9),
        fill=float(np.median(second_N)),
        shift=float(numbers["year"].mean()),
        scale=1 / deviation if deviation > 0 else 0.0,
        low=float(second_N.min()),
        high=float(second_N.max()),
        flag=bool(missing_N.any()),
        formats=tuple(formats),
        missing=own.missing or settings.missing,
        out_of_range=own.out_of_range or settings.out_of_range,
    )


def _category(name: str, cells: Cells, settings: TableSettings, own: ColumnSettings) -> CategoryColumn | str:
    index = name in settings.embedded  # such a column is kept whatever it holds: the network has vectors for it
    coded, bad_P = read_texts(cells, settings.marks)
    _check_read(name, bad_P, "a text, a number or a time")
    categories: tuple[str, ...] = ()
    rare: tuple[str, ...] = ()
    if isinstance(coded, Hashed):
        hashed, has_missing = True, bool((coded.hash_N < 0).any())
    else:
        count_V = np.bincount(coded.code_N[coded.code_N >= 0], minlength=len(coded.values))
        has_missing = bool((coded.code_N == MISSING).any())
        if not count_V.any() and not index:
            return "no training row has a value"
        if np.count_nonzero(count_V) == 1 and not has_missing and not index:
            return f"every training row has {coded.values[int(count_V.argmax())]!r}"
        categories = tuple(sorted(coded.values[v] for v in np.flatnonzero(count_V >= settings.min_count).tolist()))
        rare = tuple(sorted(coded.values[v] for v in np.flatnonzero((count_V > 0) & (count_V < settings.min_count)).tolist()))
        if not categories and not index:
            return f"no text is there {settings.min_count} times, as of a column that numbers the rows"
        hashed = len(categories) > (settings.num_buckets - 2 if index else settings.max_categories)
    unknown = own.unknown or settings.unknown
    if unknown == ERROR and (hashed or len(rare) > MAX_RARE):
        raise DataError(
            f"column {name!r} has more categories than are kept by name ({len(categories) + len(rare)}), so that an unknown one "
            "would not be noticed; set unknown=allow, or raise max_categories"
        )
    return CategoryColumn(
        name,
        categories=() if hashed else categories,
        rare=() if hashed or len(rare) > MAX_RARE else rare,
        unknown_place=bool(rare) and not hashed and not index,
        missing_place=has_missing,
        layout="index" if index else "hashed" if hashed else "onehot",
        num_buckets=settings.num_buckets if hashed or index else 0,
        missing=own.missing or settings.missing,
        unknown=unknown,
    )


def _check_read(name: str, bad_P: NDArray[np.int64], expected: str) -> None:
    if len(bad_P):
        raise DataError(f"training row {bad_P[0]}, column {name!r} cannot be read; expected {expected} ({len(bad_P)} such rows)")
