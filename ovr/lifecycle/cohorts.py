"""Calibrations of cohorts where a bundle is changed or measured. Knows not how they are fitted.

N = rows, C = cohorts, K = heads
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ovr.core.calibrations import Calibrations
from ovr.core.cohorts import TABLES, CohortCalibrations
from ovr.data.cohorts import Cohorts
from ovr.errors import DataError


def cohort_of_rows(column: str, cohorts: Cohorts) -> NDArray[np.str_]:
    """Return the cohort of each row.

    Raises:
        DataError: the rows carry no such column.
    """
    if column not in cohorts:
        known = ", ".join(map(repr, cohorts)) or "none"
        raise DataError(
            f"the rows carry no cohorts of column {column!r}, by which the bundle calibrates, but of {known}; add "
            f"data.source.cohorts=[{column}]"
        )
    return cohorts[column]


def numbers_of_rows(bundle_cohorts: CohortCalibrations | None, cohorts: Cohorts) -> NDArray[np.int64] | None:
    """Return the number of each row's cohort in the graph; None of a bundle without cohorts.

    Raises:
        DataError: the rows do not carry the bundle's column.
    """
    if bundle_cohorts is None:
        return None
    return bundle_cohorts.numbers(cohort_of_rows(bundle_cohorts.column, cohorts))


def differing(before: CohortCalibrations | None, after: CohortCalibrations | None, num_heads: int) -> NDArray[np.bool_]:
    """Return which heads (K,) have another calibration for a cohort: of those that both have, or one that only one has."""
    differ_K = np.zeros(num_heads, np.bool_)
    if before is None or after is None or before.column != after.column:
        return differ_K | (before is not after)
    for name in {*before.names, *after.names}:
        if name not in before.names or name not in after.names:
            return ~differ_K
        one, other = before.names.index(name), after.names.index(name)
        for table in TABLES:
            differ_K |= np.array(getattr(before, table)[one], object) != np.array(getattr(after, table)[other], object)
    return differ_K


def merged(
    before: CohortCalibrations | None,
    fitted: CohortCalibrations,
    columns: Collection[int] | None,
    pooled: Calibrations,
) -> CohortCalibrations:
    """Return the cohorts of `fitted` for the heads in `columns` (None: all), and those that the bundle had for the others.

    A head that had no calibration for a cohort keeps its pooled one there.
    """
    if columns is None:
        return fitted
    old = before if before is not None and before.column == fitted.column else None
    names = tuple(sorted({*fitted.names, *(old.names if old is not None else ())}))
    num_heads = fitted.num_heads
    taken_K = np.isin(np.arange(num_heads), list(columns))
    tables: dict[str, list[tuple[object, ...]]] = {table: [] for table in TABLES}
    for name in names:
        default = {"scale": pooled.scale_K.tolist(), "bias": pooled.bias_K.tolist(), "status": ["pooled"] * num_heads}
        for table in TABLES:
            rows = [
                list(getattr(source, table)[source.names.index(name)])
                if source is not None and name in source.names
                else default.get(table, [0] * num_heads)
                for source in (fitted, old)
            ]
            tables[table].append(tuple(rows[0][k] if taken_K[k] else rows[1][k] for k in range(num_heads)))
    return CohortCalibrations(fitted.column, names, **{table: tuple(rows) for table, rows in tables.items()})
