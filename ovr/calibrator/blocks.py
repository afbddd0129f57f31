"""What goes over logits some heads at a time: which calibrators cannot, what they refuse, and the probabilities that come of it.

Knows neither how logits are made nor how calibrations are fitted.

N = rows, K = heads, C = heads of one block
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.cohort import cohort_prob
from ovr.core import scale
from ovr.core.artifact import AFFINE_KINDS
from ovr.core.calibrations import Calibrations
from ovr.core.cohorts import CohortCalibrations
from ovr.errors import ConfigError

Blocks = Iterable[tuple[slice, NDArray[np.float32]]]  # columns and values (N, C) of all heads in order; may be gone through again


def wants_all_heads(calibrator: object) -> bool:
    """Return whether the calibrator fits no head without the others; it says so by an attribute `all_heads`."""
    return getattr(calibrator, "all_heads", False) is True


def check_calibrator(calibrator: Any, *, num_heads: int, cohort_column: str | None) -> None:
    """Check what can be known of a calibrator before there is a row.

    Raises:
        ConfigError: it takes all heads at once and they are too many for that; a bundle of so many heads, or the cohorts of
            `cohort_column`, keep no calibrations of a kind that it may give; a bundle of so many heads keeps no cohorts.
    """
    if wants_all_heads(calibrator) and num_heads >= scale.LARGE_K:
        raise ConfigError(
            f"{type(calibrator).__name__} calibrates all heads at once, and {num_heads} are too many for that (from "
            f"{scale.LARGE_K} on they go block by block); take one that fits each head by itself, such as calibrator=temperature"
        )
    others = ", ".join(sorted(set(calibrator.kinds) - set(AFFINE_KINDS)))
    if num_heads >= scale.LARGE_K and others:
        raise ConfigError(
            f"the calibrator may give {others}; from {scale.LARGE_K} classes on, and there are {num_heads}, heads are kept with "
            f"{', '.join(AFFINE_KINDS)} only: choose calibrator=temperature or platt, or of auto "
            "calibrator.kinds=[temperature,platt]"
        )
    if cohort_column is not None and num_heads >= scale.LARGE_K:
        raise ConfigError(
            f"cohort.column={cohort_column} asks for a calibration a cohort, and bundles of {scale.LARGE_K} classes or more hold "
            "none; leave it out"
        )
    if cohort_column is not None and others:
        raise ConfigError(
            f"cohort.column={cohort_column} rescales a head's calibrated logit, and the calibrator may give {others}: choose "
            "calibrator=temperature, platt or identity, or of auto calibrator.kinds=[temperature,platt]"
        )


def check_calibration_rows(calibrator: Any, num_classes_N: NDArray[np.int64], known_N: NDArray[np.bool_]) -> None:
    """Let a calibrator that has `check_rows` refuse rows by how many classes each has, and whether all its labels are known.

    Raises:
        DataError: what `check_rows` refuses.
    """
    if hasattr(calibrator, "check_rows"):
        calibrator.check_rows(num_classes_N, known_N)


def as_one(blocks: Blocks) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield all heads as one block."""
    value_NK = joined(blocks)
    yield slice(0, value_NK.shape[1]), value_NK


def joined(blocks: Blocks) -> NDArray[np.float32]:
    """Return the values (N, K) of all heads."""
    return np.concatenate([value_NC for _, value_NC in blocks], axis=1)


@dataclass(frozen=True, slots=True)
class Probs:
    """Calibrated probabilities (N, C) float32 of all heads, block by block; may be gone through several times."""

    logits: Blocks
    calibrations: Calibrations
    cohorts: CohortCalibrations | None
    number_N: NDArray[np.int64] | None  # of each row's cohort

    def __iter__(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for columns, logit_NC in self.logits:
            prob_NC = cohort_prob(logit_NC, self.calibrations[columns], self.cohorts, self.number_N, columns=columns)
            yield columns, prob_NC.astype(np.float32)
