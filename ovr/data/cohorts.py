"""Cohorts: to which group a row belongs, such as its sex or the clinic that it came from, by the name of a column.

A cohort is a text: numbers are written as Python writes them (3.0 is "3"), times as ISO 8601, and a cell that holds nothing is the
cohort "". Knows cells, not what cohorts are for.

N = rows
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import DataError
from ovr.input.cells import MICROSECONDS, MISSING, Coded, Compact, Hashed, text_of

Cohorts = Mapping[str, NDArray[np.str_]]  # name of a column -> (N,), one text a row


def check_names(cohorts: Any) -> tuple[str, ...]:
    """Return the names of the cohort columns of a configuration.

    Raises:
        DataError: no list of names, or one twice.
    """
    if not isinstance(cohorts, list | tuple) or not all(isinstance(name, str) and name for name in cohorts):
        raise DataError(f"data.source.cohorts is {cohorts!r}; expected a list of columns, such as [sex,race], or []")
    if len(set(cohorts)) < len(cohorts):
        raise DataError(f"data.source.cohorts is {list(cohorts)}; expected each column once")
    return tuple(cohorts)


def check_columns(cohorts: Sequence[str], columns: Sequence[str], where: Any) -> None:
    """Raise DataError unless the file `where` has every cohort column."""
    if absent := [name for name in cohorts if name not in columns]:
        shown = ", ".join(map(repr, columns[:20])) + (f", ... ({len(columns)})" if len(columns) > 20 else "")
        raise DataError(
            f"{where} has no column {', '.join(map(repr, absent))} (data.source.cohorts); its columns are {shown or 'none'}"
        )


def cohort_of_cells(cells: Sequence[Any], column: str, where: Callable[[int], str]) -> NDArray[np.str_]:
    """Return the cohorts (N,) of cells as they were read: texts, numbers, truth values, dates; None and NaN hold nothing.

    Args:
        where: how messages call a row.

    Raises:
        DataError: a cell that holds something else, such as a list, naming the row.
    """
    for row, cell in enumerate(cells):
        if isinstance(cell, list | tuple | dict | bytes | np.ndarray):
            raise DataError(f"{where(row)}, cohort column {column!r} holds {cell!r}; expected a text or a number")
    return np.array([(text_of(cell) or "").strip() for cell in cells], dtype=np.str_)


def cohort_of_compact(cells: Compact) -> NDArray[np.str_]:
    """Return the cohorts (N,) of a table's column."""
    if isinstance(cells, Coded):
        value_V1 = np.array([*cells.values, ""], dtype=np.str_)
        return value_V1[np.where(cells.code_N == MISSING, len(cells.values), cells.code_N)]
    assert not isinstance(cells, Hashed)  # all texts of a cohort column are kept
    value_V, code_N = np.unique(cells, return_inverse=True)
    if value_V.dtype.kind == "M":
        texts = ["" if np.isnat(value) else value.item().isoformat() for value in value_V.astype(MICROSECONDS)]
    else:
        texts = [text_of(value) or "" for value in value_V.tolist()]
    return np.array(texts, dtype=np.str_)[code_N]


def take(cohorts: Cohorts, row_B: NDArray[np.int64]) -> dict[str, NDArray[np.str_]]:
    """Return the cohorts of the given rows."""
    return {name: cohort_N[row_B] for name, cohort_N in cohorts.items()}
