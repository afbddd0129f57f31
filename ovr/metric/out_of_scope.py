"""How much a row looks like one of the K classes, from its K probabilities, and how well that tells rows of none apart.

B = batch, K = heads, N = rows
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.outcomes import log_odds, out_of_scope_score, prob_normalized
from ovr.core.targets import check_scores
from ovr.errors import DataError
from ovr.metric.ranking import rank_figures

F64 = NDArray[np.float64]


def max_prob(prob_BK: Any) -> F64:
    """Return each row's highest probability (B,): what `DecisionPolicy.abstain_below` looks at."""
    highest_B: F64 = np.asarray(prob_BK, dtype=np.float64).max(axis=1)
    return highest_B


def sum_prob(prob_BK: Any) -> F64:
    """Return the sum of each row's probabilities (B,): how many of the classes it is expected to have."""
    sum_B: F64 = np.asarray(prob_BK, dtype=np.float64).sum(axis=1)
    return sum_B


def negative_entropy(prob_BK: Any) -> F64:
    """Return minus `out_of_scope_score` (B,): 0 for one class that is sure, -log K for none."""
    return -out_of_scope_score(prob_BK)


def max_normalized(prob_BK: Any) -> F64:
    """Return the highest of each row's `prob_normalized` (B,)."""
    highest_B: F64 = prob_normalized(prob_BK).max(axis=1)
    return highest_B


def log_odds_sum(prob_BK: Any) -> F64:
    """Return the logarithm of the sum of each row's odds (B,): the log-odds against "none of them", if at most one is right."""
    log_odds_BK = log_odds(prob_BK)
    highest_B1 = log_odds_BK.max(axis=1, keepdims=True)
    sum_B: F64 = highest_B1[:, 0] + np.log(np.exp(log_odds_BK - highest_B1).sum(axis=1))
    return sum_B


SCORES = {"max": max_prob, "sum": sum_prob, "entropy": negative_entropy, "max_normalized": max_normalized, "odds": log_odds_sum}


def auroc(in_scope_N: Any, out_of_scope_N: Any) -> float:
    """Return the probability that a row of a class has a higher score than a row of none, ties counted half (Mann & Whitney 1947).

    Raises:
        DataError: scores that are not finite, or no row of either kind.
    """
    scores = [check_scores(np.asarray(values)[:, None], score_name="score") for values in (in_scope_N, out_of_scope_N)]
    num_rows = [len(score_N1) for score_N1 in scores]
    if not all(num_rows):
        raise DataError(f"{num_rows[0]} rows in scope and {num_rows[1]} out of scope; expected one of each at least")
    score_N1, inside_N1 = np.concatenate(scores), np.repeat([True, False], num_rows)[:, None]
    return float(rank_figures(score_N1, inside_N1, np.ones_like(inside_N1)).roc_auc_K[0])
