"""Platt scaling: a scale and a bias a head (Platt 1999, "Probabilistic outputs for support vector machines").

sigmoid(scale * z + bias), the optimum of the likelihood of his smoothed targets. A bias repairs what a temperature cannot: a head
whose probabilities are all too high or too low, as after a loss or sampler that counts rare positives more.

N = rows, K = heads
"""

from dataclasses import replace
from typing import Any

from ovr.calibrator.families import MAX_SCALE, MIN_SCALE, PLATT
from ovr.calibrator.parametric import fit_family
from ovr.core.artifact import Calibration


class Platt:
    """Plug-in: `fit_family` of Platt's calibration with its bounds."""

    kinds: tuple[str, ...] = ("identity", "platt")

    def __init__(self, *, min_scale: float = MIN_SCALE, max_scale: float = MAX_SCALE) -> None:
        """Take the smallest and largest scale that a head may get.

        Raises:
            ConfigError: not 0 < min_scale <= 1 <= max_scale < infinity.
        """
        self.family = replace(PLATT, min_scale=min_scale, max_scale=max_scale)

    def fit(self, logit_NK: Any, target_NK: Any, mask_NK: Any) -> list[Calibration]:
        """Return one calibration a head, in column order; arguments and errors are those of `fit_family`."""
        return fit_family(self.family, logit_NK, target_NK, mask_NK)
