"""The kernels of the fused step in plain torch, one function each, on any device. What `kernels` is tested against.

B = batch, D = features, C = heads of a chunk, S = blocks of rows, T = blocks of heads
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ovr.head_step.tiles import Optimizer, Settings, Tiles

_WORD = (1 << 32) - 1


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
    """Write `code` at the entries of a chunk and into the flags of their tiles, as `kernels.mark`."""
    some = slice(int(bounds[chunk]), int(bounds[chunk + 1]))
    row, column = row_P[some], column_P[some] - first
    code_CB[column, row] = code
    flag_TS[column // tiles.heads, row // tiles.rows] = code


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
    """Fill the gradient of the logits and its sums, as `kernels.differentiate`; the flags are not needed."""
    logit_CB = weight_CD.float() @ z_BD.float().T + (bias_C.float() + shift_C)[:, None]
    weight_C1 = pos_weight_C[:, None]
    grad = torch.where(code_CB == 1, -weight_C1 * torch.sigmoid(-logit_CB), torch.sigmoid(logit_CB))
    grad = grad.masked_fill(code_CB == 2, 0.0) + logit_CB * 0.0
    grad_CB.copy_(grad)
    _sum_blocks(grad, bias_grad_SC, tiles)
    if loss_SC is not None:
        loss_CB = torch.where(code_CB == 1, weight_C1 * softplus(-logit_CB), softplus(logit_CB)).masked_fill(code_CB == 2, 0.0)
        _sum_blocks(loss_CB, loss_SC, tiles)


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
    """Update weights and biases in place, as `kernels.update`."""
    del tiles
    bias_grad_C = bias_grad_SC.sum(0)
    fine_C = ~bias_grad_C.isnan()
    bad_C.masked_fill_(~fine_C, 1)
    any_bad.masked_fill_(~fine_C.all(), 1)
    for stream, (value, grad) in enumerate(((weight_CD, grad_CB.float() @ z_BD.float()), (bias_C, bias_grad_C))):
        moments = [state[name][stream] for name in settings.state if name in state]
        new, new_moments = _updated(value.float(), grad * scalar[0], moments, settings, scalar)
        if value.dtype == torch.bfloat16:
            new = _rounded(new.view(len(new), -1), counter, first, stream).view_as(new)
        fine = fine_C.view(-1, *[1] * (value.ndim - 1))
        for old, changed in zip((value, *moments), (new, *new_moments), strict=True):
            old.copy_(torch.where(fine, changed, old))


def noise(counter: Tensor, first: int, num_heads: int, num_columns: int, stream: int) -> Tensor:
    """Return the 16 random bits (C, D) of stochastic rounding as int64: a function of seed, step, head, column and stream alone."""
    head_C = first + torch.arange(num_heads, device=counter.device)
    seed, step = int(counter[0]), int(counter[1])
    low_C, high_C = _philox(seed, (head_C, torch.full_like(head_C, step & _WORD), head_C * 0, head_C * 0 + stream))
    mixed = (torch.arange(num_columns, device=counter.device) * 0x9E3779B9 + low_C[:, None]) & _WORD
    mixed = ((mixed ^ (mixed >> 16)) * 0x85EBCA6B) & _WORD
    mixed = ((mixed ^ (mixed >> 13) ^ high_C[:, None]) * 0xC2B2AE35) & _WORD
    return mixed >> 16


def _sum_blocks(value_CB: Tensor, sum_SC: Tensor, tiles: Tiles) -> None:
    for s in range(len(sum_SC)):
        sum_SC[s] = value_CB[:, s * tiles.rows : (s + 1) * tiles.rows].sum(1)


def _updated(w: Tensor, g: Tensor, moments: list[Tensor], settings: Settings, scalar: Tensor) -> tuple[Tensor, list[Tensor]]:
    _, lr, decay, beta1, beta2, eps, first_share, root_share = scalar.unbind()
    if settings.optimizer is Optimizer.ADAMW:
        moment, square = moments
        moment = moment + (1.0 - beta1) * (g - moment)
        square = beta2 * square + (1.0 - beta2) * g * g
        return w * (1.0 - lr * decay) - lr / first_share * moment / (square.sqrt() / root_share + eps), [moment, square]
    g = g + decay * w
    if not moments:
        return w - lr * g, []
    moment = beta1 * moments[0] + g
    return w - lr * (g + beta1 * moment if settings.nesterov else moment), [moment]


def _rounded(value_CD: Tensor, counter: Tensor, first: int, stream: int) -> Tensor:
    carry = noise(counter, first, value_CD.shape[0], value_CD.shape[1], stream).to(torch.int32)
    return ((value_CD.contiguous().view(torch.int32) + carry) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def _philox(seed: int, words: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the first two words of Philox-4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3")."""
    c0, c1, c2, c3 = words
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        c0, c1, c2, c3 = (
            _high(0xCD9E8D57, c2) ^ c1 ^ k0,
            (c2 * 0xCD9E8D57) & _WORD,
            _high(0xD2511F53, c0) ^ c3 ^ k1,
            (c0 * 0xD2511F53) & _WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1


def _high(a: int, b: Tensor) -> Tensor:
    """Return the upper 32 bits of a product of two numbers of 32, without leaving 63."""
    return ((a >> 16) * b + (((a & 0xFFFF) * b) >> 16)) >> 16
