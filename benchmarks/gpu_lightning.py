"""What Lightning's loop costs around the head step: a small backbone and very many heads, manually optimised, against a bare loop.

Both make the same steps on the same batches, which lie on the device; their weights are compared.

B = batch, D = features, K = heads
"""

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import Row, said  # first: it pins the number of threads

from benchmarks import gpu_report as gpu  # isort: skip
import lightning

from benchmarks.gpu_head_step import SGD, make_step
from ovr.head_step.targets import SparseTargets

NUM_FEATURES, NUM_ROWS = 768, 1024
BAR = 1.05


class Steps:
    """One step of backbone and heads, as the bare loop makes it and as the module does."""

    def __init__(self, num_heads: int, num_rows: int, num_features: int, device: str) -> None:
        torch.manual_seed(0)
        heads = gpu.make_heads(num_features, num_heads, dtype=torch.bfloat16, device=device)
        self.backbone = nn.Linear(num_features, num_features, device=device)
        self.optimizer = torch.optim.AdamW(self.backbone.parameters(), lr=1e-4)
        self.heads, self.head_step = heads, make_step(heads, SGD)
        self.batches = [gpu.batch(num_rows, num_features, num_heads, seed=seed, device=device) for seed in range(4)]

    def __call__(self, batch: tuple[Tensor, SparseTargets], backward: Any = Tensor.backward) -> None:
        x_BD, targets = batch
        z_BD = self.backbone(x_BD)
        result = self.head_step(z_BD, targets, num_rows=len(x_BD), with_loss=False)
        backward(z_BD, gradient=result.grad_z_BD)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Module(lightning.LightningModule):
    """The same through Lightning."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.steps = steps
        self.backbone = steps.backbone

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.steps(batch, backward=self.manual_backward)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.steps.optimizer


class Repeated(torch.utils.data.IterableDataset[Any]):
    """Batches that lie on the device, in turn."""

    def __init__(self, batches: list[Any], count: int) -> None:
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[Any]:
        return (self.batches[i % len(self.batches)] for i in range(self.count))


def bare(steps: Steps, count: int) -> None:
    """Make `count` steps in a loop."""
    for batch in Repeated(steps.batches, count):
        steps(batch)


def through_lightning(steps: Steps, count: int, accelerator: str) -> None:
    """Make them through a Trainer without logging and checkpoints."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        accelerator=accelerator, devices=1, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a loader without workers
        trainer.fit(Module(steps), torch.utils.data.DataLoader(Repeated(steps.batches, count), batch_size=None))


def check(device: str, *, num_heads: int = 300, num_rows: int = 16, num_features: int = 8) -> None:
    """Raise AssertionError unless both loops leave the same weights."""
    one, two = (Steps(num_heads, num_rows, num_features, device) for _ in range(2))
    bare(one, 5)
    through_lightning(two, 5, "cuda" if device == "cuda" else "cpu")
    # A Trainer leaves what it has trained on the CPU.
    assert torch.equal(one.heads.weight_KD.cpu(), two.heads.weight_KD.cpu()), "the heads of the two loops differ"
    assert torch.equal(one.backbone.weight.cpu(), two.backbone.weight.cpu()), "the backbones of the two loops differ"


def measure(quick: bool) -> Iterator[Row]:
    """Yield a row for each number of heads. Time is that of many steps less that of few: setting up a Trainer is no step."""
    check("cuda")
    counts = {100_000: (10, 60)} if quick else {100_000: (50, 1550), 1_000_000: (20, 320)}  # a second's difference and more
    for num_heads, (few, many) in counts.items():
        steps = Steps(num_heads, NUM_ROWS, NUM_FEATURES, "cuda")
        spans = {}
        for name, loop in (("bare", bare), ("lightning", lambda steps, count: through_lightning(steps, count, "cuda"))):
            short, long = (gpu.seconds(lambda: loop(steps, count), repeats=3, warm_up=1) for count in (few, many))  # noqa: B023
            spans[name] = (long - short) / (many - few)
        ratio = spans["lightning"] / spans["bare"]
        told = "" if quick else f"bar {BAR}x: {said(ratio <= BAR)}; "
        note = f"{told}manual optimisation around HeadStep, B = {NUM_ROWS}"
        yield Row(
            "a step through Lightning's loop", "bare loop", num_heads, spans["lightning"], spans["bare"], "s", 1 / ratio, note
        )


if __name__ == "__main__":
    gpu.main(measure, "Lightning's loop on a GPU")
