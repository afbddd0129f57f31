"""Many heads as columns, and figures of classes as columns. Knows nothing of files.

K = heads
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import HeadArtifact
from ovr.core.calibrations import Calibrations

Figures = Mapping[str, NDArray[Any]]  # name -> (K,)


class HeadColumns(Sequence[HeadArtifact]):
    """One `HeadArtifact` a class, in column order, made when it is asked for. All are of one kind and one backbone."""

    def __init__(
        self,
        class_ids: Sequence[str],
        *,
        kind: str,
        backbone_sha256: str,
        version_K: NDArray[np.int64],
        threshold_K: NDArray[np.float64],
        threshold_status_K: Sequence[str] | None = None,
        calibrations: Calibrations,
        figures: Callable[[], Figures],
    ) -> None:
        """Take what the heads are made of; `figures` gives those of the test rows, and is called when a head is first asked for."""
        self.class_ids, self.kind, self.backbone_sha256 = class_ids, kind, backbone_sha256
        self.version_K, self.threshold_K, self.calibrations = version_K, threshold_K, calibrations
        self.threshold_status_K = ("ok",) * len(class_ids) if threshold_status_K is None else tuple(threshold_status_K)
        self._load_figures = figures

    @cached_property
    def figures(self) -> Figures:
        """The figures of the test rows, a column each."""
        return self._load_figures()

    def __len__(self) -> int:
        return len(self.class_ids)

    def __eq__(self, other: object) -> bool:
        """Tell whether the heads are the same, their figures apart."""
        return (
            isinstance(other, HeadColumns)
            and (self.kind, self.backbone_sha256) == (other.kind, other.backbone_sha256)
            and tuple(self.class_ids) == tuple(other.class_ids)
            and np.array_equal(self.version_K, other.version_K)
            and np.array_equal(self.threshold_K, other.threshold_K)
            and self.threshold_status_K == other.threshold_status_K
            and self.calibrations == other.calibrations
        )

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, column: int) -> HeadArtifact: ...
    @overload
    def __getitem__(self, column: slice) -> tuple[HeadArtifact, ...]: ...
    def __getitem__(self, column: int | slice) -> HeadArtifact | tuple[HeadArtifact, ...]:
        if isinstance(column, slice):
            return tuple(self[k] for k in range(*column.indices(len(self))))
        return HeadArtifact(
            class_id=self.class_ids[column],
            version=self.version_K.item(column),
            backbone_sha256=self.backbone_sha256,
            kind=self.kind,
            calibration=self.calibrations[column],
            threshold=self.threshold_K.item(column),
            threshold_status=self.threshold_status_K[column],
            metrics={"test": figures_of(self.figures, column)} if self.figures else {},
        )


def figures_of(figures: Figures, column: int) -> dict[str, float | int | bool | None]:
    """Return the figures of one class as plain values for JSON; one that is undefined is None."""
    return {name: plain(value_K[column]) for name, value_K in figures.items()}


def plain(value: Any) -> float | int | bool | None:
    """Return a Python number or flag; None for NaN."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    return None if math.isnan(value) else float(value)
