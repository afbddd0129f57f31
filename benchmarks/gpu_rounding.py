"""One kernel that a peer needs: SGD on bfloat16 weights with stochastic rounding, over a gradient that lies in memory."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def update(weight: Tensor, grad: Tensor, lr: float, seed: int) -> None:
    """Set bfloat16 `weight` to weight - lr grad, rounded stochastically. Both are contiguous, of less than 2^31 entries."""
    _update[(triton.cdiv(weight.numel(), BLOCK),)](weight, grad, lr, seed, weight.numel(), SIZE=BLOCK)


@triton.jit(do_not_specialize=["seed"])
def _update(weight_ptr, grad_ptr, lr, seed, size, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there = at < size
    value = tl.load(weight_ptr + at, there, 0.0).to(tl.float32) - lr * tl.load(grad_ptr + at, there, 0.0).to(tl.float32)
    noise = (tl.randint(seed, at).to(tl.uint32, bitcast=True) >> 16).to(tl.int32, bitcast=True)
    bits = (value.to(tl.int32, bitcast=True) + noise) & -65536
    tl.store(weight_ptr + at, bits.to(tl.float32, bitcast=True).to(tl.bfloat16), there)
