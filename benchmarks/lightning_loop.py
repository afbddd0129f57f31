"""What Lightning's loop costs around very many heads: training as ovr does it, through a Trainer, against a bare loop.

Both make the same steps on the batches of the same loader: features of a small backbone, the heads' step in chunks with the loss,
the backbone's gradients, its clipping-free step by AdamW. Their weights are compared. Lightning's side also seeds each step, checks
that loss and gradient are finite and logs the loss, as `ovr train` does. Time is from step to step, without setting up a Trainer.
Of each side the fastest step counts: what else the machine does can only add to one, and adds more than the loop's few hundredths.

B = batch, D = features, K = heads
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat

import lightning
import numpy as np
import torch

from benchmarks.report import Row, main  # first: it pins the number of threads
from ovr.backbone.mlp import Mlp
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.splits import Splits, make_splits
from ovr.head.linear import Linear
from ovr.loss.bce import Bce
from ovr.model import Normalizer, OvrModel
from ovr.sampler.shuffled import Shuffled
from ovr.training.chunked import ChunkedModule, HeadSettings
from ovr.training.feed import Feed
from ovr.training.loader import SparseBatch
from ovr.training.plan import head_plan
from ovr.training.ranks import Ranks
from ovr.training.shards import HeadShards

B, D = 64, 64
ADAMW = partial(torch.optim.AdamW, lr=0.002)
SETTINGS = HeadSettings(
    optimizer=ADAMW, chunk_heads=None, max_norm=None, compute_dtype=torch.float32, loss_every=1, triton_kernels=False
)
WARM_UP = 3  # steps of each fit that are not timed


def make_data(num_heads: int) -> Splits:
    """Return a training row for each of K classes, and a few for the other splits."""
    rng = np.random.default_rng(0)
    rows = {
        name: (rng.normal(size=(n, D)).astype(np.float32), Labels.from_columns(np.arange(n), num_heads=num_heads))
        for name, n in (("train", num_heads), ("val", B), ("calib", B), ("test", B))
    }
    return make_splits(Taxonomy.from_ids(f"c{k}" for k in range(num_heads)), InputSchema((D,)), rows)


def new_heads(splits: Splits) -> Linear:
    """Return new heads for all classes; what is drawn next is the same each time."""
    torch.manual_seed(0)
    return Linear(D, num_heads=len(splits.taxonomy))


class Timed(lightning.Callback):
    """Notes the CPU time at which each step begins."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        self.starts.append(time.process_time())


def make_module(
    splits: Splits, heads: Linear, *, hidden: Sequence[int] = (128, D), settings: HeadSettings = SETTINGS
) -> ChunkedModule:
    """Return the module as `ovr train` makes it."""
    backbone = Mlp(splits.input.shape, hidden=list(hidden), activation="relu", dropout=0.0)
    model = OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), backbone, heads)
    plan = head_plan(splits.taxonomy, frozen_heads=[], backbone_grad="all")
    return ChunkedModule(
        model,
        Bce(splits.taxonomy.ids, pos_weight=None),
        feed=Feed(splits, Shuffled(splits.train.labels), batch_size=B, seed=0),
        plan=plan,
        shards=HeadShards(plan, Ranks(0, 1)),
        heads=settings,
        optimizer=ADAMW,
        scheduler=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
    )


def through_lightning(module: ChunkedModule, num_steps: int) -> list[float]:
    """Make some steps through a Trainer; return the seconds of each but the first ones."""
    timed = Timed()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=num_steps + 1, limit_val_batches=0, callbacks=[timed], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)
    return np.diff(timed.starts)[WARM_UP:].tolist()


def bare(module: ChunkedModule, num_steps: int) -> list[float]:
    """Make as many in a loop on the same loader, with the parts of a module that was fitted or is to be; return the same."""
    starts = []
    for batch, step in zip(module.train_dataloader(), bare_steps(module, num_steps + 1), strict=False):
        starts.append(time.process_time())
        step(batch)
    return np.diff(starts)[WARM_UP:].tolist()


def bare_steps(module: ChunkedModule, num_steps: int) -> Iterator[Callable[[SparseBatch], None]]:
    """Yield as many times what makes a step, with one optimizer of the backbone."""
    optimizer = ADAMW(module.trained)

    def step(batch: SparseBatch) -> None:
        z_BD = module.model.features(batch.x)
        result = module.head_step(z_BD, batch.targets, num_rows=len(z_BD))
        optimizer.zero_grad()
        z_BD.backward(result.grad_z_BD)
        optimizer.step()

    return repeat(step, num_steps)


def check(splits: Splits) -> None:
    """Raise AssertionError unless both leave the same weights."""
    one, two = (make_module(splits, new_heads(splits)) for _ in range(2))
    through_lightning(one, 5)
    through_lightning(two, -1)  # prepares it
    bare(two, 5)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), f"{name} differs between the two loops"


def measure(quick: bool) -> Iterator[Row]:
    """Yield a row for each K."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    num_steps, turns = (5, 1) if quick else (10, 10)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        check(make_data(1_000))
        for num_heads in (2_000,) if quick else (100_000, 300_000):
            splits = make_data(num_heads)
            module, seconds = make_module(splits, new_heads(splits)), {"ours": [], "bare": []}
            through_lightning(module, -1)  # prepares it
            sides = {"ours": through_lightning, "bare": bare}
            for turn in range(turns):  # in reverse in every other one, as the machine's speed drifts
                for name, steps in list(sides.items())[:: -1 if turn % 2 else 1]:
                    seconds[name] += steps(module, num_steps + WARM_UP)
            ours, peer = (min(seconds[name]) for name in ("ours", "bare"))
            yield Row("Lightning loop", "bare loop", num_heads, ours, peer, "s", peer / ours, f"B={B} D={D}, AdamW, chunked")


if __name__ == "__main__":
    main(measure, __doc__ or "")
