"""One training step of very many linear heads: ours in chunks and in place against six other ways to make it.

A step takes given features (B, D) to loss, gradient of the features, gradient of the weights and update. All sides are timed in
turn in one run. Before that, ours and dense, Renee's and ELMO's make three steps from the same weights, and losses and weights are
compared.

- dense: nn.Linear, BCEWithLogitsLoss on float targets (B, K), which are made beforehand, and the same optimizer of torch.
- torch.compile: forward and loss of it compiled by Inductor, where there is a C++ compiler.
- Renee scheme (Jain et al. 2023): no loss; logits of all K, whose sigmoid is taken in place; -1 at the positives; gradient (K, D)
  of all heads; SGD with momentum.
- ELMO scheme (Zhang et al. 2025): no loss; chunks of as many heads as ours; weights updated by the product that makes their
  gradient, SGD without momentum; in bfloat16 the weights are all there is, rounded stochastically.
- bare GEMMs: the three products alone, each of all K heads, into arrays that are there: their ratio is the share of their rate that
  ours reaches with everything else. In chunks of as many heads as ours, whose logits stay in the cache, they are the fastest that
  we know.

Ours makes the true loss unless the peer makes none. Peak memory is the most that a fresh process holds in a step (VmHWM of Linux)
above weights, features, targets and state of the optimizer.

B = batch, D = features, K = heads, C = heads of a chunk, P = positives of the batch
"""

import ctypes
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.report import Row, interleaved, main  # first: it pins the number of threads
from ovr.head.linear import Linear
from ovr.head_step.rounding import round_stochastically
from ovr.head_step.step import HeadStep
from ovr.head_step.targets import SparseTargets
from ovr.loss.bce import Bce

LR, MOMENTUM = 0.05, 0.9
POSITIVES_A_ROW = 5
ROOT = Path(__file__).parents[1]
PR_SET_THP_DISABLE = 41  # linux/prctl.h
Step = Callable[[], Tensor | None]  # returns the loss before the update
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=LR),
    "momentum": partial(torch.optim.SGD, lr=LR, momentum=MOMENTUM),
    "AdamW": partial(torch.optim.AdamW, lr=0.002),
}


class Problem:
    """Weights, features and targets that all sides start from."""

    def __init__(self, k: int, b: int, d: int) -> None:
        torch.manual_seed(0)
        self.k, self.b, self.d = k, b, d
        self.first = Linear(d, num_heads=k).requires_grad_(False)
        self.z_BD = torch.randn(b, d)
        place_P = torch.randint(k * b, (POSITIVES_A_ROW * b,)).unique()  # sorted by column, then by row
        none = place_P[:0]
        self.targets = SparseTargets(place_P % b, place_P // b, none, none)
        self.loss = Bce(range(k), pos_weight=None)

    def heads(self) -> Linear:
        """Return a copy of the weights."""
        heads = Linear.__new__(Linear)
        nn.Module.__init__(heads)
        for name, value in self.first.named_parameters():
            heads.register_parameter(name, nn.Parameter(value.clone()))
        return heads

    def chunk_heads(self) -> int:
        """Return what ours takes."""
        return HeadStep(self.heads(), self.loss, OPTIMIZERS["SGD"]).groups[0].fitting_heads(self.b)

    def dense_targets(self) -> Tensor:
        """Return targets (B, K) as floats."""
        target_BK = torch.zeros(self.b, self.k)
        target_BK[self.targets.row_P, self.targets.column_P] = 1
        return target_BK


def ours(
    problem: Problem,
    optimizer: str,
    *,
    heads: Linear | None = None,
    dtype: torch.dtype = torch.float32,
    head_dtype: torch.dtype = torch.float32,
    with_loss: bool = True,
) -> Step:
    heads = (problem.heads() if heads is None else heads).to(head_dtype)
    step = HeadStep(heads, problem.loss, OPTIMIZERS[optimizer], compute_dtype=dtype, seed=0)
    return lambda: step(problem.z_BD, problem.targets, num_rows=problem.b, with_loss=with_loss).loss


def dense(
    problem: Problem,
    optimizer: str,
    *,
    heads: Linear | None = None,
    target_BK: Tensor,
    compiled: bool = False,
    fused: bool | None = None,
) -> Step:
    heads = (problem.heads() if heads is None else heads).requires_grad_()
    linear = nn.Linear(1, 1)
    linear.weight, linear.bias = heads.weight_KD, heads.bias_K
    z_BD, criterion = problem.z_BD.clone().requires_grad_(), nn.BCEWithLogitsLoss(reduction="sum")

    def forward(z_BD: Tensor) -> Tensor:
        return criterion(linear(z_BD), target_BK) / len(z_BD)

    forward = torch.compile(forward) if compiled else forward
    update = OPTIMIZERS[optimizer](linear.parameters(), fused=fused)

    def step() -> Tensor:
        update.zero_grad()
        z_BD.grad = None
        loss = forward(z_BD)
        loss.backward()
        update.step()
        return loss.detach()

    return step


@torch.no_grad()
def renee(problem: Problem, *, heads: Linear | None = None, dtype: torch.dtype = torch.float32) -> Step:
    heads = problem.heads() if heads is None else heads
    weight_KD, bias_K, targets = heads.weight_KD.data, heads.bias_K.data, problem.targets
    momentum_KD, momentum_K = torch.zeros_like(weight_KD), torch.zeros_like(bias_K)
    z_BD = problem.z_BD.to(dtype)

    @torch.no_grad()
    def step() -> None:
        low_KD = weight_KD.to(dtype)
        grad_BK = torch.addmm(bias_K.to(dtype), z_BD, low_KD.T).sigmoid_()
        grad_BK[targets.row_P, targets.column_P] -= 1
        grad_BK.mul_(1 / problem.b)
        torch.mm(grad_BK, low_KD)
        grad_KD = torch.mm(grad_BK.T, z_BD)
        momentum_KD.mul_(MOMENTUM).add_(grad_KD)
        weight_KD.add_(momentum_KD, alpha=-LR)
        momentum_K.mul_(MOMENTUM).add_(grad_BK.sum(0))
        bias_K.add_(momentum_K, alpha=-LR)

    return step


def elmo(problem: Problem, *, heads: Linear | None = None, dtype: torch.dtype = torch.float32) -> Step:
    heads = (problem.heads() if heads is None else heads).to(dtype)
    weight_KD, bias_K, size = heads.weight_KD.data, heads.bias_K.data, problem.chunk_heads()
    z_BD, generator = problem.z_BD.to(dtype), torch.Generator().manual_seed(0)

    @torch.no_grad()
    def step() -> None:
        grad_z_BD = torch.zeros_like(problem.z_BD)
        for chunk, targets in zip(range(0, problem.k, size), problem.targets.chunks(size, problem.k), strict=True):
            weight_CD, bias_C = weight_KD[chunk : chunk + size], bias_K[chunk : chunk + size]
            grad_BC = torch.addmm(bias_C, z_BD, weight_CD.T).sigmoid_()
            grad_BC[targets.row_P, targets.column_P] -= 1
            grad_z_BD += torch.mm(grad_BC, weight_CD)
            if dtype == torch.float32:
                weight_CD.addmm_(grad_BC.T, z_BD, alpha=-LR / problem.b)
                bias_C.add_(grad_BC.sum(0), alpha=-LR / problem.b)
            else:
                grad_CD = torch.mm(grad_BC.T, z_BD).float()
                weight_CD.copy_(round_stochastically(weight_CD.float().add_(grad_CD, alpha=-LR / problem.b), generator))
                grad_C = grad_BC.sum(0, dtype=torch.float32)
                bias_C.copy_(round_stochastically(bias_C.float().add_(grad_C, alpha=-LR / problem.b), generator))

    return step


def bare_gemms(problem: Problem, *, size: int, dtype: torch.dtype = torch.float32) -> Step:
    """Return the three products into arrays that are there, of `size` heads at a time."""
    z_BD, weight_KD = problem.z_BD.to(dtype), problem.first.weight_KD.data.to(dtype)
    grad_z_BD, grad_CD = torch.zeros_like(z_BD), torch.empty_like(weight_KD[:size])
    # Of whole rows, as a last and smaller chunk has them too.
    logits = torch.empty(problem.b * size, dtype=dtype)

    @torch.no_grad()
    def step() -> None:
        grad_z_BD.zero_()
        for start in range(0, problem.k, size):
            weight_CD = weight_KD[start : start + size]
            logit_BC = logits[: problem.b * len(weight_CD)].view(problem.b, -1)
            torch.mm(z_BD, weight_CD.T, out=logit_BC)
            grad_z_BD.addmm_(logit_BC, weight_CD)
            torch.mm(logit_BC.T, z_BD, out=grad_CD[: len(weight_CD)])

    return step


def check_all(problem: Problem) -> None:
    """Raise AssertionError where ours and a peer differ."""
    check(problem, "SGD", partial(dense, optimizer="SGD", target_BK=problem.dense_targets()))
    check(problem, "AdamW", partial(dense, optimizer="AdamW", target_BK=problem.dense_targets()))
    check(problem, "momentum", renee, with_loss=False)
    check(problem, "SGD", elmo, with_loss=False)


def check(problem: Problem, optimizer: str, peer: Callable[..., Step], *, with_loss: bool = True) -> None:
    """Make three steps on both sides, and raise AssertionError unless losses and weights agree."""
    a, b = problem.heads(), problem.heads()
    mine, theirs = ours(problem, optimizer, heads=a), peer(problem, heads=b)
    for _ in range(3):
        loss, other = mine(), theirs()
        if with_loss:
            torch.testing.assert_close(loss.float(), other.float(), rtol=1e-5, atol=0)
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-4, atol=1e-5)


def steps(problem: Problem, *, compiled: bool) -> dict[str, Step]:
    """Return every side's step by name, on weights of their own where they are not float32."""
    target_BK, heads, low = problem.dense_targets(), problem.heads(), {"dtype": torch.bfloat16}
    mine = partial(ours, problem, heads=heads)
    made = {
        "fp32 SGD": mine("SGD"),
        "fp32 AdamW": mine("AdamW"),
        "fp32 SGD, no loss": mine("SGD", with_loss=False),
        "fp32 momentum, no loss": mine("momentum", with_loss=False),
        "bf16 SGD": mine("SGD", **low),
        "bf16 SGD, no loss": mine("SGD", with_loss=False, **low),
        "bf16 momentum, no loss": mine("momentum", with_loss=False, **low),
        "bf16 weights": ours(problem, "SGD", with_loss=False, head_dtype=torch.bfloat16, **low),
        "Renee fp32": renee(problem, heads=heads),
        "Renee bf16": renee(problem, heads=heads, **low),
        "ELMO fp32": elmo(problem, heads=heads),
        "ELMO bf16": elmo(problem, **low),
        "GEMMs fp32": bare_gemms(problem, size=problem.k),
        "GEMMs fp32, chunked": bare_gemms(problem, size=problem.chunk_heads()),
        "GEMMs bf16": bare_gemms(problem, size=problem.k, **low),
        "GEMMs bf16, chunked": bare_gemms(problem, size=problem.chunk_heads(), **low),
    }
    on_theirs = problem.heads()
    made["dense SGD"] = dense(problem, "SGD", heads=on_theirs, target_BK=target_BK)
    made["dense AdamW"] = dense(problem, "AdamW", heads=on_theirs, target_BK=target_BK)
    if compiled:
        made["compiled SGD"] = dense(problem, "SGD", heads=on_theirs, target_BK=target_BK, compiled=True)
    return made


PAIRS = (  # what, against, ours, the peer's, note
    ("head step fp32", "dense", "fp32 SGD", "dense SGD", "SGD"),
    ("head step fp32", "torch.compile", "fp32 SGD", "compiled SGD", "SGD"),
    ("head step fp32", "Renee scheme", "fp32 momentum, no loss", "Renee fp32", "SGD with momentum, neither with loss"),
    ("head step fp32", "ELMO scheme", "fp32 SGD, no loss", "ELMO fp32", "SGD, neither with loss"),
    ("head step fp32", "bare GEMMs", "fp32 SGD", "GEMMs fp32", "SGD"),
    ("head step fp32", "bare GEMMs in chunks", "fp32 SGD", "GEMMs fp32, chunked", "SGD"),
    ("head step fp32, AdamW", "dense", "fp32 AdamW", "dense AdamW", "AdamW"),
    ("head step fp32, no loss", "dense", "fp32 SGD, no loss", "dense SGD", "SGD, the peer with loss"),
    ("head step bf16", "dense", "bf16 SGD", "dense SGD", "SGD, weights in fp32, the peer all in fp32"),
    ("head step bf16", "torch.compile", "bf16 SGD", "compiled SGD", "SGD, weights in fp32, the peer all in fp32"),
    (
        "head step bf16",
        "Renee scheme",
        "bf16 momentum, no loss",
        "Renee bf16",
        "SGD with momentum, weights in fp32, neither with loss",
    ),
    ("head step bf16", "ELMO scheme", "bf16 weights", "ELMO bf16", "SGD, weights in bf16, neither with loss"),
    ("head step bf16", "bare GEMMs", "bf16 SGD", "GEMMs bf16", "SGD, weights in fp32"),
    ("head step bf16", "bare GEMMs in chunks", "bf16 SGD", "GEMMs bf16, chunked", "SGD, weights in fp32"),
    ("head step bf16, no loss", "dense", "bf16 SGD, no loss", "dense SGD", "SGD, the peer with loss, in fp32"),
)


def times(k: int, b: int, d: int, *, compiled: bool, repeats: int) -> Iterator[Row]:
    """Yield a row for each pair."""
    seconds = interleaved(steps(Problem(k, b, d), compiled=compiled), repeats=repeats)
    for what, against, mine, theirs, note in PAIRS:
        if theirs in seconds:
            a, b_s = seconds[mine], seconds[theirs]
            yield Row(what, against, k, a, b_s, "s", b_s / a, f"B={b} D={d}, {note}")


def peak_bytes(side: str, optimizer: str, k: int, b: int, d: int) -> int:
    """Return the most memory that a step takes above weights, features, targets and state, of a process that did nothing else.

    It is the second step: an optimizer makes its state in the first.
    """
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # a page of 2 MB counts whole, wherever the kernel takes one
    for heads in (10_000, k):  # the first loads the libraries
        problem = Problem(heads, b, d)
        if side == "ours":
            step = ours(problem, optimizer, heads=problem.first)
        else:
            step = dense(problem, optimizer, heads=problem.first, target_BK=problem.dense_targets())
        ctypes.CDLL(None).malloc_trim(0)  # what the first left free is not held
        held = status_bytes("VmRSS")
        step()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        step()
    state_bytes = {"SGD": 0, "AdamW": 2 * 4}[optimizer] * k * (d + 1)
    return status_bytes("VmHWM") - held - state_bytes


def status_bytes(name: str) -> int:
    """Return a figure of /proc/self/status."""
    (value,) = re.findall(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(value) * 1024


def peak_row(optimizer: str, k: int, b: int, d: int) -> Row:
    """Return the row of `peak_bytes` of both sides, each in a process of its own: the median of three, as what lies free varies."""
    peaks = []
    for side in ("ours", "dense"):
        call = f"from benchmarks.head_step import peak_bytes; print(peak_bytes({side!r}, {optimizer!r}, {k}, {b}, {d}))"
        run = partial(subprocess.run, [sys.executable, "-c", call], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        peaks.append(statistics.median(int(run().stdout) for _ in range(3)) / 1e6)
    return Row("peak memory above weights", "dense", k, *peaks, "MB", peaks[1] / peaks[0], f"B={b} D={d}, {optimizer}")


def measure(quick: bool) -> Iterator[Row]:
    """Yield times at each K, then the memory."""
    torch.set_num_threads(1)
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not (quick or compiler):
        print("torch.compile is left out: it needs a C++ compiler, g++ or clang++", file=sys.stderr)
    sizes = ((2_000, 8, 16, 1),) if quick else ((100_000, 256, 64, 7), (100_000, 256, 768, 3), (1_000_000, 64, 64, 5))
    check_all(Problem(*sizes[0][:3]))
    for k, b, d, repeats in sizes:
        yield from times(k, b, d, compiled=bool(compiler) and not quick, repeats=repeats)
    yield peak_row("SGD", *((20_000, 64, 16) if quick else (1_000_000, 64, 64)))


if __name__ == "__main__":
    main(measure, __doc__ or "")
