"""One training step of K linear heads on given features, and the memory that it takes, from K = 10 to 1,000,000.

Ours is what training does by itself: up to `LARGE_K` heads `OvrModule`'s own step (the loss of each entry, masked; the check that
loss and gradient are finite; each head's clipping), from there on the step in chunks, with the loss and the same clipping; AdamW as
`conf/optimizer/adamw.yaml` has it. Lightning's loop around it is left out: `benchmarks.lightning_loop` measures it. The peers have
torch's own default: dense is nn.Linear with BCEWithLogitsLoss, the module loop K modules whose logits are joined.
`python -m scripts.scaling_page` makes `docs/scaling.md` of what this stores.

K = heads
"""

import logging
from collections.abc import Iterator
from functools import partial

import lightning
import numpy as np
import torch
from torch import nn

from benchmarks.head_step import Problem, Step, dense
from benchmarks.report import Row, interleaved, main
from ovr.backbone.identity import Identity
from ovr.core.scale import LARGE_K
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.splits import make_splits
from ovr.head_step.step import HeadStep
from ovr.model import Normalizer, OvrModel
from ovr.optimizer.adamw import AdamW
from ovr.sampler.shuffled import Shuffled
from ovr.training.feed import Feed
from ovr.training.loader import Batch
from ovr.training.module import OvrModule
from ovr.training.plan import head_plan

B, D = 64, 64
ADAMW = partial(AdamW, lr=0.002, weight_decay=0.01, fused=True)  # conf/optimizer/adamw.yaml
MAX_NORM = 1.0  # conf/trainer/cpu.yaml
NOTE = f"B={B} D={D}, AdamW, ours with all that training does in a step"


def as_trained(problem: Problem) -> Step:
    """Return the step that training makes of so many heads."""
    if problem.k >= LARGE_K:
        step = HeadStep(problem.heads(), problem.loss, ADAMW, max_norm=MAX_NORM, log_odds_shift_K=torch.zeros(problem.k), seed=0)
        return lambda: step(problem.z_BD, problem.targets, num_rows=problem.b).loss
    return dense_as_trained(problem, problem.heads())


def dense_as_trained(problem: Problem, heads: nn.Module) -> Step:
    """Return `OvrModule`'s step of `heads`: what Lightning calls of it, in its order, but for the logging of the loss."""
    row = np.zeros((1, problem.d), np.float32)
    labels = Labels.from_dense(np.ones((1, problem.k), bool))
    taxonomy = Taxonomy.from_ids(f"c{k}" for k in range(problem.k))
    splits = make_splits(taxonomy, InputSchema((problem.d,)), dict.fromkeys(("train", "val", "calib", "test"), (row, labels)))
    module = OvrModule(
        OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), Identity((problem.d,)), heads),
        problem.loss,
        feed=Feed(splits, Shuffled(labels), batch_size=problem.b, seed=0),
        plan=head_plan(taxonomy, frozen_heads=[], backbone_grad="all"),
        optimizer=ADAMW,
        scheduler=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
    )
    module.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # which wants a running fit
    optimizer = ADAMW(module.model.trained_parameters())
    z_BD = problem.z_BD.clone().requires_grad_()  # so that the gradient of the features is made, as for a backbone
    batch = Batch(z_BD, problem.dense_targets(), None, torch.arange(problem.b))  # of labels that are all known

    def step() -> torch.Tensor:
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        z_BD.grad = None
        loss.backward()
        module.configure_gradient_clipping(optimizer, MAX_NORM, "norm")
        optimizer.step()
        return loss.detach()

    return step


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
    steps = {"ours": as_trained(problem), "dense": dense(problem, "AdamW", target_BK=target_BK)}
    for _ in range(3):
        torch.testing.assert_close(steps["ours"]().float(), steps["dense"](), rtol=1e-4, atol=0)
    if loop:
        steps["module loop"] = module_loop(problem, target_BK)
    seconds = interleaved(steps, repeats=repeats)
    for against in list(steps)[1:]:
        ratio = seconds[against] / seconds["ours"]
        yield Row("training step", against, k, seconds["ours"], seconds[against], "s", ratio, NOTE)
    a, b = (peak_mb(steps[name]) for name in ("ours", "dense"))
    yield Row("memory of a step", "dense", k, a, b, "MB", b / a, NOTE)


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
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for k in (10, LARGE_K) if quick else (10, 100, 1_000, 10_000, 100_000, 1_000_000):
        yield from rows(k, repeats=3 if quick else 5 if k > LARGE_K else 21, loop=k <= 1_000)


if __name__ == "__main__":
    main(measure, __doc__ or "")
