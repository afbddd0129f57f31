"""One training step of K linear heads on given features, and the memory that it takes, from K = 10 to 1,000,000.

Ours is what ovr does by itself: up to `LARGE_K` heads the dense step, from there on the step in chunks, with the loss; AdamW as
`conf/optimizer/adamw.yaml` has it. The peers have torch's own default: dense is nn.Linear with BCEWithLogitsLoss, the module loop K
modules whose logits are joined. `python scripts/scaling_page.py` makes `docs/scaling.md` of what this stores.

K = heads
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from benchmarks.head_step import Problem, Step, dense, ours
from benchmarks.report import Row, interleaved, main
from ovr.core.scale import LARGE_K

B, D = 64, 64


def module_loop(problem: Problem, target_BK: torch.Tensor) -> Step:
    """Return the step of one nn.Linear a head."""
    heads, z_BD = nn.ModuleList(nn.Linear(D, 1) for _ in range(problem.k)), problem.z_BD.clone().requires_grad_()
    optimizer, criterion = torch.optim.AdamW(heads.parameters(), lr=0.002), nn.BCEWithLogitsLoss(reduction="sum")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        z_BD.grad = None
        loss = criterion(torch.cat([head(z_BD) for head in heads], dim=1), target_BK) / len(z_BD)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def rows(k: int, *, repeats: int, loop: bool) -> Iterator[Row]:
    """Yield time and memory of a step."""
    problem = Problem(k, B, D)
    target_BK = problem.dense_targets()
    chosen = ours(problem, "AdamW") if k >= LARGE_K else dense(problem, "AdamW", target_BK=target_BK, fused=True)
    steps = {"ours": chosen, "dense": dense(problem, "AdamW", target_BK=target_BK)}
    for _ in range(3):
        torch.testing.assert_close(steps["ours"]().float(), steps["dense"](), rtol=1e-4, atol=0)
    if loop:
        steps["module loop"] = module_loop(problem, target_BK)
    seconds = interleaved(steps, repeats=repeats)
    for against in list(steps)[1:]:
        ratio = seconds[against] / seconds["ours"]
        yield Row("training step", against, k, seconds["ours"], seconds[against], "s", ratio, f"B={B} D={D}, AdamW")
    a, b = (peak_mb(steps[name]) for name in ("ours", "dense"))
    yield Row("memory of a step", "dense", k, a, b, "MB", b / a, f"B={B} D={D}, AdamW")


def peak_mb(step: Step) -> float:
    """Return the most memory that torch's allocator gave at a time in a step, above what was held in it at the least, in MB.

    At the least weights, features, targets and state are held: an optimizer made its state in an earlier step. The memory of a
    whole process, which `benchmarks.head_step` measures, is too coarse for few heads.
    """
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return float(max(0, held.max()) - min(0, held.min())) / 1e6


def measure(quick: bool) -> Iterator[Row]:
    """Yield times and memory at each K."""
    torch.set_num_threads(1)
    for k in (10, LARGE_K) if quick else (10, 100, 1_000, 10_000, 100_000, 1_000_000):
        yield from rows(k, repeats=3 if quick else 5 if k > LARGE_K else 21, loop=k <= 1_000)


if __name__ == "__main__":
    main(measure, __doc__ or "")
