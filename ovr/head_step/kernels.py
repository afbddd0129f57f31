"""The GPU kernels of the fused step, in Triton-lang; `twins` does the same in plain torch. Imported only where they are used.

Two of the step's three products have something to do at their end that costs less there than in a pass of its own:
`differentiate` turns logits into gradients before they leave the registers, so that no logit is ever stored; `update` applies the
optimizer to a tile of weights, so that their gradient is never stored. The product in between, of the features' gradient, has
nothing to add and stays with cuBLAS. The gradient has heads first, (C, B): what is summed for a head then lies along a row.

B = batch, D = features, C = heads of a chunk, S = blocks of rows of `differentiate`
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ovr.head_step.tiles import Optimizer, Settings, Tiles

_ADAMW = tl.constexpr(Optimizer.ADAMW.value)


def mark(
    row_P: Tensor,
    column_P: Tensor,
    bounds: Tensor,
    chunk: int,
    first: int,
    code: int,
    code_CB: Tensor,
    flag_TS: Tensor,
    tiles: Tiles,
) -> None:
    """Write `code` at the entries bounds[chunk] .. bounds[chunk + 1], and into the flag of each tile that holds one.

    Args:
        row_P: of the batch; column_P: of the heads, ascending; `first` is the chunk's first. Both int64.
        bounds: int64 on the device, so that no list has to be read by the host.
        code_CB: int8: 0 a negative, 1 a positive, 2 unknown.
        flag_TS: int32, of the tiles of `differentiate`: 0 says that all its codes are 0.
    """
    _mark[(_MARK_PROGRAMS,)](
        row_P, column_P, bounds, chunk, first, code, code_CB, code_CB.stride(0), flag_TS, flag_TS.stride(0),
        TILE_C=tiles.heads, TILE_B=tiles.rows, BLOCK=256,
    )  # fmt: skip


def differentiate(
    weight_CD: Tensor,
    z_BD: Tensor,
    bias_C: Tensor,
    shift_C: Tensor,
    pos_weight_C: Tensor,
    code_CB: Tensor,
    flag_TS: Tensor,
    grad_CB: Tensor,
    bias_grad_SC: Tensor,
    loss_SC: Tensor | None,
    tiles: Tiles,
) -> None:
    """Fill `grad_CB` with dL/dlogit of cross-entropy, not divided by the rows, and its sums over each block of rows.

    Args:
        weight_CD: bfloat16, as z_BD; sums are of float32. D is a multiple of 8.
        shift_C: float32, added to the logit, with the bias; pos_weight_C: float32, of positives.
        code_CB, flag_TS: as `mark` leaves them.
        grad_CB: bfloat16, whose rows are a multiple of 8 entries apart.
        bias_grad_SC: float32; NaN where a logit is not finite.
        loss_SC: float32, the sums of the loss; None leaves it out.
    """
    (heads, features), rows = weight_CD.shape, len(z_BD)
    grid = (triton.cdiv(heads, tiles.heads) * triton.cdiv(rows, tiles.rows),)
    _differentiate[grid](
        _tiled(weight_CD, tiles.heads, tiles.depth), _tiled(z_BD, tiles.rows, tiles.depth),
        _tiled(grad_CB, tiles.heads, tiles.rows // 4),
        bias_C, shift_C, pos_weight_C, code_CB, code_CB.stride(0), flag_TS, flag_TS.stride(0),
        bias_grad_SC, loss_SC, bias_grad_SC.stride(0), heads, rows, features,
        BLOCK_C=tiles.heads, BLOCK_B=tiles.rows, BLOCK_D=tiles.depth, WITH_LOSS=loss_SC is not None,
        INTERPRETED=triton.knobs.runtime.interpret, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def update(
    weight_CD: Tensor,
    bias_C: Tensor,
    grad_CB: Tensor,
    z_BD: Tensor,
    bias_grad_SC: Tensor,
    state: dict[str, tuple[Tensor, Tensor]],
    settings: Settings,
    scalar: Tensor,
    counter: Tensor,
    first: int,
    bad_C: Tensor,
    any_bad: Tensor,
    tiles: Tiles,
) -> None:
    """Update weights and biases in place by dL/dW = grad_CB z_BD; heads of which a logit was not finite are left alone.

    Args:
        weight_CD, bias_C: float32, or bfloat16, which is rounded stochastically.
        state: float32 tensors of the weights and of the biases by the optimizer's names for them.
        scalar: float32, see `tiles.scalars`; counter: int64, seed and step. Both on the device: a captured graph reads new ones.
        first: which head of all the chunk's first is; the rounding of a head does not depend on the chunks.
        bad_C: int8, set to 1 for heads that are left alone; any_bad: int8 of one entry, set to 1 if there is one.
    """
    (heads, features), rows = weight_CD.shape, len(z_BD)
    moments = [state.get(name, (None, None)) for name in settings.state]
    (moment, bias_moment), (square, bias_square) = (*moments, (None, None), (None, None))[:2]
    grid = (triton.cdiv(heads, tiles.heads) * triton.cdiv(features, tiles.rows),)
    _update[grid](
        weight_CD, bias_C, _tiled(grad_CB, tiles.heads, tiles.depth), _tiled(z_BD, tiles.depth, tiles.rows),
        bias_grad_SC, bias_grad_SC.stride(0), len(bias_grad_SC), moment, bias_moment, square, bias_square,
        scalar, counter, first, bad_C, any_bad, heads, rows, features,
        OPTIMIZER=settings.optimizer.value, NESTEROV=settings.nesterov, MOMENTUM=moment is not None,
        BLOCK_C=tiles.heads, BLOCK_D=tiles.rows, BLOCK_B=tiles.depth,
        INTERPRETED=triton.knobs.runtime.interpret, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


_MARK_PROGRAMS = 64


def _tiled(value: Tensor, rows: int, columns: int) -> Any:
    return TensorDescriptor(value, list(value.shape), list(value.stride()), [rows, columns])


@triton.jit(do_not_specialize=["chunk", "first", "code"])
def _mark(
    row_ptr, column_ptr, bounds_ptr, chunk, first, code, code_ptr, code_stride, flag_ptr, flag_stride,
    TILE_C: tl.constexpr, TILE_B: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start, stop = tl.load(bounds_ptr + chunk), tl.load(bounds_ptr + chunk + 1)
    for base in range(start + tl.program_id(0) * BLOCK, stop, tl.num_programs(0) * BLOCK):
        p = base + tl.arange(0, BLOCK)
        there = p < stop
        b = tl.load(row_ptr + p, there, 0)
        c = tl.load(column_ptr + p, there, 0) - first
        tl.store(code_ptr + c * code_stride + b, (c * 0 + code).to(tl.int8), there)
        tl.store(flag_ptr + c // TILE_C * flag_stride + b // TILE_B, (c * 0 + code).to(tl.int32), there)


@triton.jit
def _differentiate(
    weight, z, grad, bias_ptr, shift_ptr, pos_weight_ptr, code_ptr, code_stride, flag_ptr, flag_stride,
    bias_grad_ptr, loss_ptr, sums_stride, C, B, D,
    BLOCK_C: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, WITH_LOSS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    # Rows of the batch first: all of z stays in the second-level cache, and each weight is read from memory once.
    blocks_b = tl.cdiv(B, BLOCK_B)
    block_c, block_b = tl.program_id(0) // blocks_b, tl.program_id(0) % blocks_b
    logit = tl.zeros((BLOCK_C, BLOCK_B), tl.float32)
    for d in range(0, D, BLOCK_D):
        w = weight.load([block_c * BLOCK_C, d])
        x = z.load([block_b * BLOCK_B, d])
        logit = _product(w, x.T, logit, INTERPRETED)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < C
    logit += (tl.load(bias_ptr + c, in_c, 0.0).to(tl.float32) + tl.load(shift_ptr + c, in_c, 0.0))[:, None]
    weight_C = tl.load(pos_weight_ptr + c, in_c, 0.0)[:, None]
    # Most tiles of many heads hold negatives alone.
    listed = tl.load(flag_ptr + block_c * flag_stride + block_b) != 0
    code_at = code_ptr + c[:, None].to(tl.int64) * code_stride
    # A quarter at a time: what lies between logit and gradient of a whole tile does not fit the registers.
    QUARTER: tl.constexpr = BLOCK_B // 4
    left, right = _halves(logit, BLOCK_C, BLOCK_B)
    quarter_0, quarter_1 = _halves(left, BLOCK_C, BLOCK_B // 2)
    quarter_2, quarter_3 = _halves(right, BLOCK_C, BLOCK_B // 2)
    start = block_b * BLOCK_B
    g, loss = _gradient(quarter_0, grad, weight_C, listed, code_at, in_c, block_c * BLOCK_C, start, B, QUARTER, WITH_LOSS)
    g_1, loss_1 = _gradient(
        quarter_1, grad, weight_C, listed, code_at, in_c, block_c * BLOCK_C, start + QUARTER, B, QUARTER, WITH_LOSS
    )
    g_2, loss_2 = _gradient(
        quarter_2, grad, weight_C, listed, code_at, in_c, block_c * BLOCK_C, start + 2 * QUARTER, B, QUARTER, WITH_LOSS
    )
    g_3, loss_3 = _gradient(
        quarter_3, grad, weight_C, listed, code_at, in_c, block_c * BLOCK_C, start + 3 * QUARTER, B, QUARTER, WITH_LOSS
    )
    tl.store(bias_grad_ptr + block_b * sums_stride + c, (g + g_1) + (g_2 + g_3), in_c)
    if WITH_LOSS:
        tl.store(loss_ptr + block_b * sums_stride + c, (loss + loss_1) + (loss_2 + loss_3), in_c)


@triton.jit
def _gradient(
    logit, grad, weight_C, listed, code_at, in_c, start_c, start_b, B, SIZE: tl.constexpr, WITH_LOSS: tl.constexpr
):  # fmt: skip
    """Store the gradient of some columns of a tile and return its sums and the loss's."""
    b = start_b + tl.arange(0, SIZE)
    in_b = (b < B)[None, :]
    scale = tl.full(logit.shape, 1.0, tl.float32)
    if listed:
        code = tl.load(code_at + b[None, :], in_c[:, None] & in_b, 0)
        # A positive is a negative at the logit with its sign changed.
        scale = tl.where(code == 1, -weight_C, tl.where(code == 2, 0.0, 1.0))
        logit = tl.where(code == 1, -logit, logit)
    away = tl.exp(-tl.abs(logit))  # at most 1: nothing overflows, and the sigmoid keeps its digits where it is small
    g = tl.where(logit >= 0, 1.0, away) / (1.0 + away)
    # A logit that is not finite makes NaN, whatever the sigmoid says of it.
    g = tl.where(in_b, g * scale + logit * 0.0, 0.0)
    grad.store([start_c, start_b], g.to(grad.dtype))
    sums = tl.sum(g, axis=1)
    loss = sums
    if WITH_LOSS:
        # log(1 + away) loses what is below 6e-8 of 1: there it is `away` itself.
        tail = tl.where(away < 1e-4, away, tl.log(1.0 + away))
        loss = tl.sum(tl.where(in_b, (tl.maximum(logit, 0.0) + tail) * tl.abs(scale), 0.0), axis=1)
    return sums, loss


@triton.jit
def _halves(value, M: tl.constexpr, N: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(value, (M, 2, N // 2)), (0, 2, 1)))


@triton.jit(do_not_specialize=["first"])
def _update(
    weight_ptr, bias_ptr, grad, z, bias_grad_ptr, sums_stride, num_sums, moment_ptr, bias_moment_ptr, square_ptr, bias_square_ptr,
    scalar_ptr, counter_ptr, first, bad_ptr, any_bad_ptr, C, B, D,
    OPTIMIZER: tl.constexpr, NESTEROV: tl.constexpr, MOMENTUM: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    blocks_d = tl.cdiv(D, BLOCK_D)
    block_c, block_d = tl.program_id(0) // blocks_d, tl.program_id(0) % blocks_d
    g = tl.zeros((BLOCK_C, BLOCK_D), tl.float32)
    for b in range(0, B, BLOCK_B):
        pull = grad.load([block_c * BLOCK_C, b])
        x = z.load([b, block_d * BLOCK_D])
        g = _product(pull, x, g, INTERPRETED)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < C
    bias_g = tl.zeros((BLOCK_C,), tl.float32)
    for s in range(num_sums):
        bias_g += tl.load(bias_grad_ptr + s * sums_stride + c, in_c, 0.0)
    bad = in_c & (bias_g != bias_g)  # a head with NaN keeps its weights
    in_c = in_c & (bias_g == bias_g)
    one = tl.full((BLOCK_C,), 1, tl.int8)
    tl.store(bad_ptr + c, one, bad)
    tl.store(any_bad_ptr + c * 0, one, bad)
    share = tl.load(scalar_ptr)
    low, high = _keys(counter_ptr, first + c, 0)
    at = c[:, None].to(tl.int64) * D
    left, right = _halves(g, BLOCK_C, BLOCK_D)
    quarter_0, quarter_1 = _halves(left, BLOCK_C, BLOCK_D // 2)
    quarter_2, quarter_3 = _halves(right, BLOCK_C, BLOCK_D // 2)
    for quarter in tl.static_range(4):
        d = block_d * BLOCK_D + quarter * (BLOCK_D // 4) + tl.arange(0, BLOCK_D // 4)
        some = quarter_0 if quarter == 0 else quarter_1 if quarter == 1 else quarter_2 if quarter == 2 else quarter_3
        _apply(
            weight_ptr, moment_ptr, square_ptr, at + d[None, :], in_c[:, None] & (d < D)[None, :], some * share,
            scalar_ptr, low[:, None], high[:, None], d[None, :], OPTIMIZER, NESTEROV, MOMENTUM,
        )  # fmt: skip
    if block_d == 0:
        low, high = _keys(counter_ptr, first + c, 1)
        _apply(
            bias_ptr, bias_moment_ptr, bias_square_ptr, c, in_c, bias_g * share, scalar_ptr, low, high, c * 0,
            OPTIMIZER, NESTEROV, MOMENTUM,
        )  # fmt: skip


@triton.jit
def _product(a, b, total, INTERPRETED: tl.constexpr):
    if INTERPRETED:  # NumPy knows no bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(a, b, total)


@triton.jit
def _apply(
    weight_ptr, moment_ptr, square_ptr, at, there, g, scalar_ptr, low, high, column,
    OPTIMIZER: tl.constexpr, NESTEROV: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    lr, decay = tl.load(scalar_ptr + 1), tl.load(scalar_ptr + 2)
    w = tl.load(weight_ptr + at, there, 0.0).to(tl.float32)
    if OPTIMIZER == _ADAMW:
        beta1, beta2, eps = tl.load(scalar_ptr + 3), tl.load(scalar_ptr + 4), tl.load(scalar_ptr + 5)
        first_share, root_share = tl.load(scalar_ptr + 6), tl.load(scalar_ptr + 7)
        moment = tl.load(moment_ptr + at, there, 0.0)
        moment += (1.0 - beta1) * (g - moment)
        tl.store(moment_ptr + at, moment, there)
        square = tl.load(square_ptr + at, there, 0.0)
        square = beta2 * square + (1.0 - beta2) * g * g
        tl.store(square_ptr + at, square, there)
        w = w * (1.0 - lr * decay) - lr / first_share * moment / (tl.sqrt(square) / root_share + eps)
    else:
        g += decay * w
        if MOMENTUM:
            momentum = tl.load(scalar_ptr + 3)
            moment = momentum * tl.load(moment_ptr + at, there, 0.0) + g
            tl.store(moment_ptr + at, moment, there)
            g = g + momentum * moment if NESTEROV else moment
        w -= lr * g
    if weight_ptr.dtype.element_ty == tl.bfloat16:
        tl.store(weight_ptr + at, _rounded(w, low, high, column), there)
    else:
        tl.store(weight_ptr + at, w, there)


@triton.jit
def _keys(counter_ptr, head, stream: tl.constexpr):
    """Philox of a head and a step: 64 random bits a head, from which each of its entries takes its own by `_rounded`."""
    step = tl.load(counter_ptr + 1)
    low, high, _, _ = tl.philox(tl.load(counter_ptr), head, (head * 0 + step).to(tl.int32), head * 0, head * 0 + stream)
    return low, high


@triton.jit
def _rounded(value, low, high, column):
    """Stochastic rounding: of the 32 bits bfloat16 keeps the upper 16; 16 random ones carry into them by their share."""
    mixed = (column.to(tl.uint32) * 0x9E3779B9) + low
    mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B  # the finalizer of MurmurHash3, with the second half of the key within
    mixed = (mixed ^ (mixed >> 13) ^ high) * 0xC2B2AE35
    noise = (mixed >> 16).to(tl.int32, bitcast=True)
    bits = value.to(tl.int32, bitcast=True) + noise
    return (bits & -65536).to(tl.float32, bitcast=True).to(tl.bfloat16)


def available() -> bool:
    """Return whether kernels can run here: a CUDA device, or the interpreter."""
    return torch.cuda.is_available() or triton.knobs.runtime.interpret
