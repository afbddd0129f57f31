"""The calibrations of many heads as columns: a million of them take 50 MB instead of 300. Knows nothing of how they were fitted.

K = heads
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import Calibration

_DTYPES: dict[str, Any] = {
    "kind": object,  # one text, shared by all that have it
    "scale": np.float64,
    "bias": np.float64,
    "status": object,
    "num_rows": np.int64,
    "num_positives": np.int64,
}
assert tuple(_DTYPES) == tuple(field.name for field in fields(Calibration))


class Calibrations(Sequence[Calibration]):
    """One `Calibration` a head, in column order, made when it is asked for."""

    __slots__ = ("columns",)

    def __init__(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Take one array (K,) for each field of `Calibration`."""
        self.columns = {name: np.asarray(columns[name]).astype(dtype, copy=False) for name, dtype in _DTYPES.items()}

    @classmethod
    def of(cls, calibrations: Iterable[Calibration]) -> "Calibrations":
        """Return the columns of one calibration a head."""
        if isinstance(calibrations, Calibrations):
            return calibrations
        rows = list(calibrations)
        return cls({name: np.array([getattr(row, name) for row in rows], dtype=dtype) for name, dtype in _DTYPES.items()})

    @classmethod
    def joined(cls, parts: Sequence["Calibrations"]) -> "Calibrations":
        """Return the calibrations of all parts, one part after the other."""
        return cls({name: np.concatenate([part.columns[name] for part in parts]) for name in _DTYPES})

    @property
    def scale_K(self) -> NDArray[np.float64]:
        """The scale of each head."""
        return self.columns["scale"]

    @property
    def bias_K(self) -> NDArray[np.float64]:
        """The bias of each head."""
        return self.columns["bias"]

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
        return isinstance(other, Calibrations) and all(np.array_equal(self.columns[name], other.columns[name]) for name in _DTYPES)

    __hash__ = None  # type: ignore[assignment]
