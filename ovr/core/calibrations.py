"""The calibrations of many heads as columns: a million of them take 50 MB instead of 300. Knows nothing of how they were fitted.

K = heads
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import AFFINE_KINDS, Calibration
from ovr.core.cohorts import CohortCalibrations
from ovr.errors import ArtifactError

_DTYPES: dict[str, Any] = {
    "kind": object,  # one text, shared by all that have it
    "scale": np.float64,
    "bias": np.float64,
    "status": object,
    "num_rows": np.int64,
    "num_positives": np.int64,
}
# What few kinds have: a column of it is there only where a head has it.
_OPTIONAL: dict[str, Any] = {"scale_negative": object, "knot_logits": object, "knot_probs": object, "details": object}
_DEFAULT = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(Calibration)}
assert (*_DTYPES, *_OPTIONAL) == tuple(_DEFAULT)


class Calibrations(Sequence[Calibration]):
    """One `Calibration` a head, in column order, made when it is asked for."""

    __slots__ = ("columns",)

    def __init__(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Take one array (K,) for each field of `Calibration`; those that few kinds have may be left out."""
        self.columns = {name: np.asarray(columns[name]).astype(dtype, copy=False) for name, dtype in _DTYPES.items()}
        for name in _OPTIONAL:
            if name in columns and any(value != _DEFAULT[name] for value in columns[name]):
                self.columns[name] = columns[name]

    @classmethod
    def of(cls, calibrations: Iterable[Calibration]) -> "Calibrations":
        """Return the columns of one calibration a head."""
        if isinstance(calibrations, Calibrations):
            return calibrations
        rows = list(calibrations)
        columns = {name: np.array([getattr(row, name) for row in rows], dtype=dtype) for name, dtype in _DTYPES.items()}
        return cls({**columns, **{name: _objects([getattr(row, name) for row in rows]) for name in _OPTIONAL}})

    @classmethod
    def identity(cls, num_heads: int) -> "Calibrations":
        """Return the calibrations that leave the sigmoid of each logit as it is."""
        return cls.of([Calibration("identity")] * num_heads)

    @classmethod
    def joined(cls, parts: Sequence["Calibrations"]) -> "Calibrations":
        """Return the calibrations of all parts, one part after the other."""
        names = [*_DTYPES, *(name for name in _OPTIONAL if any(name in part.columns for part in parts))]
        return cls({name: np.concatenate([part.optional(name) for part in parts]) for name in names})

    @property
    def scale_K(self) -> NDArray[np.float64]:
        """The scale of each head."""
        return self.columns["scale"]

    @property
    def bias_K(self) -> NDArray[np.float64]:
        """The bias of each head."""
        return self.columns["bias"]

    @property
    def affine_K(self) -> NDArray[np.bool_]:
        """Whether each head's calibration is sigmoid(scale * z + bias)."""
        return np.isin(self.columns["kind"].astype(str), AFFINE_KINDS)

    def optional(self, name: str) -> NDArray[Any]:
        """Return a column by the name of its field, whether a head has it or not."""
        return self.columns[name] if name in self.columns else _objects([_DEFAULT[name]] * len(self))

    def check_affine(self, *, where: str) -> None:
        """Raise ArtifactError, naming a head and its kind, unless all are sigmoid(scale * z + bias)."""
        affine_K = self.affine_K
        if not affine_K.all():
            column = int(np.argmin(affine_K))
            raise ArtifactError(
                f"{where} keeps {', '.join(AFFINE_KINDS)} calibrations only; that of head column {column} is "
                f"{self.columns['kind'][column]} ({int((~affine_K).sum())} of {len(self)} are of other kinds)"
            )

    def num_by_status(self) -> dict[str, int]:
        """Return how many heads have each status that there is."""
        return {str(status): int((self.columns["status"] == status).sum()) for status in sorted(set(self.columns["status"]))}

    def __len__(self) -> int:
        return len(self.columns["scale"])

    @overload
    def __getitem__(self, column: int) -> Calibration: ...
    @overload
    def __getitem__(self, column: slice) -> "Calibrations": ...
    def __getitem__(self, column: int | slice) -> "Calibration | Calibrations":
        if isinstance(column, slice):
            return Calibrations({name: value_K[column] for name, value_K in self.columns.items()})
        return Calibration(**{name: value_K.item(column) for name, value_K in self.columns.items()})

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Calibrations)
            and self.columns.keys() == other.columns.keys()
            and all(np.array_equal(self.columns[name], other.columns[name]) for name in self.columns)
        )

    __hash__ = None  # type: ignore[assignment]


def cohort_calibrations(cohorts: CohortCalibrations, cohort: int) -> Calibrations:
    """Return the calibrations of the heads for rows of `cohorts.names[cohort]`."""
    num_heads = cohorts.num_heads
    return Calibrations(
        {
            "kind": np.array(["platt"] * num_heads, dtype=object),
            "scale": cohorts.scale_CK[cohort],
            "bias": cohorts.bias_CK[cohort],
            "status": np.array(["ok"] * num_heads, dtype=object),
            "num_rows": np.array(cohorts.num_rows[cohort]),
            "num_positives": np.array(cohorts.num_positives[cohort]),
        }
    )


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """Return an array of the values themselves, though they be sequences."""
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array
