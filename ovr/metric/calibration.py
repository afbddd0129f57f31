"""How far each head's probabilities are from frequencies: calibration errors, Brier score, likelihood. Knows no calibrator.

N = rows, K = heads, C = heads of one block, G = bins, H = rows whose highest probability is in the block

Only rows whose label is known count, and a head without any has NaN. A calibration error (ECE; Naeini et al. 2015) is the mean over
rows of |share of positives - mean probability| of the row's bin. It depends on how the bins are made, so each way has its own name:

- equal mass: the lower edges are the scores of rank floor(g n / G), g = 0 .. G - 1, counted from the lowest. Rows of equal score
  share a bin, whatever their order, so that ties, or fewer rows than bins, give fewer bins. The one to compare heads by: with rare
  classes nearly all rows fall into the lowest bin of equal width, and the error is tiny by construction.
- equal width: bin g holds g / G <= prob < (g + 1) / G; the last one holds 1 too.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ovr.core.targets import check_probs, check_targets
from ovr.core.top import RunningTop
from ovr.metric.binned import ece
from ovr.metric.bins import NUM_BINS, BinSums, RankedRows, bin_sums, check_num_bins, joined, ranked_rows, width_sums

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

MAX_BINS = 100  # of `ece_adaptive`


def ece_equal_mass(prob_NK: Any, target_NK: Any, mask_NK: Any, *, num_bins: int = NUM_BINS) -> F64:
    """Return the class-wise calibration error (K,) with bins of equal mass, in [0, 1].

    Raises:
        ConfigError: `num_bins` below 1.
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    return ece(bin_sums(prob_NK, target_NK, mask_NK, num_bins=num_bins))


def ece_adaptive(prob_NK: Any, target_NK: Any, mask_NK: Any, *, max_bins: int = MAX_BINS) -> tuple[F64, I64]:
    """Return the class-wise calibration error (K,) and the number of bins of equal mass (K,) that it was measured with.

    Each head has as many bins, `max_bins` or its rows at most, as leave no share of positives below that of the bin before: the
    "monotonic sweep" of Roelofs et al. 2022, "Mitigating Bias in Calibration Error Estimation". Fewer bins have less
    noise, more hide less.

    Raises:
        ConfigError: `max_bins` below 1.
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    _, sums, num_bins_K = mass_sums(prob_NK, target_NK, mask_NK, max_bins=max_bins)
    return ece(sums), num_bins_K


def mass_sums(prob_NK: Any, target_NK: Any, mask_NK: Any, *, max_bins: int = MAX_BINS) -> tuple[BinSums, BinSums, I64]:
    """Return the sums of `NUM_BINS` bins of equal mass, those of the bins of `ece_adaptive`, and how many these are (K,).

    Of the latter each head has `max_bins`, of which the last ones are empty. One sort of the rows does for both.

    Raises:
        ConfigError, DataError: as `ece_adaptive`.
    """
    check_num_bins(max_bins)
    parts = []
    for rows in ranked_rows(prob_NK, target_NK, mask_NK):
        end_CG, bins_C = _adaptive_ends(rows, max_bins)
        parts.append((*rows.sums(rows.ends(NUM_BINS), end_CG), bins_C))
    even, adaptive, num_bins = zip(*parts, strict=True)
    return joined(even), joined(adaptive), np.concatenate(num_bins)


def _adaptive_ends(rows: RankedRows, max_bins: int) -> tuple[I64, I64]:
    """Return the places of the most bins whose shares rise (C, max_bins + 1), and how many those are (C,)."""
    num_C, hits_CN = rows.ranked.num_known_C, rows.totals(rows.ranked.target_CN)
    end_CG = np.zeros((len(num_C), max_bins + 1), np.int64)
    bins_C, rising_C = np.ones(len(num_C), np.int64), num_C > 0
    for num_bins in range(1, max_bins + 1):
        rising_C = rising_C & (num_bins <= num_C)
        if not rising_C.any():
            break
        heads_R = np.flatnonzero(rising_C)
        end_RG = rows.ends(num_bins)[heads_R]
        count_RG = -np.diff(end_RG, axis=1)
        share_RG = np.where(count_RG > 0, -np.diff(hits_CN[heads_R[:, None], end_RG]) / np.maximum(count_RG, 1), -1.0)
        rising_R = ((share_RG == np.maximum.accumulate(share_RG, axis=1)) | (count_RG == 0)).all(axis=1)
        rising_C[heads_R] = rising_R
        end_CG[heads_R[rising_R], : num_bins + 1] = end_RG[rising_R]
        bins_C[heads_R[rising_R]] = num_bins
    return end_CG, bins_C


def ece_equal_width(prob_NK: Any, target_NK: Any, mask_NK: Any, *, num_bins: int = NUM_BINS) -> F64:
    """Return the class-wise calibration error (K,) with bins of equal width, in [0, 1].

    Raises:
        ConfigError: `num_bins` below 1.
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    return ece(width_sums(prob_NK, target_NK, mask_NK, num_bins=num_bins))


class TopLabel:
    """The highest probability of each row, whether its class is a label of the row, and whether that is known.

    Of equal probabilities the lower column is taken. Given to one of the errors above, it is the top-label ECE.
    """

    def __init__(self, num_rows: int) -> None:
        self._top = RunningTop(num_rows)
        self._right_N, self._known_N = np.zeros(num_rows, np.bool_), np.zeros(num_rows, np.bool_)
        self._num_heads = 0

    def update(self, prob_NC: Any, target_NC: Any, mask_NC: Any) -> None:
        """Take the next heads, in column order.

        Raises:
            DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
        """
        prob_NC, target_NC, mask_NC = check_probs(prob_NC, target_NC, mask_NC)
        row_H = np.flatnonzero(self._top.update(prob_NC, first_column=self._num_heads))
        column_H = self._top.column_N[row_H] - self._num_heads
        self._known_N[row_H] = mask_NC[row_H, column_H]
        self._right_N[row_H] = (target_NC & mask_NC)[row_H, column_H]
        self._num_heads += prob_NC.shape[1]

    def result(self) -> tuple[F64, Bool, Bool]:
        """Return confidence, right and known, as one column (N, 1) each."""
        return self._top.score_N.astype(np.float64)[:, None], self._right_N[:, None], self._known_N[:, None]


def top_label(prob_NK: Any, target_NK: Any, mask_NK: Any) -> tuple[F64, Bool, Bool]:
    """Return what `TopLabel` does of all heads at once.

    Raises:
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    top = TopLabel(len(prob_NK))
    top.update(prob_NK, target_NK, mask_NK)
    return top.result()


def brier(prob_NK: Any, target_NK: Any, mask_NK: Any) -> F64:
    """Return the mean of (prob - target)^2 for every head (K,), in [0, 1] (Brier 1950).

    Raises:
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, targets or mask other than 0 and 1.
    """
    prob_NK, target_NK, mask_NK = check_probs(prob_NK, target_NK, mask_NK)
    gap_NK = np.where(mask_NK, target_NK - prob_NK.astype(np.float64), 0.0)
    return _mean(np.einsum("nk,nk->k", gap_NK, gap_NK), mask_NK)


def nll(logit_NK: Any, target_NK: Any, mask_NK: Any, *, scale_K: ArrayLike = 1.0, bias_K: ArrayLike = 0.0) -> F64:
    """Return the mean negative log-likelihood in nats of every head (K,), from logits: a probability of 1 would lose it.

    Args:
        scale_K: of the calibration, (K,) or one for all; the logit counted with is scale * logit + bias.
        bias_K: likewise.

    Raises:
        DataError: logits that are not finite, shapes that differ, targets or mask other than 0 and 1.
    """
    logit_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")[0]
    with np.errstate(over="ignore"):
        scaled_NK = logit_NK * np.asarray(scale_K, dtype=np.float64) + np.asarray(bias_K, dtype=np.float64)
    losses_NK = log_losses(np.nan_to_num(scaled_NK), target_NK, mask_NK)
    return _mean(losses_NK.sum(axis=0), np.asarray(mask_NK) != 0)


def log_losses(logit_NK: Any, target_NK: Any, mask_NK: Any) -> F64:
    """Return the negative log-likelihood (N, K) in nats of every target; 0 where it is unknown.

    Raises:
        DataError: logits that are not finite, shapes that differ, targets or mask other than 0 and 1.
    """
    logit_NK, target_NK, mask_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
    signed_NK = np.where(target_NK, -logit_NK.astype(np.float64), logit_NK)
    softplus_NK = np.maximum(signed_NK, 0.0) + np.log1p(np.exp(-np.abs(signed_NK)))
    return np.where(mask_NK, softplus_NK, 0.0)


def _mean(sum_K: F64, mask_NK: Bool) -> F64:
    num_known_K = mask_NK.sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean_K: F64 = np.where(num_known_K > 0, sum_K / num_known_K, np.nan)
    return mean_K
