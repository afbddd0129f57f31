"""Empirical Bayes over heads: what all heads say of the parameters of one, as a normal prior (Efron and Morris 1973).

Knows no calibrator. The prior's mean and covariance are those under which the rows of all heads are likely, found by expectation
maximisation with Laplace's approximation of each head's posterior: fit every head under the prior so far, take mean and spread of
the fits, and their own uncertainty added, as the next prior.

C = heads, P = parameters
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.logistic import LogisticFit, Prior

F64 = NDArray[np.float64]

MAX_ROUNDS = 20
CLOSE = 0.01  # of the prior's own standard deviations: the mean that moves less is kept
MAX_HEADS = 128  # a mean and a spread of so many heads are known well enough
START_SD = 1.0  # of every parameter, before any row is seen
# So many heads more, which change nothing and differ by `PRIOR_SD`, count beside those that there are: the mean and the spread of
# two or three heads are not what they seem. The fewer heads and rows there are, the less is pooled, therefore.
PRIOR_HEADS = 2.0
PRIOR_SD = 0.5


def pooled_prior(fit: Callable[[Prior | None, F64 | None], LogisticFit], identity_P: F64) -> Prior:
    """Return the prior that the heads themselves tell.

    Args:
        fit: fits the heads under a prior, from a start (C, P) or none.
        identity_P: the parameters that change nothing: the mean before any row is seen.
    """
    num_params = len(identity_P)
    prior = Prior(identity_P, np.eye(num_params) / START_SD**2)
    theta_CP: F64 | None = None
    for _ in range(MAX_ROUNDS):
        found = fit(prior, theta_CP)
        theta_CP = found.theta_CP
        own_CPP = np.linalg.inv(found.hessian_CPP + prior.precision_PP)
        # A slight pull: with one head alone the mean is not that head's.
        mean_P = (theta_CP.sum(axis=0) + PRIOR_HEADS * identity_P) / (len(theta_CP) + PRIOR_HEADS)
        off_CP = theta_CP - mean_P
        spread_PP = own_CPP.sum(axis=0) + off_CP.T @ off_CP + PRIOR_HEADS * PRIOR_SD**2 * np.eye(num_params)
        last, prior = prior, Prior(mean_P, np.linalg.inv(spread_PP / (len(theta_CP) + PRIOR_HEADS)))
        change_P = np.abs(np.diag(prior.precision_PP) / np.diag(last.precision_PP) - 1.0)
        moved_P = prior.mean_P - last.mean_P
        if moved_P @ prior.precision_PP @ moved_P < CLOSE**2 and change_P.max() < 10 * CLOSE:
            break
    return prior


def own_share(hessian_CPP: F64, prior: Prior) -> F64:
    """Return how much of each head's fit (C,) is its own rows' doing and not the prior's, from 0 to 1: the mean over parameters of
    what the rows add to what is known of them."""
    share_CPP = np.linalg.solve(hessian_CPP + prior.precision_PP, hessian_CPP)
    return np.asarray(np.einsum("cpp->c", share_CPP) / hessian_CPP.shape[1])
