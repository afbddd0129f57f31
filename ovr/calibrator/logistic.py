"""Logistic regressions of very few parameters for many heads at once, within bounds. Knows nothing of calibrations.

N = rows, C = heads of one block, F = features, P = parameters: a slope a feature, and the intercept if there is one

For each head minimise over theta

    sum_n w_n (softplus(eta_n) - t_n eta_n) + 1/2 (theta - mean)' precision (theta - mean),   eta = sum_f theta_f x_f + intercept

within a box, by Newton's method with shorter steps where one does not descend; a parameter at a bound that pushes outwards is held
(projected Newton; Bertsekas 1982, "Projected Newton methods for optimization problems with simple constraints"). The problem is
convex, so that what stops it is its only optimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

MAX_STEPS = 200
MAX_CUTS = 60  # of a step to a quarter: where nearly all rows are sure it may be far too long
# Of the Newton decrement, which is twice what a step can gain in nats: a last step from below it leaves theta good to 1e-8.
TOLERANCE = 1e-9
BLOCK_VALUES = 1 << 16  # rows times heads worked on at a time: arrays of 512 KB stay in the caches


@dataclass(frozen=True, slots=True)
class Prior:
    """A normal distribution of theta: mean (P,) and inverse covariance (P, P)."""

    mean_P: F64
    precision_PP: F64


@dataclass(frozen=True, slots=True)
class LogisticFit:
    """theta (C, P), whether a bound holds one of its entries, and the Hessian (C, P, P) of the rows alone."""

    theta_CP: F64
    at_bound_C: NDArray[np.bool_]
    hessian_CPP: F64


def fit_logistic(
    features: Sequence[F64],
    target_CN: F64,
    weight_CN: F64,
    *,
    start_CP: F64,
    lower_P: F64,
    upper_P: F64,
    prior: Prior | None = None,
    tolerance: float = TOLERANCE,
) -> LogisticFit:
    """Return the optimum of every head, each found from its own row of the arrays alone.

    Args:
        features: F arrays (C, N) of finite values.
        target_CN: from 0 to 1.
        weight_CN: 0 or more; 0 leaves a row out.
        start_CP: where to begin; P is F, or F + 1 with an intercept.
        lower_P, upper_P: bounds, which may be infinite.
        tolerance: of the Newton decrement from which on a step is the last.
    """
    step = max(1, BLOCK_VALUES // max(1, target_CN.shape[1]))
    fits = [
        _fit_block(
            [x[here] for x in features], target_CN[here], weight_CN[here], start_CP[here], lower_P, upper_P, prior, tolerance
        )
        for here in (slice(start, start + step) for start in range(0, len(target_CN), step))
    ]
    if not fits:
        return _fit_block(list(features), target_CN, weight_CN, start_CP, lower_P, upper_P, prior, tolerance)
    return LogisticFit(
        np.concatenate([fit.theta_CP for fit in fits]),
        np.concatenate([fit.at_bound_C for fit in fits]),
        np.concatenate([fit.hessian_CPP for fit in fits]),
    )


def _fit_block(
    features: list[F64],
    target_CN: F64,
    weight_CN: F64,
    start_CP: F64,
    lower_P: F64,
    upper_P: F64,
    prior: Prior | None,
    tolerance: float,
) -> LogisticFit:
    theta_CP = np.clip(start_CP, lower_P, upper_P)
    num_heads, num_params = theta_CP.shape
    hessian_CPP = np.zeros((num_heads, num_params, num_params))
    held_CP = np.zeros((num_heads, num_params), dtype=np.bool_)
    head = np.arange(num_heads)  # those that have not converged
    for _ in range(MAX_STEPS):
        here = head if len(head) < num_heads else slice(None)
        parts, target, weight, theta = [x[here] for x in features], target_CN[here], weight_CN[here], theta_CP[head]
        gradient, hessian = _sums(parts, target, weight, theta)
        hessian_CPP[head] = hessian
        if prior is not None:
            off = theta - prior.mean_P
            gradient = gradient + off @ prior.precision_PP
            hessian = hessian + prior.precision_PP
        held = ((theta <= lower_P) & (gradient > 0)) | ((theta >= upper_P) & (gradient < 0))
        step = _newton(gradient, hessian, held)
        # One that is at a bound, and that the others would push out, waits until they are where they want to be.
        waits = ((theta <= lower_P) & (step < 0)) | ((theta >= upper_P) & (step > 0))
        if waits.any():
            held = held | waits
            step = _newton(gradient, hessian, held)
        decrement = -np.einsum("cp,cp->c", step, np.where(held, 0.0, gradient))
        trial = _descended(parts, target, weight, theta, step, decrement, lower_P, upper_P, prior)
        theta_CP[head], held_CP[head] = trial, held
        open_ = (decrement > tolerance) & np.any(trial != theta, axis=1)
        head = head[open_]
        if len(head) == 0:
            break
    return LogisticFit(theta_CP, np.asarray(held_CP.any(axis=1)), hessian_CPP)


def _descended(
    parts: list[F64],
    target: F64,
    weight: F64,
    theta: F64,
    step: F64,
    decrement: F64,
    lower_P: F64,
    upper_P: F64,
    prior: Prior | None,
) -> F64:
    """Return theta after the longest of the step, its quarter, a quarter of that ... that descends."""
    trial = np.clip(theta + step, lower_P, upper_P)
    # A step this short descends but for rounding; looking would cost as much as the next step.
    unsure = np.flatnonzero(decrement > 1e-3)
    before = np.full(len(theta), np.nan)
    before[unsure] = _loss([x[unsure] for x in parts], target[unsure], weight[unsure], theta[unsure], prior)
    share = 1.0
    for _ in range(MAX_CUTS):
        if len(unsure) == 0:
            break
        after = _loss([x[unsure] for x in parts], target[unsure], weight[unsure], trial[unsure], prior)
        unsure = unsure[~(after <= before[unsure] - 1e-4 * share * decrement[unsure])]
        share /= 4
        trial[unsure] = np.clip(theta[unsure] + share * step[unsure], lower_P, upper_P)
    else:
        trial[unsure] = theta[unsure]
    return trial


def _newton(gradient: F64, hessian: F64, held: NDArray[np.bool_]) -> F64:
    """Return Newton's step of the parameters that are not held."""
    size = np.sqrt(np.maximum(np.einsum("cpp->cp", hessian), 1e-280))
    # To a diagonal of 1 first, and a little more than that: where nearly all rows are sure, the Hessian is singular but for
    # rounding, and the step must descend all the same.
    matrix = hessian / (size[:, :, None] * size[:, None, :])
    matrix = np.where(held[:, :, None] | held[:, None, :], 0.0, matrix) + (1e-9 + held)[:, :, None] * np.eye(held.shape[1])
    return np.asarray(-np.linalg.solve(matrix, (np.where(held, 0.0, gradient) / size)[:, :, None])[:, :, 0] / size)


def combined(parts: Sequence[F64], theta: F64) -> F64:
    """Return eta (C, N): each feature times its slope, and the intercept."""
    eta = parts[0] * theta[:, :1]
    for f in range(1, len(parts)):
        eta += parts[f] * theta[:, f : f + 1]
    if theta.shape[1] > len(parts):
        eta += theta[:, -1:]
    return eta


def _loss(parts: list[F64], target: F64, weight: F64, theta: F64, prior: Prior | None) -> F64:
    eta = combined(parts, theta)
    term = np.maximum(eta, 0.0) - target * eta + np.log1p(np.exp(-np.abs(eta)))
    loss = np.asarray(np.einsum("cn,cn->c", term, weight))
    if prior is not None:
        off = theta - prior.mean_P
        loss += 0.5 * np.einsum("cp,pq,cq->c", off, prior.precision_PP, off)
    return loss


def _sums(parts: list[F64], target: F64, weight: F64, theta: F64) -> tuple[F64, F64]:
    """Return gradient (C, P) and Hessian (C, P, P) of the likelihood."""
    eta = combined(parts, theta)
    small = np.exp(-np.abs(eta))
    inverse = 1.0 / (1.0 + small)
    prob = np.where(eta >= 0, inverse, small * inverse)
    bend = small * inverse * inverse * weight
    miss = (prob - target) * weight
    num_params = theta.shape[1]
    gradient = np.empty((len(eta), num_params))
    hessian = np.empty((len(eta), num_params, num_params))
    for i in range(num_params):
        if i == len(parts):
            gradient[:, i], hessian[:, i, i] = miss.sum(axis=1), bend.sum(axis=1)
            continue
        gradient[:, i] = np.einsum("cn,cn->c", miss, parts[i])
        bent = bend * parts[i]
        for j in range(i, len(parts)):
            hessian[:, i, j] = hessian[:, j, i] = np.einsum("cn,cn->c", bent, parts[j])
        if num_params > len(parts):
            hessian[:, i, -1] = hessian[:, -1, i] = bent.sum(axis=1)
    return gradient, hessian
