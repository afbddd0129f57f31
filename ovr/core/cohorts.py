"""A calibration for each value of a column of the rows: of each sex, or each shop. Knows nothing of how they were fitted.

C = cohorts, K = heads, B = batch
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ArtifactError

COHORT = "cohort"  # the second input of a fused graph that has cohorts: int64 (B, 1), 0 for the pooled calibration
POOLED = 0  # of rows without a cohort, or of one that the model does not know

CohortStatus = Literal["ok", "pooled"]  # "pooled": too few rows, so the pooled calibration stands
Table = tuple[tuple[Any, ...], ...]  # [cohort][head]
TABLES = ("scale", "bias", "status", "num_rows", "num_positives")  # the fields that are tables


@dataclass(frozen=True, slots=True)
class CohortCalibrations:
    """What turns a head's logit z into a probability for rows of a cohort: sigmoid(scale * z + bias).

    `names[c]` is a cell of column `column`; its number in the graph is c + 1. A head and cohort with too few rows have the head's
    pooled calibration, and status "pooled".
    """

    column: str
    names: tuple[str, ...]
    scale: Table
    bias: Table
    status: Table
    num_rows: Table  # known calibration rows
    num_positives: Table

    def __post_init__(self) -> None:
        if not isinstance(self.column, str) or not self.column:
            raise ArtifactError(f"cohorts are the values of a column; its name is {self.column!r}")
        if not self.names or not all(isinstance(name, str) and name for name in self.names):
            raise ArtifactError(f"cohorts of column {self.column!r} must be one text or more, got {list(self.names[:5])}")
        if twice := sorted(name for name, count in Counter(self.names).items() if count > 1):
            raise ArtifactError(f"cohorts of column {self.column!r} must differ, got {twice[:5]} more than once")
        for name in TABLES:
            rows: Table = getattr(self, name)
            if len(rows) != len(self.names) or len({len(row) for row in (*rows, self.scale[0])}) != 1:
                raise ArtifactError(
                    f"the cohorts of column {self.column!r} have {name} of {[len(row) for row in rows]} heads; expected one entry "
                    f"a head for each of the {len(self.names)} cohorts"
                )
        if not (np.isfinite(self.scale_CK).all() and (self.scale_CK > 0).all() and np.isfinite(self.bias_CK).all()):
            raise ArtifactError(f"a cohort of column {self.column!r} has a calibration that is not finite, or a scale not above 0")

    @property
    def num_heads(self) -> int:
        """K."""
        return len(self.scale[0])

    @property
    def scale_CK(self) -> NDArray[np.float64]:
        """The scales; row c is of `names[c]`."""
        return np.array(self.scale, dtype=np.float64)

    @property
    def bias_CK(self) -> NDArray[np.float64]:
        """The biases; row c is of `names[c]`."""
        return np.array(self.bias, dtype=np.float64)

    def numbers(self, cohorts: Sequence[str | None] | NDArray[Any]) -> NDArray[np.int64]:
        """Return the number (B,) of each row's cohort in the graph, `POOLED` where it is unknown or None."""
        number = {name: c + 1 for c, name in enumerate(self.names)}
        return np.array([number.get(str(name), POOLED) if name is not None else POOLED for name in cohorts], dtype=np.int64)

    def count(self, cohorts: Sequence[str | None]) -> dict[str, int]:
        """Return how many rows are of a cohort that the model knows, of one that it does not, and of none."""
        num_known, num_missing = int((self.numbers(cohorts) != POOLED).sum()), sum(name is None for name in cohorts)
        return {"known": num_known, "unknown": len(cohorts) - num_known - num_missing, "missing": num_missing}

    def of_head(self, column: int) -> dict[str, Any]:
        """Return what one head has for each cohort, in plain values: `column`, and by the name of a cohort each table's entry."""
        entries = {name: {table: getattr(self, table)[c][column] for table in TABLES} for c, name in enumerate(self.names)}
        return {"column": self.column, "cohorts": entries}

    def of_columns(self, columns: Sequence[int]) -> "CohortCalibrations":
        """Return the calibrations of these heads alone, in this order."""
        tables: dict[str, Any] = {name: tuple(tuple(row[k] for k in columns) for row in getattr(self, name)) for name in TABLES}
        return replace(self, **tables)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        tables = {name: [list(row) for row in getattr(self, name)] for name in TABLES}
        return {"column": self.column, "names": list(self.names), **tables}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CohortCalibrations":
        """Return what `to_json` wrote.

        Raises:
            ArtifactError: keys missing or unknown, or sizes that do not fit.
        """
        try:
            tables = {name: tuple(tuple(row) for row in rows) for name, rows in value.items() if name not in ("column", "names")}
            return cls(column=value["column"], names=tuple(value["names"]), **tables)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the cohorts cannot be read: {type(error).__name__} {error}") from None


def relative_affine(
    cohorts: CohortCalibrations, scale_K: NDArray[np.float64], bias_K: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return factor and offset (C + 1, K) that make each cohort's calibrated logit of the pooled one; those of row 0 are 1 and 0.

    A head that keeps its pooled calibration (to float32, as graphs have it) has exactly 1 and 0: its answers keep their bits.
    """
    scale_CK, bias_CK = cohorts.scale_CK, cohorts.bias_CK
    kept_CK = (np.float32(scale_CK) == np.float32(scale_K)) & (np.float32(bias_CK) == np.float32(bias_K))
    factor_CK = np.where(kept_CK, 1.0, scale_CK / scale_K)
    offset_CK = np.where(kept_CK, 0.0, bias_CK - factor_CK * bias_K)
    pooled_1K = np.ones((1, len(scale_K)))
    return np.concatenate([pooled_1K, factor_CK]), np.concatenate([0 * pooled_1K, offset_CK])
