"""What goes over logits some heads at a time: which calibrators cannot, and the probabilities that calibrations make of them.

Knows neither how logits are made nor how calibrations are fitted.

N = rows, K = heads, C = heads of one block
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.cohort import cohort_prob
from ovr.core.calibrations import Calibrations
from ovr.core.cohorts import CohortCalibrations

Blocks = Iterable[tuple[slice, NDArray[np.float32]]]  # columns and values (N, C) of all heads in order; may be gone through again


def wants_all_heads(calibrator: object) -> bool:
    """Return whether the calibrator fits no head without the others; it says so by an attribute `all_heads`."""
    return getattr(calibrator, "all_heads", False) is True


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
