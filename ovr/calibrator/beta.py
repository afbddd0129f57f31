"""Beta calibration: two scales and a bias a head (Kull, Silva Filho and Flach 2017, "Beta calibration: a well-founded and easily
implemented improvement on logistic calibration for binary classifiers").

sigmoid(bias + scale * log p - scale_negative * log(1 - p)) with p = sigmoid(z), both scales above 0, the optimum of the likelihood
of Platt's smoothed targets. Equal scales are Platt's calibration; two stretch small probabilities otherwise than large ones.

N = rows, K = heads
"""

from dataclasses import replace
from typing import Any

from ovr.calibrator.families import BETA, MAX_SCALE, MIN_SCALE
from ovr.calibrator.parametric import fit_family
from ovr.core.artifact import Calibration


class Beta:
    """Plug-in: `fit_family` of beta calibration with its bounds."""

    kinds: tuple[str, ...] = ("identity", "beta")

    def __init__(self, *, min_scale: float = MIN_SCALE, max_scale: float = MAX_SCALE) -> None:
        """Take the smallest and largest value that either scale of a head may get.

        Raises:
            ConfigError: not 0 < min_scale <= 1 <= max_scale < infinity.
        """
        self.family = replace(BETA, min_scale=min_scale, max_scale=max_scale)

    def fit(self, logit_NK: Any, target_NK: Any, mask_NK: Any) -> list[Calibration]:
        """Return one calibration a head, in column order; arguments and errors are those of `fit_family`."""
        return fit_family(self.family, logit_NK, target_NK, mask_NK)
