"""`temperatures.fit_block` as one GPU kernel, in Triton-lang: a head a program, whose logits stay in the caches from step to step.

N = rows, C = heads of one block
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # logits at a time: 8 a thread, and three heads a multiprocessor
_START_ROWS = 1024  # a first root from a part of the rows, as the calibrator's own


def fit_block(
    away_CN: Tensor, num_rows_C: Tensor, num_positives_C: Tensor, log_bounds: tuple[float, float], prior_strength: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `temperatures.fit_block` returns; `away_CN` is float32 with rows next to each other."""
    num_heads, num_rows = away_CN.shape
    device = away_CN.device
    scale_C, before_C, after_C = (torch.empty(num_heads, dtype=torch.float64, device=device) for _ in range(3))
    status_C = torch.empty(num_heads, dtype=torch.int8, device=device)
    settings = torch.tensor([*log_bounds, prior_strength], dtype=torch.float64, device=device)
    block = min(_BLOCK, max(128, triton.next_power_of_2(num_rows)))
    stride = num_rows // _START_ROWS
    _fit[(num_heads,)](
        away_CN, away_CN.stride(0), num_rows, num_rows_C, num_positives_C, settings, scale_C, status_C, before_C, after_C,
        START=stride if stride >= 4 else 1, BLOCK=block, num_warps=8 if block == _BLOCK else 4,
    )  # fmt: skip
    return scale_C, status_C, before_C, after_C


@triton.jit
def _fit(
    away_ptr, stride, N, num_rows_ptr, num_positives_ptr, setting_ptr, scale_ptr, status_ptr, before_ptr, after_ptr,
    START: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0)
    row_ptr = away_ptr + c.to(tl.int64) * stride
    num_rows, num_positives = tl.load(num_rows_ptr + c), tl.load(num_positives_ptr + c)
    min_u, max_u, prior = tl.load(setting_ptr), tl.load(setting_ptr + 1), tl.load(setting_ptr + 2)
    zero = prior * 0.0
    wrong, tail, some = _at(row_ptr, N, zero + 1.0, BLOCK)
    one_class = (num_positives == 0) | (num_positives == num_rows)
    separable = (wrong == 0.0) & (some > 0.0) & (one_class == 0)
    before = (wrong + tail) / num_rows.to(tl.float64)
    scale, after, at_bound = zero + 1.0, before, (wrong < 0.0)
    if (one_class == 0) & ((wrong > 0.0) | (separable & (prior > 0.0))):
        u, bend = zero, zero
        if START > 1:
            some_wrong = _wrong(row_ptr, N, START, BLOCK)
            if some_wrong > 0.0:
                found, found_bend, bound = _minimise(row_ptr, N, some_wrong, zero, zero, min_u, max_u, zero, 3e-2, START, BLOCK)
                if bound == 0:
                    u, bend = found, found_bend
        found, _, bound = _minimise(row_ptr, N, wrong, u, bend, min_u, max_u, prior, 3e-4, 1, BLOCK)
        scale, at_bound = tl.exp(found), bound != 0
        _, new_tail, _ = _at(row_ptr, N, scale, BLOCK)
        after = (scale * wrong + new_tail) / num_rows.to(tl.float64)
        if after > before:  # by rounding alone: the optimum is 1
            scale, after = zero + 1.0, before
    status = tl.where(num_rows == 0, 4, tl.where(one_class, 3, tl.where(separable, 2, tl.where(at_bound, 1, 0))))
    tl.store(scale_ptr + c, scale)
    tl.store(status_ptr + c, status.to(tl.int8))
    tl.store(before_ptr + c, before)
    tl.store(after_ptr + c, after)


@triton.jit
def _minimise(
    row_ptr, N, wrong, start, bend, min_u, max_u, prior, tolerance, STRIDE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Bracketed Newton in the logarithm of the scale: `calibrator.newton._minimise`, for one head."""
    zero = start * 0.0
    wrong += prior
    u, lo, hi, last_u, last_slope = start, min_u, max_u, zero, zero
    lo_tried, hi_tried, steps, done = 0, 0, 0, 0
    found, bound = start, 0
    while (done == 0) & (steps < 100):
        total, fall = _sums(row_ptr, N, tl.exp(u), STRIDE, BLOCK)
        total, fall = total + prior * tl.exp(-u), fall + prior * tl.exp(-2.0 * u)
        falls = total > wrong  # the likelihood still falls: the root is above
        lo, hi = tl.where(falls, u, lo), tl.where(falls, hi, u)
        lo_tried, hi_tried = tl.where(falls, 1, lo_tried), tl.where(falls, hi_tried, 1)
        slope = -tl.exp(u) * fall / total
        newton = -tl.log(total / wrong) / slope
        if steps > 0:
            new_bend = 0.5 * (slope - last_slope) / ((u - last_u) * slope)
            bend = tl.where(new_bend - new_bend == 0.0, new_bend, bend)
        correction = bend * newton
        step = tl.where(tl.abs(correction) < 0.25, newton * (1.0 - correction), newton)
        finite = step - step == 0.0
        to = tl.where(finite, u + step, tl.where(falls, zero + 1e30, zero - 1e30))
        middle = 0.5 * (lo + hi)
        to = tl.where(to >= hi, tl.where(hi_tried != 0, middle, max_u), to)
        to = tl.where(to <= lo, tl.where(lo_tried != 0, middle, min_u), to)
        converged = finite & (tl.abs(newton) < tolerance) & (to == u + step)
        bound = tl.where(lo == hi, 1, 0)
        found = tl.where(lo == hi, tl.where(falls, max_u, min_u), to)
        done = tl.where((lo == hi) | converged | (hi - lo < 1e-13), 1, 0)
        last_u, last_slope, u = u, slope, to
        steps += 1
    return found, bend, bound


@triton.jit
def _sums(row_ptr, N, scale, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Return sum a q and -d/db of it over every STRIDE-th row, in float64 from sums of float32."""
    total, fall = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    scale = scale.to(tl.float32)
    for base in range(0, N, BLOCK * STRIDE):
        n = base + tl.arange(0, BLOCK) * STRIDE
        a = tl.abs(tl.load(row_ptr + n, n < N, -1e38))
        power = tl.exp(-a * scale)
        aq = a * (power / (1.0 + power))
        total += aq
        fall += aq * (a - aq)
    return tl.sum(total.to(tl.float64)), tl.sum(fall.to(tl.float64))


@triton.jit
def _wrong(row_ptr, N, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    wrong = tl.zeros((BLOCK,), tl.float32)
    for base in range(0, N, BLOCK * STRIDE):
        n = base + tl.arange(0, BLOCK) * STRIDE
        wrong += tl.maximum(tl.load(row_ptr + n, n < N, -1e38), 0.0)
    return tl.sum(wrong.to(tl.float64))


@triton.jit
def _at(row_ptr, N, scale, BLOCK: tl.constexpr):
    """Return how far rows lie on the wrong side of 0 in sum, the tails of the likelihood at `scale`, and how many are not at 0."""
    wrong, tail, some = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    scale = scale.to(tl.float32)
    for base in range(0, N, BLOCK):
        n = base + tl.arange(0, BLOCK)
        away = tl.load(row_ptr + n, n < N, -1e38)
        power = tl.exp(-tl.abs(away) * scale)
        wrong += tl.maximum(away, 0.0)
        tail += tl.where(power < 1e-4, power, tl.log(1.0 + power))
        some += tl.where((away != 0.0) & (away > -1e37), 1.0, 0.0)
    return tl.sum(wrong.to(tl.float64)), tl.sum(tail.to(tl.float64)), tl.sum(some.to(tl.float64))
