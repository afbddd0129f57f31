"""The training step of very many heads as others make it, written from their papers. Runs on any device, without bias.

Each is a class with `step(z_BD, targets) -> grad_z_BD`, which updates its weights, and `weight_KD`. Where a peer's paper fuses
something that torch does not, it gets our own kernel for it: no peer is slow here for want of a kernel.

B = batch, D = features, K = heads, C = heads of a chunk
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from ovr.head_step import twins
from ovr.head_step.fused import Kernels
from ovr.head_step.rounding import round_stochastically
from ovr.head_step.targets import SparseTargets
from ovr.head_step.tiles import Tiles


class Dense:
    """What one writes first: nn.Linear under autocast to bfloat16, BCEWithLogits on dense targets, AdamW."""

    def __init__(self, weight_KD: Tensor, *, lr: float, compiled: bool = False, autocast: bool = True) -> None:
        self.weight_KD = nn.Parameter(weight_KD.float().clone())
        device = weight_KD.device.type
        self.optimizer = torch.optim.AdamW([self.weight_KD], lr=lr, weight_decay=0.0, fused=True)
        self.target_BK = torch.empty(0, device=weight_KD.device)

        def loss(z_BD: Tensor, weight_KD: Tensor, target_BK: Tensor) -> Tensor:
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                logit_BK = linear(z_BD, weight_KD)
            return binary_cross_entropy_with_logits(logit_BK.float(), target_BK, reduction="sum") / len(z_BD)

        self.loss: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.compile(loss, dynamic=False) if compiled else loss

    def step(self, z_BD: Tensor, targets: SparseTargets) -> Tensor:
        if self.target_BK.shape[0] != len(z_BD):
            self.target_BK = z_BD.new_zeros(len(z_BD), len(self.weight_KD))
        self.target_BK[targets.row_P, targets.column_P] = 1.0
        z_BD = z_BD.detach().requires_grad_()
        self.loss(z_BD, self.weight_KD, self.target_BK).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.target_BK[targets.row_P, targets.column_P] = 0.0
        assert z_BD.grad is not None
        return z_BD.grad


class Renee:
    """Jain et al. 2023, "Renee: End-to-end training of extreme classification models" (MLSys), section 4.

    No loss value; logits in float16 with the sigmoid in the product's epilogue; -1 at the positives, sparse; momentum SGD on
    float32 weights, whose float16 copy makes the products.
    """

    def __init__(self, weight_KD: Tensor, *, lr: float, momentum: float, kernels: Kernels = twins) -> None:
        self.weight_KD = nn.Parameter(weight_KD.float().clone(), requires_grad=False)
        self.low_KD = self.weight_KD.detach().half()
        self.optimizer = torch.optim.SGD([self.weight_KD], lr=lr, momentum=momentum, fused=True)
        self.kernels, self.tiles = kernels, Tiles()
        self.buffers: tuple[Tensor, ...] = ()

    def step(self, z_BD: Tensor, targets: SparseTargets) -> Tensor:
        num_rows, num_heads = len(z_BD), len(self.weight_KD)
        if not self.buffers or self.buffers[0].shape[1] != num_rows:
            blocks_S = -(-num_rows // self.tiles.rows)
            device = z_BD.device
            self.buffers = (
                torch.empty(num_heads, -(-num_rows // 8) * 8, dtype=torch.float16, device=device)[:, :num_rows],
                torch.zeros(1, num_rows, dtype=torch.int8, device=device).expand(num_heads, -1),
                torch.zeros(1, blocks_S, dtype=torch.int32, device=device).expand(-(-num_heads // self.tiles.heads), blocks_S),
                torch.empty(blocks_S, num_heads, device=device),
                torch.zeros(num_heads, device=device),
            )
        grad_KB, code_KB, flag_TS, sum_SK, zero_K = self.buffers
        low_BD = z_BD.half()
        self.kernels.differentiate(self.low_KD, low_BD, zero_K, zero_K, zero_K, code_KB, flag_TS, grad_KB, sum_SK, None, self.tiles)
        grad_KB[targets.column_P, targets.row_P] -= 1.0
        grad_z_BD = _mm(grad_KB.T, self.low_KD) / num_rows
        self.weight_KD.grad = _mm(grad_KB, low_BD).div_(num_rows)
        self.optimizer.step()
        self.weight_KD.grad = None
        self.low_KD.copy_(self.weight_KD)
        return grad_z_BD


class Elmo:
    """Zhang et al. 2025, "ELMO: Efficiency via Low-precision and Peak Memory Optimization in Large Output Spaces" (ICML), bfloat16.

    Weights in bfloat16 without a master copy; chunks of heads; no loss value; the chunk's gradient applied at once by SGD without
    momentum, rounded stochastically, in one kernel over the chunk.
    """

    def __init__(self, weight_KD: Tensor, *, lr: float, num_chunks: int) -> None:
        self.weight_KD, self.lr, self.num_chunks = weight_KD.bfloat16().clone(), lr, num_chunks
        self.update = _rounded_update(self.weight_KD.device)

    def step(self, z_BD: Tensor, targets: SparseTargets) -> Tensor:
        num_rows, size = len(z_BD), -(-len(self.weight_KD) // self.num_chunks)
        low_BD = z_BD.bfloat16()
        grad_z_BD = torch.zeros_like(z_BD)
        for weight_CD, part in zip(self.weight_KD.split(size), targets.chunks(size, len(self.weight_KD)), strict=True):
            logit_BC = low_BD @ weight_CD.T
            torch.sigmoid(logit_BC, out=logit_BC)
            logit_BC[part.row_P, part.column_P] -= 1.0
            grad_z_BD += logit_BC @ weight_CD
            self.update(weight_CD, logit_BC.T @ low_BD, self.lr / num_rows)
        return grad_z_BD / num_rows


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """Return the product in float32 of low-precision matrices."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _rounded_update(device: torch.device) -> Callable[[Tensor, Tensor, float], None]:
    """Return w -= lr g for bfloat16, rounded stochastically, as one kernel where there are kernels."""
    if device.type != "cuda":
        return _update_in_torch
    from benchmarks import gpu_rounding  # needs Triton-lang

    count = iter(range(1 << 31))
    return lambda weight, grad, lr: gpu_rounding.update(weight, grad, lr, next(count))


def _update_in_torch(weight: Tensor, grad: Tensor, lr: float) -> None:
    weight.copy_(round_stochastically(weight.float() - lr * grad.float()))
