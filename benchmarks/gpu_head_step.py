"""One training step of very many linear heads on a GPU: ours against the matrix products alone, and against the schemes of others.

The steps are compared with float64 before anything is timed. FLOPs are counted as 6 B D K, whatever a scheme computes besides.

B = batch, D = features, K = heads
"""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Row, said  # first: it pins the number of threads

from benchmarks import gpu_report as gpu  # isort: skip
from benchmarks.gpu_peers import Dense, Elmo, Renee
from ovr.head.linear import Linear
from ovr.head_step.step import HeadStep
from ovr.head_step.targets import SparseTargets
from ovr.loss.bce import Bce

NUM_FEATURES = 768
NUM_HEADS = 1_000_000
NUM_BATCHES = 4
LR = 0.1
SGD = partial(torch.optim.SGD, lr=LR)
MOMENTUM = partial(torch.optim.SGD, lr=LR, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
BARS = {  # at a million heads: times as fast as the peer; with the loss against those that compute it
    "dense, autocast + AdamW": 4.0,
    "torch.compile(dense)": 2.0,
    "Renee scheme": 1.6,
    **{f"ELMO scheme, {chunks} chunks": 1.3 for chunks in (4, 16, 64)},
}
RATE_BARS = {1024: 0.8, 4096: 0.85, 8192: 0.85}  # by rows, of cuBLAS's rate
LARGEST_BAR, LARGEST_STRETCH = 50, 90  # million heads, on one H200
NAIVE_MILLIONS = 4.9  # heads that dense training holds on one H200 (computed: docs/gpu.md)
Batches = list[tuple[Tensor, SparseTargets]]


def make_step(heads: Linear, optimizer: Callable[..., torch.optim.Optimizer], **settings: Any) -> HeadStep:
    """Return our step of these heads."""
    device = heads.weight_KD.device
    loss = Bce(("c",) * len(heads.bias_K), pos_weight=None).to(device)
    settings = {"triton_kernels": heads.weight_KD.is_cuda, **settings}
    return HeadStep(heads, loss, optimizer, compute_dtype=torch.bfloat16, seed=0, **settings)


def check(device: str, *, num_heads: int = 5000, num_rows: int = 200, num_features: int = 64) -> float:
    """Return the largest relative error of loss, features' gradient and new weights, of ours and the peers, against float64.

    Raises:
        AssertionError: one above 2 %, of which bfloat16's share is 0.4 % a factor.
    """
    z_BD, targets = gpu.batch(num_rows, num_features, num_heads, seed=0, device=device)
    made = gpu.make_heads(num_features, num_heads, dtype=torch.bfloat16, device=device, std=0.1)
    made.bias_K.data.zero_()
    weight_KD = made.weight_KD.detach().clone()
    loss, grad_z_BD, grad_KD = reference(weight_KD.double(), z_BD.double(), targets)
    errors = {}

    def compare(name: str, value: Tensor, expected: Tensor) -> None:
        errors[name] = float((value.double() - expected).norm() / expected.norm())

    lr = 100.0  # so large that a step changes every digit of a weight
    ours = make_step(made, partial(torch.optim.SGD, lr=lr))
    if device != "cuda":
        ours.fuse(kernels(device))
    result = ours(z_BD, targets, num_rows=num_rows)
    assert result.loss is not None
    assert result.grad_z_BD is not None
    compare("ours, loss", result.loss, loss)
    compare("ours, features", result.grad_z_BD, grad_z_BD)
    compare("ours, weights", made.weight_KD.double() - weight_KD.double(), -lr * grad_KD)
    elmo, renee = Elmo(weight_KD, lr=lr, num_chunks=3), Renee(weight_KD, lr=lr, momentum=0.9, kernels=kernels(device))
    for name, peer in (("ELMO", elmo), ("Renee", renee)):
        compare(f"{name}, features", peer.step(z_BD, targets), grad_z_BD)
        compare(f"{name}, weights", peer.weight_KD.double() - weight_KD.double(), -lr * grad_KD)
    dense = Dense(weight_KD, lr=1e-3)
    compare("dense, features", dense.step(z_BD, targets), grad_z_BD)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 0.02, f"{worst} is off by {errors[worst]:.2%}: {errors}"
    return errors[worst]


def reference(weight_KD: Tensor, z_BD: Tensor, targets: SparseTargets) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss a row and its gradients by features and weights, by autograd in float64."""
    target_BK = torch.zeros(len(z_BD), len(weight_KD), dtype=torch.float64, device=z_BD.device)
    target_BK[targets.row_P, targets.column_P] = 1.0
    weight_KD, z_BD = weight_KD.clone().requires_grad_(), z_BD.clone().requires_grad_()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z_BD @ weight_KD.T, target_BK, reduction="sum") / len(z_BD)
    return loss.detach(), *torch.autograd.grad(loss, (z_BD, weight_KD))


def kernels(device: str) -> Any:
    """Return the kernels of the device, or their twins."""
    if device != "cuda":
        from ovr.head_step import twins

        return twins
    from ovr.head_step import kernels as on_gpu

    return on_gpu


def measure(quick: bool) -> Iterator[Row]:
    """Yield all rows; what does not fit the device is left out with a note."""
    error = check("cuda")
    yield Row("largest relative error of a step", "float64", 5000, error, None, "", None, "ours and peers; checked before timing")
    num_heads, repeats = (1 << 17, 5) if quick else (NUM_HEADS, 15)
    rate = cublas_rate(repeats)
    yield Row("cuBLAS, bf16, 8192^3", "-", None, rate / 1e12, None, "TFLOP/s", None)
    for num_rows in (1024,) if quick else (1024, 4096, 8192):
        yield from measure_batch(num_heads, num_rows, rate, repeats)
    for num_heads in (1000, 10_000, 100_000):
        yield from measure_graphs(num_heads, repeats)
    yield from measure_largest(quick)


def cublas_rate(repeats: int, size: int = 8192) -> float:
    """Return the FLOP/s of a square product of random bfloat16 matrices."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / gpu.seconds(lambda: torch.mm(a, b, out=out), repeats=repeats)


def measure_batch(num_heads: int, num_rows: int, rate: float, repeats: int) -> Iterator[Row]:
    """Yield the rows of one batch size: ours once, then each peer."""
    batches = [gpu.batch(num_rows, NUM_FEATURES, num_heads, seed=seed, device="cuda") for seed in range(NUM_BATCHES)]
    flops, note, judged = 6 * num_rows * NUM_FEATURES * num_heads, f"B = {num_rows}", num_heads == NUM_HEADS
    ours: dict[str, float] = {}
    for name, optimizer, dtype, with_loss in (
        ("bf16 SGD", SGD, torch.bfloat16, False),
        ("bf16 SGD with loss", SGD, torch.bfloat16, True),
        ("momentum", MOMENTUM, torch.float32, False),
        ("AdamW", ADAMW, torch.float32, True),
    ):
        heads = gpu.make_heads(NUM_FEATURES, num_heads, dtype=dtype, device="cuda")
        step = make_step(heads, optimizer)
        assert step.fused, "the fused step was not taken"
        call = turns(batches, lambda z, targets, step=step, loss=with_loss: step(z, targets, num_rows=len(z), with_loss=loss))
        ours[name] = gpu.seconds(call, repeats=repeats)
        share, bar = flops / ours[name] / rate, RATE_BARS[num_rows] if name == "bf16 SGD" and judged else None
        told = note if bar is None else f"{note}; bar {bar:.0%}: {said(share >= bar)}"
        yield rated(f"head step, {name}", "cuBLAS 8192^3", num_heads, flops / ours[name], rate, told)
        held = sum(value.nbytes for value in heads.state_dict().values())
        held += sum(value.nbytes for group in step.groups for table in group.tables.values() for value in table.tensors.values())
        before = sum(z.nbytes + targets.row_P.nbytes + targets.column_P.nbytes for z, targets in batches)
        peak = gpu.peak_bytes(call) - before
        yield Row(
            f"peak memory, {name}", "weights + optimizer", num_heads, peak / 1e6, held / 1e6, "MB", held / peak,
            f"{note}; bar 1.05x + 512 MB: {said(peak <= 1.05 * held + 512e6)}",
        )  # fmt: skip
        if name == "bf16 SGD":
            step.fused.clear()
            chunked = gpu.seconds(call, repeats=max(3, repeats // 3))
            yield timed("head step, bf16 SGD", "our chunked step in torch", num_heads, ours[name], chunked, note)
        del heads, step, call
        clean()
    yield from measure_products(num_heads, num_rows, flops, ours["bf16 SGD"], repeats)
    weight_KD = gpu.make_heads(NUM_FEATURES, num_heads, dtype=torch.bfloat16, device="cuda").weight_KD.detach()
    peers: dict[str, tuple[str, str, Callable[[], Any]]] = {  # ours that is held against it, ours with its optimizer, the peer
        "dense, autocast + AdamW": ("bf16 SGD with loss", "AdamW", lambda: Dense(weight_KD, lr=1e-3)),
        "torch.compile(dense)": ("bf16 SGD with loss", "AdamW", lambda: Dense(weight_KD, lr=1e-3, compiled=True)),
        "Renee scheme": ("bf16 SGD", "momentum", lambda: Renee(weight_KD, lr=LR, momentum=0.9, kernels=kernels("cuda"))),
        **{
            f"ELMO scheme, {chunks} chunks": (
                "bf16 SGD",
                "bf16 SGD",
                lambda chunks=chunks: Elmo(weight_KD, lr=LR, num_chunks=chunks),
            )
            for chunks in (4, 16, 64)
        },
    }
    for name, (mine, same, make) in peers.items():
        try:
            peer = make()
            call = turns(batches, peer.step)
            peer_s = gpu.seconds(call, repeats=max(3, repeats // 3))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            yield Row(f"head step, {mine}", name, num_heads, ours[mine], None, "s", None, f"{note}; the peer is out of memory")
        else:
            told = f"{note}; bar {BARS[name]}x: {said(peer_s / ours[mine] >= BARS[name])}" if judged else note
            yield timed(f"head step, {mine}", name, num_heads, ours[mine], peer_s, told)
            if same != mine:
                yield timed(f"head step, {same}", name, num_heads, ours[same], peer_s, f"{note}; the same optimizer")
        peer = call = None
        clean()


def measure_products(num_heads: int, num_rows: int, flops: int, ours_s: float, repeats: int) -> Iterator[Row]:
    """Yield the three products alone, by cuBLAS in chunks of heads, and each next to what we do in its place."""
    size = min(num_heads, max(128, (3 << 26) // (3 * num_rows) // 128 * 128))
    low = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    z_BD, weight_CD, grad_CB = low(num_rows, NUM_FEATURES), low(size, NUM_FEATURES), low(size, num_rows)
    out_CB, out_BD, out_CD = torch.empty_like(grad_CB), torch.empty_like(z_BD), torch.empty_like(weight_CD)

    def products() -> None:
        for _ in range(num_heads // size):
            torch.mm(weight_CD, z_BD.T, out=out_CB)
            torch.mm(grad_CB.T, weight_CD, out=out_BD)
            torch.mm(grad_CB, z_BD, out=out_CD)

    bare_s = gpu.seconds(products, repeats=repeats)
    bare = flops * (num_heads // size * size) / num_heads / bare_s
    yield rated("head step, bf16 SGD", "the three bare products", num_heads, flops / ours_s, bare, f"B = {num_rows}")


def measure_graphs(num_heads: int, repeats: int) -> Iterator[Row]:
    """Yield what a captured graph saves of a small step."""
    batches = [gpu.batch(1024, NUM_FEATURES, num_heads, seed=seed, device="cuda") for seed in range(NUM_BATCHES)]
    spans = []
    for graphs in (True, False):
        step = make_step(gpu.make_heads(NUM_FEATURES, num_heads, dtype=torch.bfloat16, device="cuda"), SGD)
        for fused in step.fused.values():
            fused.graphs = graphs
        call = turns(batches, lambda z, targets, step=step: step(z, targets, num_rows=len(z), with_loss=False))
        spans.append(gpu.seconds(call, repeats=10 * repeats))
    yield timed("head step, bf16 SGD, as a graph", "launched one by one", num_heads, spans[0], spans[1], "B = 1024")
    clean()


def measure_largest(quick: bool) -> Iterator[Row]:
    """Yield the largest number of heads that two steps of 1024 rows go through, to 2 million."""
    if quick:
        return
    low, high = 0, 0
    for millions in (LARGEST_BAR, LARGEST_STRETCH, 94):
        if not trains(millions * 1_000_000):
            high = millions
            break
        low = millions
    while high and high - low > 2:
        middle = (low + high) // 2
        low, high = (middle, high) if trains(middle * 1_000_000) else (low, middle)
    what = "largest K, bf16 SGD, D = 768, B = 1024"
    note = f"trained; bar of an H200 {LARGEST_BAR}, stretch {LARGEST_STRETCH}: {said(low >= LARGEST_BAR)}"
    yield Row(what, "dense, computed", None, float(low), NAIVE_MILLIONS, "million", low / NAIVE_MILLIONS, note)


def trains(num_heads: int) -> bool:
    """Return whether two steps of so many heads fit the device; their loss must be finite."""
    step = heads = None
    try:
        heads = gpu.make_heads(NUM_FEATURES, num_heads, dtype=torch.bfloat16, device="cuda")
        step = make_step(heads, SGD)
        for seed in range(2):
            z_BD, targets = gpu.batch(1024, NUM_FEATURES, num_heads, seed=seed, device="cuda")
            loss = step(z_BD, targets, num_rows=1024).loss
            assert loss is not None
            assert bool(loss.isfinite()), f"the loss of {num_heads} heads is {float(loss)}"
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        del step, heads
        clean()
    return True


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether there was no memory left: for a tensor, or for what a graph or cuBLAS takes beside them."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "ALLOC_FAILED", "ErrorMemoryAllocation")
    )


def turns(batches: Batches, step: Callable[[Tensor, SparseTargets], Any]) -> Callable[[], Any]:
    """Return a call that takes the next batch each time: a cache would remember a single one."""
    count = iter(range(1 << 62))
    return lambda: step(*batches[next(count) % len(batches)])


def rated(what: str, against: str, k: int, ours: float, peer: float, note: str) -> Row:
    """Return a row of two rates in FLOP/s."""
    return Row(what, against, k, ours / 1e12, peer / 1e12, "TFLOP/s", ours / peer, note)


def timed(what: str, against: str, k: int, ours_s: float, peer_s: float, note: str) -> Row:
    """Return a row of two times."""
    return Row(what, against, k, ours_s, peer_s, "s", peer_s / ours_s, note)


def clean() -> None:
    """Give memory back between measurements."""
    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    gpu.main(measure, "the head step on a GPU")
