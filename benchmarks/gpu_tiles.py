"""Which tiles suit the two kernels of the fused step on this GPU: each choice against the bare product by cuBLAS.

Run it on a new kind of GPU and set the defaults of `ovr.head_step.tiles.Tiles` by it.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from benchmarks.report import Row  # first: it pins the number of threads

from benchmarks import gpu_report as gpu  # isort: skip
from ovr.head_step.tiles import Optimizer, Settings, Tiles

NUM_FEATURES = 768
SHAPES = [(1024, 65_536), (8192, 8192)]  # rows, heads of a chunk
SHARED_BYTES = 227 << 10  # of a multiprocessor of Hopper: more than the tiles in flight take need not be compiled to be refused
CHOICES = [
    Tiles(heads, rows, depth, warps, stages)
    for (heads, rows, warps), depth, stages in product(
        [(128, 128, 4), (128, 128, 8), (128, 256, 8), (256, 128, 8), (64, 256, 4)], [64, 128], [2, 3, 4]
    )
    if 2 * stages * depth * (heads + rows) <= SHARED_BYTES
]


def measure(quick: bool) -> Iterator[Row]:
    """Yield a row for each kernel, shape and choice that fits the device."""
    repeats, refused = 3 if quick else 20, dict[str, str]()
    for num_rows, num_heads in SHAPES[:1] if quick else SHAPES:
        low: Any = {"device": "cuda", "dtype": torch.bfloat16}
        z_BD, weight_CD = torch.randn(num_rows, NUM_FEATURES, **low), torch.randn(num_heads, NUM_FEATURES, **low) * 0.02
        grad_CB, logit_CB = torch.rand(num_heads, num_rows, **low), torch.empty(num_heads, num_rows, **low)
        out_CD = torch.empty_like(weight_CD)
        bare = {
            "differentiate": gpu.seconds(lambda: torch.mm(weight_CD, z_BD.T, out=logit_CB), repeats=repeats),  # noqa: B023
            "update": gpu.seconds(lambda: torch.mm(grad_CB, z_BD, out=out_CD), repeats=repeats),  # noqa: B023
        }
        for tiles in CHOICES[:6] if quick else CHOICES:
            for name, call in calls(weight_CD, z_BD, grad_CB, tiles).items():
                what = f"{name} {tiles.heads}x{tiles.rows}x{tiles.depth} w{tiles.warps} s{tiles.stages}"
                try:
                    ours_s = gpu.seconds(call, repeats=repeats)
                except Exception as error:  # the compiler's own kinds: too much shared memory, too many registers
                    refused[what] = type(error).__name__
                    torch.cuda.synchronize()  # a launch that has broken the device ends the run here
                    continue
                note = f"{bare[name] / ours_s:.0%} of cuBLAS's rate"
                yield Row(what, f"bare product, B = {num_rows}", num_heads, ours_s, bare[name], "s", bare[name] / ours_s, note)
    yield Row("choices that do not run here", "-", None, float(len(refused)), None, "", None, str(refused) if refused else "")


def calls(weight_CD: torch.Tensor, z_BD: torch.Tensor, grad_CB: torch.Tensor, tiles: Tiles) -> dict[str, Any]:
    """Return both kernels as calls without arguments, on a chunk without positives."""
    from ovr.head_step import kernels

    (num_heads, device), num_rows = (len(weight_CD), weight_CD.device), len(z_BD)
    blocks = -(-num_heads // tiles.heads), -(-num_rows // tiles.rows)
    code_CB = torch.zeros(num_heads, num_rows, dtype=torch.int8, device=device)
    flag_TS, sum_SC = torch.zeros(blocks, dtype=torch.int32, device=device), torch.zeros(blocks[1], num_heads, device=device)
    bias_C, one_C = torch.full((num_heads,), -8.0, device=device), torch.ones(num_heads, device=device)
    scalar, counter = (
        torch.tensor([1 / num_rows, 0.0, 0, 0, 0, 0, 0, 0], device=device),
        torch.zeros(2, dtype=torch.int64, device=device),
    )
    bad_C, any_bad = (torch.zeros(size, dtype=torch.int8, device=device) for size in (num_heads, 1))
    out_CB = torch.empty_like(grad_CB)
    return {
        "differentiate": lambda: kernels.differentiate(
            weight_CD, z_BD, bias_C, one_C, one_C, code_CB, flag_TS, out_CB, sum_SC, None, tiles
        ),
        "update": lambda: kernels.update(
            weight_CD, bias_C, grad_CB, z_BD, sum_SC, {}, Settings(Optimizer.SGD), scalar, counter, 0, bad_C, any_bad, tiles
        ),
    }


if __name__ == "__main__":
    gpu.main(measure, "tiles of the head step's kernels")
