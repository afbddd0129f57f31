"""What Lightning's loop costs on a GPU: very many heads trained as ovr does it, through a Trainer, against a bare loop.

The module and both loops are those of `benchmarks.lightning_loop`; the batches lie on the device, so that no loader hides what is
around a step. The weights of both are compared.

B = batch, D = features, K = heads
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.report import Row, said  # first: it pins the number of threads

from benchmarks import gpu_report as gpu  # isort: skip
import lightning

from benchmarks.gpu_head_step import SGD
from benchmarks.lightning_loop import SETTINGS, bare_steps, make_module
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.splits import make_splits
from ovr.training.chunked import ChunkedModule
from ovr.training.loader import SparseBatch

NUM_FEATURES, NUM_ROWS = 768, 1024
BAR = 1.05
Loop = Callable[["Training", int], None]


class Training:
    """A module, and batches that lie on the device."""

    def __init__(
        self, num_heads: int, num_rows: int, num_features: int, device: str, *, head_dtype: torch.dtype = torch.bfloat16
    ) -> None:
        torch.manual_seed(0)
        row = np.zeros((1, num_features), np.float32), Labels.from_columns(np.zeros(1, np.int64), num_heads=num_heads)
        taxonomy = Taxonomy.from_ids(f"c{k}" for k in range(num_heads))
        splits = make_splits(taxonomy, InputSchema((num_features,)), dict.fromkeys(("train", "val", "calib", "test"), row))
        heads = gpu.make_heads(num_features, num_heads, dtype=head_dtype, device=device)
        settings = replace(SETTINGS, optimizer=SGD, compute_dtype=torch.bfloat16, triton_kernels=device == "cuda")
        self.module: ChunkedModule = make_module(splits, heads, hidden=[num_features], settings=settings).to(device)
        self.device, self.batches = device, []
        for seed in range(4):
            z_BD, targets = gpu.batch(num_rows, num_features, num_heads, seed=seed, device=device)
            self.batches.append(SparseBatch(z_BD, targets, torch.arange(num_rows, device=device)))

    def some(self, count: int) -> Iterator[SparseBatch]:
        """Return as many batches, in turn."""
        return (self.batches[i % len(self.batches)] for i in range(count))


class Repeated(torch.utils.data.IterableDataset[Any]):
    """The batches of a training, in turn."""

    def __init__(self, training: Training, count: int) -> None:
        self.training, self.count = training, count

    def __iter__(self) -> Iterator[SparseBatch]:
        return self.training.some(self.count)


def bare(training: Training, count: int) -> None:
    """Make `count` steps in a loop, with a module that was fitted or is to be."""
    module = training.module.to(training.device)
    for batch, step in zip(training.some(count), bare_steps(module, count), strict=True):
        step(batch)


def through_lightning(training: Training, count: int) -> None:
    """Make them through a Trainer without a logger and checkpoints."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        accelerator=training.device, devices=1, max_epochs=1, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a loader without workers
        trainer.fit(training.module, torch.utils.data.DataLoader(Repeated(training, count), batch_size=None))


def check(device: str, *, num_heads: int = 300, num_rows: int = 16, num_features: int = 8) -> None:
    """Raise AssertionError unless both loops leave the same weights."""
    # In bfloat16 each side rounds at random, Lightning's with the seed of the step.
    one, two = (Training(num_heads, num_rows, num_features, device, head_dtype=torch.float32) for _ in range(2))
    before = {name: value.clone() for name, value in one.module.named_parameters()}
    through_lightning(one, 5)
    through_lightning(two, 0)  # prepares it
    bare(two, 5)
    for name, value in one.module.named_parameters():
        assert not torch.equal(value.cpu(), before[name].cpu()), f"{name} did not change"
        # A Trainer leaves what it has trained on the CPU.
        assert torch.equal(value.cpu(), two.module.get_parameter(name).cpu()), f"{name} differs between the two loops"


def measure(quick: bool) -> Iterator[Row]:
    """Yield a row for each number of heads. Time is that of many steps less that of few: setting up a Trainer is no step."""
    check("cuda")
    counts = {100_000: (10, 60)} if quick else {100_000: (50, 1550), 1_000_000: (20, 320)}  # a second's difference and more
    loops: dict[str, Loop] = {"lightning": through_lightning, "bare": bare}
    for num_heads, (few, many) in counts.items():
        training = Training(num_heads, NUM_ROWS, NUM_FEATURES, "cuda")
        spans = {}
        for name, loop in loops.items():
            short, long = (gpu.seconds(lambda: loop(training, count), repeats=3, warm_up=1) for count in (few, many))  # noqa: B023
            spans[name] = (long - short) / (many - few)
        ratio = spans["lightning"] / spans["bare"]
        told = "" if quick else f"bar {BAR}x: {said(ratio <= BAR)}; "
        note = f"{told}as ovr trains, with the loss, B = {NUM_ROWS}"
        yield Row(
            "a step through Lightning's loop", "bare loop", num_heads, spans["lightning"], spans["bare"], "s", 1 / ratio, note
        )


if __name__ == "__main__":
    gpu.main(measure, "Lightning's loop on a GPU")
