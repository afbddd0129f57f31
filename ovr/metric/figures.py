"""All figures of a block of heads and what they come to over all heads, with intervals. Knows names of figures, not of classes.

docs/metrics.md tells what each name means. Intervals are of 95 %, and a figure f has them as f_low and f_high.

N = rows, K = heads, C = heads of one block, R = draws of rows
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.metric.bin_draws import BinDraws
from ovr.metric.binned import brier_parts, debiased_ece, debiased_squared_ece, ece
from ovr.metric.bins import NUM_BINS, bin_sums, width_sums
from ovr.metric.calibration import MAX_BINS, log_losses, mass_sums
from ovr.metric.calibration_bound import ece_interval
from ovr.metric.classification import Counts, confusion, f1_interval
from ovr.metric.draws import RowDraws, quantiles, ratio
from ovr.metric.intervals import CONFIDENCE, wilson
from ovr.metric.ranking import RankFigures, rank_figures, rank_figures_with_slopes

F64 = NDArray[np.float64]
Figures = dict[str, NDArray[Any]]

MACRO = ("precision", "recall", "f1", "average_precision", "roc_auc")  # that a mean over classes is told of as macro_
WEIGHTED = ("precision", "recall", "f1", "average_precision")
DETAILS = (
    "ece_equal_width",
    "ece_adaptive",
    "ece_debiased",
    "ece_debiased_squared",
    "brier_reliability",
    "brier_resolution",
    "brier_uncertainty",
    "brier_within_variance",
    "brier_within_covariance",
)
UNIT = ("precision", "recall", "f1", "roc_auc")  # of figures whose names end so 1 is the most
LOSSES = ("nll_after", "brier_after")  # whose mean over classes has an interval too


class HeadFigures:
    """Makes the figures of heads block by block, and adds up what the summary needs."""

    def __init__(self, num_rows: int, *, detailed: bool, seed: int = 0) -> None:
        """Take the number of rows that all blocks have.

        Args:
            detailed: with intervals and with the figures that need another sort of the rows; without, for very many heads.
            seed: of the draws that some intervals come from.
        """
        self.draws = RowDraws(num_rows, seed=seed) if detailed else None
        self._cells = BinDraws(NUM_BINS, seed=seed)
        self._micro = np.zeros(3)  # right, decided, positives
        # Of each mean, what is divided by what in each draw; of those of ranks, what each row adds to both (see `RankSlopes`).
        self._drawn: dict[str, list[Any]] = defaultdict(lambda: [0.0, 0.0])
        self._ranks: dict[str, list[Any]] = defaultdict(lambda: [0.0, 0.0])

    def update(
        self,
        *,
        logit_NC: NDArray[Any],
        calibrated_NC: F64,
        before_NC: F64,
        prob_NC: F64,
        label_NC: NDArray[np.bool_],
        target_NC: NDArray[np.bool_],
        mask_NC: NDArray[np.bool_],
        ranked_NC: F64 | None = None,
    ) -> Figures:
        """Return the figures (C,) of the next heads.

        Args:
            logit_NC: as the head gave them.
            calibrated_NC: the log-odds of `prob_NC`.
            ranked_NC: what rows are ranked by; None is `logit_NC`, whose order calibrations of whole heads keep.
            before_NC: the sigmoid of `logit_NC`.
            prob_NC: calibrated.
            label_NC: what was decided.
        """
        counts = confusion(label_NC, target_NC, mask_NC)
        self._micro += [counts.true_positives_K.sum(), counts.num_decided_K.sum(), counts.num_positives_K.sum()]
        figures: Figures = {
            "rows": counts.num_rows_K,
            "positives": counts.num_positives_K,
            "decided": counts.num_decided_K,
            "true_positives": counts.true_positives_K,
            **{name: ratio(top_C, bottom_C) for name, (top_C, bottom_C) in counts.proportions().items()},
            "f1": counts.f1_K,
        }
        ranks = self._ranked(logit_NC if ranked_NC is None else ranked_NC, target_NC, mask_NC)
        if self.draws is None:
            sums = bin_sums(prob_NC, target_NC, mask_NC)
        else:
            sums, adaptive, num_bins_C = mass_sums(prob_NC, target_NC, mask_NC)
        losses = log_losses(calibrated_NC, target_NC, mask_NC)
        squares = np.where(mask_NC, target_NC - prob_NC, 0.0) ** 2
        figures |= {
            "average_precision": ranks.average_precision_K,
            "roc_auc": ranks.roc_auc_K,
            "ece_before": ece(bin_sums(before_NC, target_NC, mask_NC)),
            "ece_after": ece(sums),
            "nll_before": ratio(log_losses(logit_NC, target_NC, mask_NC).sum(axis=0), counts.num_rows_K),
            "nll_after": ratio(losses.sum(axis=0), counts.num_rows_K),
            "brier_before": ratio((np.where(mask_NC, target_NC - before_NC, 0.0) ** 2).sum(axis=0), counts.num_rows_K),
            "brier_after": ratio(squares.sum(axis=0), counts.num_rows_K),
        }
        if self.draws is None:
            return figures
        widths, parts = width_sums(prob_NC, target_NC, mask_NC), brier_parts(sums)
        figures |= {
            "ece_equal_width": ece(widths),
            "ece_adaptive": ece(adaptive),
            "ece_adaptive_bins": num_bins_C,
            "ece_debiased": debiased_ece(sums),
            "ece_debiased_squared": debiased_squared_ece(sums),
            "brier_reliability": parts.reliability_K,
            "brier_resolution": parts.resolution_K,
            "brier_uncertainty": parts.uncertainty_K,
            "brier_within_variance": parts.within_variance_K,
            "brier_within_covariance": parts.within_covariance_K,
        }
        intervals = {name: wilson(*counted) for name, counted in counts.proportions().items()}
        intervals |= {
            "f1": f1_interval(counts),
            "average_precision": ranks.average_precision_interval(),
            "roc_auc": ranks.roc_auc_interval(),
            "ece_after": ece_interval(sums),
            "ece_equal_width": ece_interval(widths),
            # The labels chose the number of bins: the interval holds for all of them together.
            "ece_adaptive": ece_interval(adaptive, confidence=1 - (1 - CONFIDENCE) / MAX_BINS),
            "ece_debiased": ece_interval(sums),  # it estimates what `ece_after` does
            **self._cells.intervals(sums),
            **self._draw(self.draws, counts, label_NC, target_NC, mask_NC, losses, squares),
        }
        return figures | ends(intervals)

    def _ranked(self, score_NC: NDArray[Any], target_NC: NDArray[np.bool_], mask_NC: NDArray[np.bool_]) -> RankFigures:
        if self.draws is None:
            return rank_figures(score_NC, target_NC, mask_NC)
        ranks, slopes = rank_figures_with_slopes(score_NC, target_NC, mask_NC)
        ap_C, positive_NC = ranks.average_precision_K, target_NC & mask_NC
        for name, figure_C, slope_N in (
            ("macro_average_precision", ap_C, slopes.average_precision_N),
            ("macro_roc_auc", ranks.roc_auc_K, slopes.roc_auc_N),
        ):
            # Each row has an equal part of the figures' sum and of their number, and of the sum what its weight changes.
            part, num = 1 / max(len(slope_N), 1), (~np.isnan(figure_C)).sum()
            _add(self._ranks[name], slope_N + part * np.nansum(figure_C), np.full(len(slope_N), part * num))
        each_N = slopes.weighted_average_precision_N + positive_NC @ np.nan_to_num(ap_C)
        _add(self._ranks["weighted_average_precision"], each_N, positive_NC.sum(axis=1))
        return ranks

    def _draw(
        self,
        draws: RowDraws,
        counts: Counts,
        label_NC: NDArray[np.bool_],
        target_NC: NDArray[np.bool_],
        mask_NC: NDArray[np.bool_],
        losses: F64,
        squares: F64,
    ) -> dict[str, tuple[F64, F64]]:
        decided_NC, positive_NC = label_NC & mask_NC, target_NC & mask_NC
        right_RC, decided_RC, positive_RC = (draws.sums(flag) for flag in (decided_NC & positive_NC, decided_NC, positive_NC))
        known_RC = draws.sums(mask_NC)
        right_R, decided_R, positive_R = (drawn_RC.sum(axis=1) for drawn_RC in (right_RC, decided_RC, positive_RC))
        _add(self._drawn["micro_precision"], right_R, decided_R)
        _add(self._drawn["micro_recall"], right_R, positive_R)
        _add(self._drawn["micro_f1"], 2 * right_R, decided_R + positive_R)
        some_C = counts.num_decided_K + counts.num_positives_K > 0
        drawn = {
            "precision": ratio(right_RC, decided_RC),
            "recall": ratio(right_RC, positive_RC),
            "f1": np.where(some_C, ratio(2 * right_RC, decided_RC + positive_RC), np.nan),
            "nll_after": ratio(draws.sums(losses), known_RC),
            "brier_after": ratio(draws.sums(squares), known_RC),
        }
        for name, value_RC in drawn.items():
            defined_RC, value_RC = ~np.isnan(value_RC), np.nan_to_num(value_RC)
            _add(self._drawn[name if name in LOSSES else f"macro_{name}"], value_RC.sum(axis=1), defined_RC.sum(axis=1))
            if name in WEIGHTED:
                weight_RC = positive_RC * defined_RC
                _add(self._drawn[f"weighted_{name}"], (value_RC * weight_RC).sum(axis=1), weight_RC.sum(axis=1))
        return {name: quantiles(drawn[name]) for name in LOSSES}

    def summary(self, figures_K: Figures) -> dict[str, float]:
        """Return the means over classes: macro, weighted by positives, micro; NaN where they are not defined."""
        right_1, decided_1, positives_1 = self._micro[:, None]
        found = {
            **{f"macro_{name}": mean(figures_K[name]) for name in MACRO},
            **{f"weighted_{name}": mean(figures_K[name], figures_K["positives"]) for name in WEIGHTED},
            "micro_precision": float(ratio(right_1, decided_1)[0]),
            "micro_recall": float(ratio(right_1, positives_1)[0]),
            "micro_f1": float(ratio(2 * right_1, decided_1 + positives_1)[0]),
        }
        if self.draws is None:
            return found
        found |= {name: mean(figures_K[name]) for name in DETAILS}
        figures = found | {name: mean(figures_K[name]) for name in LOSSES}
        ranked: dict[str, Any] = {name: self.draws.sums(np.stack(pair, axis=1)).T for name, pair in self._ranks.items()}
        for name, (top_R, bottom_R) in {**self._drawn, **ranked}.items():
            value_R = ratio(top_R, bottom_R)
            # Of classes with few positives each draw has fewer yet, which lowers their F1: the draws are moved to the figure.
            most = 1.0 if name.endswith(UNIT) else math.inf
            for end, value_1 in zip(("low", "high"), quantiles(value_R[:, None]), strict=True):
                found[f"{name}_{end}"] = float(np.clip(value_1[0] - mean(value_R) + figures[name], 0.0, most))
        return found


def _add(pair: list[Any], top: Any, bottom: Any) -> None:
    pair[0], pair[1] = pair[0] + top, pair[1] + bottom


def ends(intervals: dict[str, tuple[F64, F64]]) -> Figures:
    """Return intervals as figures of their own: f_low and f_high."""
    return {f"{name}_{end}": value for name, pair in intervals.items() for end, value in zip(("low", "high"), pair, strict=True)}


def mean(value_K: NDArray[Any], weight_K: NDArray[Any] | None = None) -> float:
    """Return the mean over the heads for which the figure is defined; NaN where it is for none, or all weigh nothing."""
    weight_K = np.ones(len(value_K)) if weight_K is None else weight_K
    kept_K = ~np.isnan(value_K) & (weight_K > 0)
    return float(np.average(value_K[kept_K], weights=weight_K[kept_K])) if kept_K.any() else float("nan")
