"""Intervals of figures that come from the sums of bins: parts of the Brier score, the debiased squared error. Knows no rows.

A Poisson bootstrap (Hanley and MacGibbon 2006) of cells: the rows of a bin that are positive, and those that are not, are each
drawn as often as a Poisson number says whose mean is their count. Drawn rows of a cell count with its mean probability; what
probabilities differ by within a cell is left out, and in bins of equal mass that is little. All heads share the uniform numbers
behind the draws, so that a head's interval does not depend on the others.

K = heads, C = heads of a part, G = bins, R = draws, L = 0 .. `MOST_EXACT` rows of a cell
"""

from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ovr.metric.binned import brier_parts, debiased_squared_ece
from ovr.metric.bins import BinSums
from ovr.metric.draws import NUM_DRAWS, quantiles
from ovr.metric.intervals import CONFIDENCE

F64 = NDArray[np.float64]

MOST_EXACT = 30  # rows of a cell; beyond, a Poisson number is taken from the normal one by Cornish and Fisher
BLOCK_VALUES = 1 << 20  # heads times bins times draws at a time

FIGURES: Mapping[str, Callable[[BinSums], F64]] = {
    "ece_debiased_squared": debiased_squared_ece,
    "brier_resolution": lambda sums: brier_parts(sums).resolution_K,
    "brier_uncertainty": lambda sums: brier_parts(sums).uncertainty_K,
}


class BinDraws:
    """Draws of the cells of bins, the same for every head."""

    def __init__(self, num_bins: int, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> None:
        uniform_2RG = np.random.default_rng(seed).random((2, num_draws, num_bins))
        # Where the Poisson distribution function first reaches the uniform number.
        self._few_L2RG = np.stack([_poisson_quantile(mean, uniform_2RG) for mean in range(MOST_EXACT + 1)])
        inverse = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])
        self._normal_2RG = inverse(np.clip(uniform_2RG, 1e-12, 1 - 1e-12))
        self._num_draws = num_draws

    def intervals(self, sums: BinSums, *, confidence: float = CONFIDENCE) -> dict[str, tuple[F64, F64]]:
        """Return (low_K, high_K) of each of `FIGURES`; NaN without a known row.

        The draws of a figure are moved so that their mean is the figure: noise makes bins look wrong and different, and drawing
        from what is noisy already does so once more.

        Raises:
            ConfigError: `confidence` outside (0, 1).
        """
        num_heads, num_bins = sums.count_KG.shape
        step = max(1, BLOCK_VALUES // (num_bins * self._num_draws))
        parts: dict[str, list[tuple[F64, F64]]] = {name: [] for name in FIGURES}
        for start in range(0, num_heads, step):
            part = _heads(sums, slice(start, start + step))
            drawn = self._drawn(part)
            for name, figure in FIGURES.items():
                value_RC = figure(drawn).reshape(self._num_draws, -1)
                value_C, num_C = figure(part), (~np.isnan(value_RC)).sum(axis=0)
                moved_C = value_C - np.nansum(value_RC, axis=0) / np.maximum(num_C, 1)
                parts[name].append(quantiles(np.where(np.isnan(value_C), np.nan, value_RC + moved_C), confidence=confidence))
        return {
            name: (np.concatenate([low for low, _ in ends]), np.concatenate([high for _, high in ends]))
            for name, ends in parts.items()
        }

    def _drawn(self, sums: BinSums) -> BinSums:
        """Return the sums of every draw of every head, as R C heads: the first draw of all heads, then the second."""
        positive_CG, negative_CG = sums.positive_KG, sums.count_KG - sums.positive_KG
        prob_CG = [sums.both_KG, sums.prob_KG - sums.both_KG]
        drawn = [self._poisson(cell, count_CG) for cell, count_CG in enumerate((positive_CG, negative_CG))]
        means = [
            np.where(count_CG > 0, p_CG / np.maximum(count_CG, 1), 0.0)
            for p_CG, count_CG in zip(prob_CG, (positive_CG, negative_CG), strict=True)
        ]
        both_RCG = drawn[0] * means[0]
        flat = [
            array.reshape(-1, array.shape[-1])
            for array in (drawn[0] + drawn[1], drawn[0], both_RCG + drawn[1] * means[1], both_RCG)
        ]
        count, positive, prob, both = flat
        return BinSums(count.astype(np.int64), positive, prob, np.zeros_like(prob), both)

    def _poisson(self, cell: int, count_CG: F64) -> F64:
        few_CG = np.minimum(count_CG, MOST_EXACT).astype(np.int64)
        few_RCG = self._few_L2RG[few_CG, cell, :, np.arange(count_CG.shape[1])].transpose(2, 0, 1)
        z_R1G = self._normal_2RG[cell][:, None]
        many_RCG = np.round(count_CG + np.sqrt(count_CG) * z_R1G + (z_R1G**2 - 1) / 6)
        return np.where(count_CG <= MOST_EXACT, few_RCG, np.maximum(many_RCG, 0.0))


def _poisson_quantile(mean: int, uniform: F64) -> F64:
    term = np.exp(-float(mean))
    total, terms = term, [term]
    for count in range(1, mean + 60):
        term *= mean / count
        total += term
        terms.append(total)
    value: F64 = np.searchsorted(np.array(terms), uniform).astype(np.float64)
    return value


def _heads(sums: BinSums, columns: slice) -> BinSums:
    return BinSums(*(getattr(sums, name)[columns] for name in ("count_KG", "positive_KG", "prob_KG", "prob2_KG", "both_KG")))
