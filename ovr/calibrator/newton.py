"""The scale of least negative log-likelihood for a block of heads. Knows nothing of temperatures that users ask for.

N = rows, C = heads of one block

The likelihood of a head is L(b) = sum_n softplus(-s_n b); see `temperature`. With a = |s|, q = sigmoid(-a b) and A = sum of a over
the rows on the wrong side of logit 0,

    dL/db = A - sum_n a_n q_n

so that one exponential a row, which never overflows, gives the derivative, its slope and the likelihood. A row whose label is
unknown gets a distance so large that it adds exactly 0 to every sum.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import CalibrationStatus

F64 = NDArray[np.float64]
Logits = NDArray[np.floating[Any]]  # kept as they came, which may be float32; every sum is of float64

MAX_STEPS = 100
STEP_TOLERANCE = 3e-4  # of log b: a last Newton step below it left a relative error of T of at most 2e-7, mostly 1e-9
START_TOLERANCE = 3e-2  # the same for the start, which a part of the rows gives
START_ROWS = 1024  # as many of them as that, or up to twice as many
TAIL_TOLERANCE = 1e-4  # of b: after so short a last step two derivatives tell the likelihood to some 1e-13
BRACKET_TOLERANCE = 1e-13
PART_VALUES = 1 << 17  # worked on at a time: three float64 arrays of 1 MB stay in the caches
UNKNOWN = 1e38  # the distance of a row whose label is unknown; float32 holds it


def fit_block(
    signed_CN: Logits,
    num_rows_C: NDArray[np.int64],
    num_positives_C: NDArray[np.int64],
    scale_bounds: tuple[float, float],
    prior_strength: float,
) -> tuple[F64, list[CalibrationStatus], F64, F64]:
    """Return scale, status and mean likelihoods before and after of the heads of one block; overwrites `signed_CN`, which is s."""
    wrong_C, tail_C = _at_one(signed_CN)
    one_class_C = (num_positives_C == 0) | (num_positives_C == num_rows_C)
    separable_C = ~one_class_C & (wrong_C == 0)
    for c in np.flatnonzero(separable_C):  # where all known logits are 0 there are no sides, and T = 1 is as good as any
        separable_C[c] = bool(np.any((signed_CN[c] != 0) & (signed_CN[c] != UNKNOWN)))
    fit = np.flatnonzero(~one_class_C & ((wrong_C > 0) | (separable_C & (prior_strength > 0))))
    stride = signed_CN.shape[1] // START_ROWS
    some_CN = signed_CN[fit, ::stride] if stride >= 4 else None
    away_CN = np.negative(np.abs(signed_CN, out=signed_CN), out=signed_CN)
    scale_C, at_bound_C = np.ones(len(away_CN)), np.zeros(len(away_CN), dtype=np.bool_)
    with np.errstate(invalid="ignore"):  # no rows: NaN
        before_C = (wrong_C + tail_C) / num_rows_C
    after_C = before_C.copy()
    if len(fit):
        if len(fit) < len(away_CN):
            away_CN = away_CN[fit]
        start_C, bend_C = np.zeros(len(fit)), np.zeros(len(fit))
        if some_CN is not None:
            start_C, bend_C = _start(some_CN, scale_bounds)
            start_C = _refined(away_CN, wrong_C[fit], start_C, bend_C, scale_bounds, prior_strength)
        scale_C[fit], at_bound_C[fit], _, tail_C = _minimise(
            away_CN, wrong_C[fit], start_C, bend_C, scale_bounds, prior_strength, STEP_TOLERANCE
        )
        far = np.flatnonzero(np.isnan(tail_C))
        if len(far):
            tail_C[far] = _tails(away_CN if len(far) == len(away_CN) else away_CN[far], scale_C[fit][far])
        after_C[fit] = (scale_C[fit] * wrong_C[fit] + tail_C) / num_rows_C[fit]
        worse_C = after_C > before_C  # by rounding alone: the optimum is 1 to within some units in the last place
        scale_C[worse_C], after_C[worse_C] = 1.0, before_C[worse_C]
    statuses: list[CalibrationStatus] = [
        "no_rows" if n == 0 else "one_class" if one else "separable" if separable else "at_bound" if at_bound else "ok"
        for n, one, separable, at_bound in zip(num_rows_C, one_class_C, separable_C, at_bound_C, strict=True)
    ]
    return scale_C, statuses, before_C, after_C


def _start(some_CN: Logits, scale_bounds: tuple[float, float]) -> tuple[F64, F64]:
    """Return the optimum of a part of the rows, as log b, and the bend there; T = 1 where they name no temperature."""
    start_C, bend_C = np.zeros(len(some_CN)), np.zeros(len(some_CN))
    wrong_C = -np.minimum(some_CN, 0.0).sum(axis=1, dtype=np.float64)
    usable = np.flatnonzero(wrong_C > 0)
    if len(usable):
        scale_C, at_bound_C, found_bend_C, _ = _minimise(
            -np.abs(some_CN[usable]), wrong_C[usable], start_C[usable], bend_C[usable], scale_bounds, 0.0, START_TOLERANCE
        )
        start_C[usable] = np.where(at_bound_C, 0.0, np.log(scale_C))
        bend_C[usable] = np.where(at_bound_C, 0.0, found_bend_C)
    return start_C, bend_C


def _refined(away_CN: Logits, wrong_C: F64, u_C: F64, bend_C: F64, scale_bounds: tuple[float, float], prior_strength: float) -> F64:
    """Return `u_C` after one step in float32, at half the cost of one in float64; its rounding moves the start alone."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sum_C, fall_C, _ = _sums(away_CN, np.arange(len(away_CN)), u_C, prior_strength, np.float32)
        newton_C = -np.log(sum_C / (wrong_C + prior_strength)) / _slope(sum_C, fall_C, u_C)
        moved_C = np.clip(u_C + _corrected(newton_C, bend_C), *np.log(scale_bounds))
    return np.where(np.abs(newton_C) < 1.0, moved_C, u_C)


def _minimise(
    away_CN: Logits,
    wrong_C: F64,
    start_C: F64,
    bend_C: F64,
    scale_bounds: tuple[float, float],
    prior_strength: float,
    tolerance: float,
) -> tuple[F64, NDArray[np.bool_], F64, F64]:
    """Return the root of dL/db within the bounds for every head, whether it is a bound that stopped it, the bend there, and the
    tail of the likelihood there, NaN where the last step was too long to tell it.

    Bracketed Newton in u = log b on f = log(sum a q) - log A: the sum falls like a power or an exponential of b, so that f is close
    to a straight line. The bend f''/2f', from the slopes of the last two steps, corrects for what is left of curvature. The prior
    adds strength / b to the sum and its strength to A. A head that has converged is not looked at again.
    """
    num_heads = len(away_CN)
    scale_C, at_bound_C, found_bend_C = np.empty(num_heads), np.zeros(num_heads, dtype=np.bool_), np.empty(num_heads)
    found_tail_C = np.full(num_heads, np.nan)
    min_u, max_u = np.log(scale_bounds[0]), np.log(scale_bounds[1])
    wrong_C = wrong_C + prior_strength
    head = np.arange(num_heads)  # those that have not converged
    u_C, lo_C, hi_C = start_C, np.full(num_heads, min_u), np.full(num_heads, max_u)
    lo_tried_C, hi_tried_C = np.zeros(num_heads, dtype=np.bool_), np.zeros(num_heads, dtype=np.bool_)
    last_u_C, last_slope_C = np.full(num_heads, np.nan), np.full(num_heads, np.nan)
    for _ in range(MAX_STEPS):
        sum_C, fall_C, tail_C = _sums(away_CN, head, u_C, prior_strength, np.float64)
        falls_C = sum_C > wrong_C  # the likelihood still falls: the root is above u
        lo_C, hi_C = np.where(falls_C, u_C, lo_C), np.where(falls_C, hi_C, u_C)
        lo_tried_C, hi_tried_C = lo_tried_C | falls_C, hi_tried_C | ~falls_C
        with np.errstate(divide="ignore", invalid="ignore"):  # sums that underflow to 0 or overflow: the bracket takes over
            slope_C = _slope(sum_C, fall_C, u_C)
            newton_C = -np.log(sum_C / wrong_C) / slope_C
            new_bend_C = 0.5 * (slope_C - last_slope_C) / ((u_C - last_u_C) * slope_C)
            bend_C = np.where(np.isfinite(new_bend_C), new_bend_C, bend_C)
            step_C = _corrected(newton_C, bend_C)
        middle_C = 0.5 * (lo_C + hi_C)
        next_C = np.where(np.isfinite(step_C), u_C + step_C, np.where(falls_C, np.inf, -np.inf))
        next_C = np.where(next_C >= hi_C, np.where(hi_tried_C, middle_C, max_u), next_C)
        next_C = np.where(next_C <= lo_C, np.where(lo_tried_C, middle_C, min_u), next_C)
        bound_C = lo_C == hi_C
        converged_C = (np.abs(newton_C) < tolerance) & (next_C == u_C + step_C)
        done_C = bound_C | converged_C | (hi_C - lo_C < BRACKET_TOLERANCE)
        scale_C[head] = np.where(bound_C, np.where(falls_C, scale_bounds[1], scale_bounds[0]), np.exp(next_C))
        at_bound_C[head] = bound_C
        found_bend_C[head] = bend_C
        # The rows' own part of the tail's derivatives is -sum and fall; the third is left out, the cube of so short a step.
        step_b_C = scale_C[head] - np.exp(u_C)
        slope_b_C, bend_b_C = prior_strength * np.exp(-u_C) - sum_C, fall_C - prior_strength * np.exp(-2.0 * u_C)
        tail_C = tail_C + step_b_C * (slope_b_C + 0.5 * step_b_C * bend_b_C)
        found_tail_C[head] = np.where(np.abs(step_b_C) < TAIL_TOLERANCE * scale_C[head], tail_C, np.nan)
        if done_C.all():
            break
        last_u_C, last_slope_C, u_C = u_C, slope_C, next_C
        if done_C.any():
            keep = ~done_C
            head, wrong_C, u_C, bend_C = head[keep], wrong_C[keep], u_C[keep], bend_C[keep]
            lo_C, hi_C, lo_tried_C, hi_tried_C = lo_C[keep], hi_C[keep], lo_tried_C[keep], hi_tried_C[keep]
            last_u_C, last_slope_C = last_u_C[keep], last_slope_C[keep]
    return scale_C, at_bound_C, found_bend_C, found_tail_C


def _slope(sum_C: F64, fall_C: F64, u_C: F64) -> F64:
    """Return df/du."""
    return -np.exp(u_C) * fall_C / sum_C


def _corrected(newton_C: F64, bend_C: F64) -> F64:
    """Return Newton's step, less what the bend makes of it where that is little."""
    correction_C = bend_C * newton_C
    return np.where(np.abs(correction_C) < 0.25, newton_C * (1.0 - correction_C), newton_C)


def _sums(
    away_CN: Logits, head: NDArray[np.intp], u_C: F64, prior_strength: float, dtype: type[np.floating[Any]]
) -> tuple[F64, F64, F64]:
    """Return sum a q and its fall -d/db = sum a^2 q (1 - q), with the prior's shares, and the tail of the likelihood (of float64
    alone), for the heads `head`; `away_CN` = -a."""
    sum_C, fall_C = prior_strength * np.exp(-u_C), prior_strength * np.exp(-2.0 * u_C)
    tail_C = np.full(len(head), np.nan)
    scale_C = np.exp(u_C).astype(dtype)
    for part in _parts(len(head), away_CN.shape[1]):
        part_CN = away_CN[part if len(head) == len(away_CN) else head[part]].astype(dtype, copy=False)
        q_CN = part_CN * scale_C[part, None]
        np.exp(q_CN, out=q_CN)
        if dtype is np.float64:
            tail_C[part] = _sum_log1p(q_CN)
        aq_CN = q_CN + dtype(1)
        np.divide(q_CN, aq_CN, out=q_CN)
        np.multiply(part_CN, q_CN, out=aq_CN)
        np.subtract(part_CN, aq_CN, out=q_CN)  # -a (1 - q); q <= 1/2, so nothing cancels
        sum_C[part] -= aq_CN.sum(axis=1)
        # Not BLAS: its dot product may add in another order with another number of threads.
        fall_C[part] += np.einsum("cn,cn->c", aq_CN, q_CN)
    return sum_C, fall_C, tail_C


def _at_one(signed_CN: Logits) -> tuple[F64, F64]:
    """Return A (C,), how far in sum the rows on the wrong side of logit 0 are from it, and the tails of the likelihood at b = 1."""
    wrong_C, tail_C = np.empty(len(signed_CN)), np.empty(len(signed_CN))
    for part in _parts(*signed_CN.shape):
        part_CN = signed_CN[part].astype(np.float64)
        wrong_C[part] = -np.minimum(part_CN, 0.0).sum(axis=1)
        np.abs(part_CN, out=part_CN)
        tail_C[part] = _tail(np.negative(part_CN, out=part_CN))
    return wrong_C, tail_C


def _tails(away_CN: Logits, scale_C: F64) -> F64:
    """Return sum log(1 + exp(-a b)) (C,); with b A it is the likelihood: softplus(-s b) = max(-s b, 0) + log(1 + exp(-a b))."""
    tail_C = np.empty(len(away_CN))
    for part in _parts(*away_CN.shape):
        part_CN = away_CN[part].astype(np.float64)
        tail_C[part] = _tail(np.multiply(part_CN, scale_C[part, None], out=part_CN))
    return tail_C


def _tail(exponent_CN: F64) -> F64:
    """Return sum log(1 + exp(x)) (C,) over exponents of at most 0, which are overwritten."""
    return _sum_log1p(np.exp(exponent_CN, out=exponent_CN))


def _sum_log1p(power_CN: F64) -> F64:
    """Return sum log(1 + x) (C,) of values from 0 to 1, which are kept."""
    half = power_CN.shape[1] // 2
    # (1 + x)(1 + y) - 1 = x + y + x y: one logarithm for several rows, and no digit of a small x or y is lost.
    pair_CN = power_CN[:, :half] + 1.0
    pair_CN *= power_CN[:, half : 2 * half]
    pair_CN += power_CN[:, :half]
    quarter = half // 2
    first_CN, second_CN = pair_CN[:, :quarter], pair_CN[:, quarter : 2 * quarter]
    four_CN = first_CN + 1.0
    four_CN *= second_CN
    four_CN += first_CN
    tail_C: F64 = np.log1p(four_CN, out=four_CN).sum(axis=1)
    tail_C += np.log1p(pair_CN[:, 2 * quarter :]).sum(axis=1) + np.log1p(power_CN[:, 2 * half :]).sum(axis=1)
    return tail_C


def _parts(num_heads: int, num_rows: int) -> Iterator[slice]:
    """Yield slices of heads whose working arrays stay in the cache."""
    step = max(1, PART_VALUES // max(1, num_rows))
    for start in range(0, num_heads, step):
        yield slice(start, start + step)
