"""How much a row looks like one of the K classes, from its K probabilities, and how well that tells rows of none apart.

B = batch, K = heads, N = rows
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.outcomes import log_odds, out_of_scope_score, prob_normalized
from ovr.core.targets import check_scores
from ovr.errors import DataError

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
    inside_N, outside_N = (
        check_scores(np.asarray(values)[:, None], score_name="score")[:, 0] for values in (in_scope_N, out_of_scope_N)
    )
    if not len(inside_N) or not len(outside_N):
        raise DataError(f"{len(inside_N)} rows in scope and {len(outside_N)} out of scope; expected one of each at least")
    sorted_N = np.sort(outside_N)
    below, up_to = (np.searchsorted(sorted_N, inside_N, side=side) for side in ("left", "right"))
    return float((0.5 * (below + up_to)).mean() / len(outside_N))
