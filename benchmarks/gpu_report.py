"""What the GPU's benchmarks share: refusing without a CUDA device, timing by events, random batches. Knows nothing of the peers.

B = batch, D = features, K = heads
"""

import statistics
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.report import Row
from ovr.head.linear import Linear
from ovr.head_step.targets import SparseTargets

PER_ROW = 5  # positives of a row


def main(measure: Callable[[bool], Iterable[Row]], description: str) -> None:
    """Run `measure` as `report.main` does; without a CUDA device end with one line and status 2."""
    if not torch.cuda.is_available():
        print(f"error: {description}: needs a CUDA device; torch {torch.__version__} sees none", file=sys.stderr)
        raise SystemExit(2)
    free, total = torch.cuda.mem_get_info()
    print(f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, CUDA {torch.version.cuda}")
    report.main(measure, description)


def seconds(call: Callable[[], Any], *, repeats: int, warm_up: int = 3) -> float:
    """Return the median time of `call` on the device, by events, after `warm_up` calls."""
    for _ in range(warm_up):
        call()
    spans = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        spans.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in spans) / 1e3


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most memory that tensors held at a time during `call`, with what was held before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def make_heads(num_features: int, num_heads: int, *, dtype: torch.dtype, device: str, std: float = 0.02) -> Linear:
    """Return linear heads made on `device` in `dtype`: those of 50 million do not fit it in float32."""
    with torch.device("meta"):
        heads = Linear(num_features, num_heads=num_heads).to(dtype)
    heads = heads.to_empty(device=device)
    with torch.no_grad():
        heads.weight_KD.normal_(std=std)
        heads.bias_K.fill_(-8.0)  # as rare as the positives are
    return heads


def batch(num_rows: int, num_features: int, num_heads: int, *, seed: int, device: str) -> tuple[Tensor, SparseTargets]:
    """Return random features (B, D) float32 and `PER_ROW` distinct positives a row."""
    generator = torch.Generator(device).manual_seed(seed)
    z_BD = torch.randn(num_rows, num_features, generator=generator, device=device)
    # Distinct within a row: one of each fifth of the heads.
    part = num_heads // PER_ROW
    column = torch.randint(0, part, (num_rows, PER_ROW), generator=generator, device=device)
    column = column + torch.arange(PER_ROW, device=device) * part
    row = torch.arange(num_rows, device=device).repeat_interleave(PER_ROW)
    order = (column.flatten() * num_rows + row).argsort()
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return z_BD, SparseTargets(row[order], column.flatten()[order], none, none)
