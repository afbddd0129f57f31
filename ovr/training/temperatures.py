"""Temperatures of very many linear heads on a device, from features: logits are made, used and dropped a block of heads at a time.

The same optimum as `calibrator.temperature.fit_temperature`, whose numpy code is the reference. `temperature_kernel` does a block
in one kernel; `fit_block` here is its twin in plain torch. Knows nothing of files or of other kinds of heads.

N = rows, D = features, K = heads, C = heads of one block, P = positives, U = unknown labels, L = length of the split rows
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor
from torch.nn.functional import pad

from ovr.calibrator.newton import BRACKET_TOLERANCE, MAX_STEPS, STEP_TOLERANCE, UNKNOWN
from ovr.core.artifact import CalibrationStatus
from ovr.head.linear import Linear

BLOCK_BYTES = 1 << 30  # of the logits of a block
STATUSES: tuple[CalibrationStatus, ...] = ("ok", "at_bound", "separable", "one_class", "no_rows")
FitBlock = Callable[[Tensor, Tensor, Tensor, tuple[float, float], float], tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """One entry a head, on the device. As `TemperatureFit`, with the status as an index into `STATUSES`."""

    scale_K: Tensor  # 1 / T, float64
    status_K: Tensor  # int8
    num_rows_K: Tensor
    num_positives_K: Tensor
    nll_before_K: Tensor  # means over a head's known rows, float64; NaN where it has none
    nll_after_K: Tensor


@torch.no_grad()
def fit_temperatures(
    heads: Linear,
    z_ND: Tensor,
    positive: tuple[Tensor, Tensor],
    unknown: tuple[Tensor, Tensor],
    *,
    min_temperature: float,
    max_temperature: float,
    prior_strength: float,
    kernel: FitBlock | None = None,
    block_heads: int | None = None,
) -> DeviceFit:
    """Return the temperature of least negative log-likelihood of every head.

    Args:
        z_ND: features, float32, on the heads' device.
        positive: rows and columns (P,) of positive labels, int64, sorted by column; all that are not listed are negative.
        unknown: the same (U,) of unknown ones.
        kernel: `temperature_kernel.fit_block`; None is the plain twin.
        block_heads: C; None takes what `BLOCK_BYTES` hold.
    """
    num_heads, num_rows = len(heads.bias_K), len(z_ND)
    device, fit = z_ND.device, fit_block if kernel is None else kernel
    num_rows_K = num_rows - torch.bincount(unknown[1], minlength=num_heads)
    num_positives_K = torch.bincount(positive[1], minlength=num_heads)
    size = block_heads or max(1, BLOCK_BYTES // (4 * num_rows))
    edges = torch.arange(0, num_heads + size, size, device=device).clamp_(max=num_heads)
    bounds_P, bounds_U = (torch.searchsorted(column.contiguous(), edges).tolist() for _, column in (positive, unknown))
    exact_weights = heads.weight_KD.dtype == torch.bfloat16
    z_NL = split_features(z_ND, exact_weights=exact_weights)
    log_bounds = (-log(max_temperature), -log(min_temperature))
    buffer = torch.empty(min(size, num_heads), num_rows, device=device)
    parts = []
    for i, start in enumerate(range(0, num_heads, size)):
        some = slice(start, min(start + size, num_heads))
        away_CN = buffer[: some.stop - some.start]
        w_CL = split_weights(heads.weight_KD[some], heads.bias_K[some])
        if w_CL.is_cuda:
            torch.mm(w_CL, z_NL.T, out_dtype=torch.float32, out=away_CN)
        else:
            torch.mm(w_CL.float(), z_NL.float().T, out=away_CN)
        # How far a logit lies on the wrong side: that of a negative is above 0.
        flat = away_CN.view(-1)
        at = (positive[1][bounds_P[i] : bounds_P[i + 1]] - start) * num_rows + positive[0][bounds_P[i] : bounds_P[i + 1]]
        flat[at] = -flat[at]
        at = (unknown[1][bounds_U[i] : bounds_U[i + 1]] - start) * num_rows + unknown[0][bounds_U[i] : bounds_U[i + 1]]
        flat[at] = -UNKNOWN
        parts.append(fit(away_CN, num_rows_K[some], num_positives_K[some], log_bounds, prior_strength))
    scale_K, status_K, before_K, after_K = (torch.cat(values) for values in zip(*parts, strict=True))
    return DeviceFit(scale_K, status_K, num_rows_K, num_positives_K, before_K, after_K)


def split_features(z_ND: Tensor, *, exact_weights: bool) -> Tensor:
    """Return features (N, L) in bfloat16 that with `split_weights` give logits to 1e-5: high and low halves, and ones for the bias.

    A product of bfloat16 with sums in float32 is many times faster than one of float32, and two or three of them as exact.
    """
    high_ND = z_ND.bfloat16()
    low_ND = (z_ND - high_ND.float()).bfloat16()
    parts = [high_ND, low_ND] if exact_weights else [high_ND, low_ND, high_ND]
    return _padded(torch.cat([*parts, high_ND.new_ones(len(z_ND), 3)], dim=1))


def split_weights(weight_CD: Tensor, bias_C: Tensor) -> Tensor:
    """Return weights and biases (C, L) in bfloat16 for `split_features`; those in bfloat16 are exact as they are."""
    high_CD, bias = weight_CD.bfloat16(), bias_C.float()
    biases = []
    for _ in range(3):
        biases.append(bias.bfloat16())
        bias = bias - biases[-1].float()
    parts = [high_CD, high_CD]
    if weight_CD.dtype != torch.bfloat16:
        parts.append((weight_CD.float() - high_CD.float()).bfloat16())
    return _padded(torch.cat([*parts, torch.stack(biases, dim=1)], dim=1))


def fit_block(
    away_CN: Tensor, num_rows_C: Tensor, num_positives_C: Tensor, log_bounds: tuple[float, float], prior_strength: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scale, status and mean likelihoods before and after of one block; `away_CN` is -s, and -`UNKNOWN` without a label."""
    wrong_C, tail_C = away_CN.clamp(min=0).sum(1, dtype=torch.float64), _tails(away_CN, torch.ones(1, device=away_CN.device))
    some_C = ((away_CN != 0) & (away_CN > -UNKNOWN)).any(1)
    one_class_C = (num_positives_C == 0) | (num_positives_C == num_rows_C)
    separable_C = ~one_class_C & (wrong_C == 0) & some_C
    before_C = (wrong_C + tail_C) / num_rows_C
    fit_C = ~one_class_C & ((wrong_C > 0) | (separable_C & (prior_strength > 0)))
    u_C, bound_C = _minimise(away_CN, wrong_C, fit_C, log_bounds, prior_strength)
    scale_C = torch.where(fit_C, u_C.exp(), 1.0)
    after_C = torch.where(fit_C, (scale_C * wrong_C + _tails(away_CN, scale_C)) / num_rows_C, before_C)
    worse_C = after_C > before_C  # by rounding alone: the optimum is 1
    scale_C, after_C = torch.where(worse_C, 1.0, scale_C), torch.where(worse_C, before_C, after_C)
    status_C = torch.where(
        num_rows_C == 0, 4, torch.where(one_class_C, 3, torch.where(separable_C, 2, torch.where(fit_C & bound_C, 1, 0)))
    )
    return scale_C, status_C.to(torch.int8), before_C, after_C


def _minimise(
    away_CN: Tensor, wrong_C: Tensor, fit_C: Tensor, log_bounds: tuple[float, float], prior_strength: float
) -> tuple[Tensor, Tensor]:
    """Return the logarithm of each head's scale and whether a bound stopped it: `calibrator.newton._minimise`."""
    min_u, max_u = (torch.full_like(wrong_C, bound) for bound in log_bounds)
    u_C, found_C, bend_C = (torch.zeros_like(wrong_C) for _ in range(3))
    lo_C, hi_C, wrong_C = min_u, max_u, wrong_C + prior_strength
    lo_tried_C, hi_tried_C, bound_C, done_C = (torch.zeros_like(fit_C) for _ in range(4))
    last_u_C = last_slope_C = torch.full_like(wrong_C, torch.nan)
    for _ in range(MAX_STEPS):
        a_CN = away_CN.abs()
        q_CN = torch.sigmoid(-a_CN * u_C.exp().to(a_CN.dtype)[:, None])
        aq_CN = a_CN * q_CN
        sum_C = aq_CN.sum(1, dtype=torch.float64) + prior_strength * (-u_C).exp()
        fall_C = (aq_CN * (a_CN - aq_CN)).sum(1, dtype=torch.float64) + prior_strength * (-2 * u_C).exp()
        falls_C = sum_C > wrong_C
        lo_C, hi_C = torch.where(falls_C, u_C, lo_C), torch.where(falls_C, hi_C, u_C)
        lo_tried_C, hi_tried_C = lo_tried_C | falls_C, hi_tried_C | ~falls_C
        slope_C = -u_C.exp() * fall_C / sum_C
        newton_C = -(sum_C / wrong_C).log() / slope_C
        new_bend_C = 0.5 * (slope_C - last_slope_C) / ((u_C - last_u_C) * slope_C)
        bend_C = torch.where(new_bend_C.isfinite(), new_bend_C, bend_C)
        correction_C = bend_C * newton_C
        step_C = torch.where(correction_C.abs() < 0.25, newton_C * (1 - correction_C), newton_C)
        to_C = torch.where(step_C.isfinite(), u_C + step_C, torch.where(falls_C, torch.inf, -torch.inf))
        middle_C = 0.5 * (lo_C + hi_C)
        to_C = torch.where(to_C >= hi_C, torch.where(hi_tried_C, middle_C, max_u), to_C)
        to_C = torch.where(to_C <= lo_C, torch.where(lo_tried_C, middle_C, min_u), to_C)
        at_bound_C = lo_C == hi_C
        converged_C = (newton_C.abs() < STEP_TOLERANCE) & (to_C == u_C + step_C)
        now_C = ~done_C & (at_bound_C | converged_C | (hi_C - lo_C < BRACKET_TOLERANCE))
        found_C = torch.where(now_C, torch.where(at_bound_C, torch.where(falls_C, max_u, min_u), to_C), found_C)
        bound_C, done_C = bound_C | (now_C & at_bound_C), done_C | now_C
        if bool((done_C | ~fit_C).all()):
            break
        last_u_C, last_slope_C, u_C = u_C, slope_C, to_C
    return found_C, bound_C


def _tails(away_CN: Tensor, scale_C: Tensor) -> Tensor:
    return (-away_CN.abs() * scale_C.to(away_CN.dtype)[:, None]).exp().log1p().sum(1, dtype=torch.float64)


def _padded(value: Tensor) -> Tensor:
    """Return rows of a length that the GPU's copy engine takes."""
    return pad(value, (0, -value.shape[1] % 8))
