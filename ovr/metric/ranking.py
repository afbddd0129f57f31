"""How well a head's scores rank its positives: average precision and area under the ROC curve, with intervals. Knows no thresholds.

N = rows, K = heads, C = heads of one block
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.ranking import Ranked, ranked_blocks
from ovr.core.targets import check_targets
from ovr.metric.intervals import CONFIDENCE, normal_quantile, wilson

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

NUM_STEPS = 50  # bisections of an interval's end


@dataclass(frozen=True, slots=True)
class RankFigures:
    """Figures of each head (K,); NaN where the rows do not define them."""

    average_precision_K: F64  # NaN without a positive
    roc_auc_K: F64  # the chance that a positive row scores above a negative one; NaN without one of either
    num_positives_K: I64
    num_negatives_K: I64
    roc_auc_variance_K: F64 | None = None  # DeLong's; None where only `rank_figures` was asked

    def average_precision_interval(self, *, confidence: float = CONFIDENCE) -> tuple[F64, F64]:
        """Return (low_K, high_K) of the average precision: Wilson's with the positives as trials.

        Boyd, Eng and Page 2013, "Area under the Precision-Recall Curve: Point Estimates and Confidence Intervals", find binomial
        intervals to hold where positives are few, and the bootstrap's not to.

        Raises:
            ConfigError: `confidence` outside (0, 1).
        """
        return wilson(np.nan_to_num(self.average_precision_K) * self.num_positives_K, self.num_positives_K, confidence=confidence)

    def roc_auc_interval(self, *, confidence: float = CONFIDENCE) -> tuple[F64, F64]:
        """Return (low_K, high_K) of the area: the score interval of Newcombe 2006, "Confidence intervals for an effect size measure
        based on the Mann-Whitney statistic, part 2", method 5.

        Unlike DeLong's it has width at an area of 1, and holds with three positives: see docs/metrics.md. It takes the scores of
        positives to spread as those of others do; where DeLong's variance is known and larger, the variance is raised to it.

        Raises:
            ConfigError: `confidence` outside (0, 1).
        """
        z, auc_K = normal_quantile(confidence), self.roc_auc_K
        pairs_K, half_K = self.num_positives_K * self.num_negatives_K, (self.num_positives_K + self.num_negatives_K) / 2 - 1
        ends = []

        def variance_of(t_K: F64) -> F64:
            variance_K: F64 = t_K * (1 - t_K) * (1 + half_K * ((1 - t_K) / (2 - t_K) + t_K / (1 + t_K))) / pairs_K
            return variance_K

        with np.errstate(divide="ignore", invalid="ignore"):
            delong_K = np.zeros(len(auc_K)) if self.roc_auc_variance_K is None else self.roc_auc_variance_K
            wider_K = np.fmax(1.0, delong_K / variance_of(auc_K))
            for end in (0.0, 1.0):
                inner_K, outer_K = auc_K, np.full(len(auc_K), end)
                for _ in range(NUM_STEPS):
                    t_K = (inner_K + outer_K) / 2
                    holds_K = np.abs(t_K - auc_K) <= z * np.sqrt(wider_K * variance_of(t_K))
                    inner_K, outer_K = np.where(holds_K, t_K, inner_K), np.where(holds_K, outer_K, t_K)
                ends.append(np.where(np.isnan(auc_K), np.nan, inner_K))
        return ends[0], ends[1]


@dataclass(frozen=True, slots=True)
class RankSlopes:
    """How sums over heads change with the weight of each row (N,): their derivatives at a weight of 1. Each has a sum of 0.

    Heads for which a figure is not defined, and rows whose label a head does not know, add nothing.
    """

    average_precision_N: F64
    weighted_average_precision_N: F64  # that of each head times its positives, which stay as they are
    roc_auc_N: F64


def rank_figures(score_NK: Any, target_NK: Any, mask_NK: Any) -> RankFigures:
    """Return average precision and ROC AUC of every head; only their order matters of the scores, and ties count as ties.

    Raises:
        DataError: scores that are not finite, shapes that differ, targets or mask other than 0 and 1.
    """
    score_NK, target_NK, mask_NK = check_targets(score_NK, target_NK, mask_NK, score_name="score")
    return _joined([_figures(ranked, _Runs.of(ranked)) for ranked in ranked_blocks(score_NK, target_NK, mask_NK)])


def rank_figures_with_slopes(score_NK: Any, target_NK: Any, mask_NK: Any) -> tuple[RankFigures, RankSlopes]:
    """Return what `rank_figures` does, and what it takes to draw rows for the figures' means over heads (see `RowDraws`).

    Raises:
        DataError: as `rank_figures`.
    """
    score_NK, target_NK, mask_NK = check_targets(score_NK, target_NK, mask_NK, score_name="score")
    parts, slopes_3N = [], np.zeros((3, len(score_NK)))
    for ranked in ranked_blocks(score_NK, target_NK, mask_NK):
        runs = _Runs.of(ranked)
        found = _figures(ranked, runs)
        precision_CN, area_CN = _precision_slopes(ranked, runs), _area_slopes(ranked, runs, found.roc_auc_K)
        parts.append(replace(found, roc_auc_variance_K=_delong(ranked, area_CN)))
        weighted_CN = precision_CN * ranked.num_positives_C[:, None]
        for slope_N, slope_CN in zip(slopes_3N, (precision_CN, weighted_CN, area_CN), strict=True):
            slope_N += np.bincount(ranked.order_CN.ravel(), slope_CN.ravel(), minlength=len(slope_N))
    return _joined(parts), RankSlopes(*slopes_3N)


def average_precision_influence(score_NK: Any, target_NK: Any, mask_NK: Any) -> F64:
    """Return the derivative (N, K) of each head's average precision by the weight of each row; 0 where the label is unknown.

    Its sum over rows is 0, and that of its squares the variance over draws of rows (the infinitesimal jackknife, Efron 1982). Two
    models on the same rows differ by what differs row by row.

    Raises:
        DataError: scores that are not finite, shapes that differ, targets or mask other than 0 and 1.
    """
    score_NK, target_NK, mask_NK = check_targets(score_NK, target_NK, mask_NK, score_name="score")
    influence_KN = np.zeros(score_NK.shape[::-1])
    for ranked in ranked_blocks(score_NK, target_NK, mask_NK):
        slope_CN = _precision_slopes(ranked, _Runs.of(ranked))
        np.put_along_axis(influence_KN[ranked.columns], ranked.order_CN, slope_CN, axis=1)
    return influence_KN.T


def _figures(ranked: Ranked, runs: "_Runs") -> RankFigures:
    num_pos_C = ranked.num_positives_C
    num_neg_C = ranked.num_known_C - num_pos_C
    with np.errstate(divide="ignore", invalid="ignore"):
        auc_C = 1 - np.where(ranked.target_CN, runs.negatives_above_CN, 0.0).sum(axis=1) / (num_pos_C * num_neg_C)
        ap_C = np.where(ranked.target_CN, runs.precision_CN, 0.0).sum(axis=1) / num_pos_C
    return RankFigures(ap_C, auc_C, num_pos_C, num_neg_C)


def _delong(ranked: Ranked, slope_CN: F64) -> F64:
    """Return the variance (C,) of DeLong, DeLong and Clarke-Pearson 1988, from the derivatives of the area."""
    num_pos_C, of_positives_CN = ranked.num_positives_C, np.where(ranked.target_CN, slope_CN, 0.0)
    num_neg_C = ranked.num_known_C - num_pos_C
    positive_C, all_C = (np.einsum("cn,cn->c", part_CN, part_CN) for part_CN in (of_positives_CN, slope_CN))
    negative_C = (all_C - positive_C) * num_neg_C / np.maximum(num_neg_C - 1, 1)
    variance_C: F64 = positive_C * num_pos_C / np.maximum(num_pos_C - 1, 1) + negative_C
    return variance_C


def _joined(parts: list[RankFigures]) -> RankFigures:
    names = [name for name in RankFigures.__slots__ if getattr(parts[0], name) is not None]
    return RankFigures(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _precision_slopes(ranked: Ranked, runs: "_Runs") -> F64:
    """Return the derivative (C, N) of the average precision by the weight of the row at each place."""
    target_CN, num_pos_C1 = ranked.target_CN, ranked.num_positives_C[:, None]
    known_CN = np.arange(target_CN.shape[1]) < ranked.num_known_C[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ap_C1 = np.where(target_CN, runs.precision_CN, 0.0).sum(axis=1, keepdims=True) / num_pos_C1
        # A row raises or lowers the precision at its own run and at all below it: sums from the start of the run on.
        inverse_CN = np.where(target_CN, 1 / runs.end_CN, 0.0)
        gained_CN, lost_CN = (_from(value_CN, runs.start_CN) for value_CN in (inverse_CN, inverse_CN * runs.precision_CN))
        slope_CN = np.where(target_CN, runs.precision_CN + gained_CN - ap_C1, 0.0) - lost_CN
        return np.where(known_CN & (num_pos_C1 > 0), slope_CN / num_pos_C1, 0.0)


def _area_slopes(ranked: Ranked, runs: "_Runs", auc_C: F64) -> F64:
    """Return the derivative (C, N) of the area under the ROC curve by the weight of the row at each place."""
    num_pos_C1 = ranked.num_positives_C[:, None]
    num_neg_C1 = ranked.num_known_C[:, None] - num_pos_C1
    known_CN = np.arange(ranked.target_CN.shape[1]) < ranked.num_known_C[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        below_CN = 1 - runs.negatives_above_CN / num_neg_C1
        above_CN = (runs.hits_start_CN + runs.hits_end_CN) / (2 * num_pos_C1)
        slope_CN = np.where(ranked.target_CN, (below_CN - auc_C[:, None]) / num_pos_C1, (above_CN - auc_C[:, None]) / num_neg_C1)
    return np.where(known_CN & (num_pos_C1 * num_neg_C1 > 0), slope_CN, 0.0)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Of each row, by falling score, the places before its run of equal scores and up to its end, and the positives there."""

    start_CN: I64
    end_CN: I64
    hits_start_CN: I64
    hits_end_CN: I64

    @classmethod
    def of(cls, ranked: Ranked) -> "_Runs":
        num_rows = ranked.target_CN.shape[1]
        place_N = np.arange(num_rows)
        end_CN = np.minimum.accumulate(np.where(ranked.tie_end_CN, place_N + 1, num_rows)[:, ::-1], axis=1)[:, ::-1]
        begins_CN = np.pad(ranked.tie_end_CN[:, :-1], ((0, 0), (1, 0)))[:, :num_rows]
        start_CN = np.maximum.accumulate(np.where(begins_CN, place_N, 0), axis=1)
        hits_CN = np.pad(np.cumsum(ranked.target_CN, axis=1, dtype=np.int64), ((0, 0), (1, 0)))
        hits_start_CN, hits_end_CN = (np.take_along_axis(hits_CN, place_CN, axis=1) for place_CN in (start_CN, end_CN))
        return cls(start_CN, end_CN, hits_start_CN, hits_end_CN)

    @property
    def negatives_above_CN(self) -> F64:
        """The negatives that score higher than this row, and half of those that score the same."""
        above_CN: F64 = ((self.start_CN - self.hits_start_CN) + (self.end_CN - self.hits_end_CN)) / 2
        return above_CN

    @property
    def precision_CN(self) -> F64:
        """The share of positives among the rows that score as high as this one or higher."""
        precision_CN: F64 = self.hits_end_CN / np.maximum(self.end_CN, 1)
        return precision_CN


def _from(value_CN: F64, start_CN: I64) -> F64:
    """Return the sum of each row of `value_CN` from place `start_CN` on."""
    before_CN = np.pad(np.cumsum(value_CN, axis=1), ((0, 0), (1, 0)))
    sum_CN: F64 = before_CN[:, -1:] - np.take_along_axis(before_CN, start_CN, axis=1)
    return sum_CN
