"""What is said of a step that gave NaN or infinity: where, in which heads, on which rows, and what to go on from.

N = rows, B = batch, K = heads
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from ovr.core.taxonomy import Taxonomy
from ovr.errors import TrainingError
from ovr.model import OvrModel

SHOWN = 10
EXTREME = 1000.0  # times the median over the rows of the largest normalised value


@dataclass(frozen=True, slots=True)
class Findings:
    """Columns of the heads with NaN or infinity, and what can be told of rows, in words."""

    columns: list[int]
    rows: list[str]


@torch.no_grad()
def findings(model: OvrModel, x: Tensor, row_B: Tensor, columns: Sequence[int]) -> Findings:
    """Return which of the rows stand out: by features that are not finite, or by values far from those of the others."""
    was_training = model.training
    normal_B = model.normalizer(x).double().flatten(1).abs().amax(1)
    model.eval()
    bad_B = ~model.features(x).isfinite().flatten(1).all(1)
    model.train(was_training)
    far_B = ~(normal_B <= EXTREME * normal_B.median().clamp(min=1e-12))
    said = []
    for row, bad, far, normal in zip(row_B.tolist(), bad_B.tolist(), far_B.tolist(), normal_B.tolist(), strict=True):
        if far:
            said.append(f"row {row} has a normalised value of {normal:.3g}, far from the others")
        elif bad and not bool(bad_B.all()):
            said.append(f"row {row} has features that are not finite")
    if bool(bad_B.all()):
        said.append("the features of every row are not finite")
    return Findings(list(columns), said)


def training_error(
    trainer: Trainer, taxonomy: Taxonomy, found: Sequence[Findings], *, what: str, row_B: Tensor | None = None
) -> TrainingError:
    """Return the error, put together from what each rank found.

    Args:
        what: the figures that are not finite, such as "the loss of epoch 3, step 7".
        row_B: the rows of the batch, by their numbers in the training split.
    """
    parts = [f"NaN or infinity in {what}"]
    columns = sorted({column for one in found for column in one.columns})
    if columns:
        parts.append(f"in {len(columns)} of {len(taxonomy)} heads: {_listed([repr(taxonomy[k].id) for k in columns])}")
    if row_B is not None:
        parts.append(f"the batch has the training rows {_listed(row_B.tolist())}")
    if rows := [row for one in found for row in one.rows]:
        parts.append(_listed(list(dict.fromkeys(rows))))
    run_dir = Path(trainer.default_root_dir)
    last = run_dir / "checkpoints" / "last.ckpt"
    advice = "lower optimizer.lr, or look at these rows" if row_B is not None else "lower optimizer.lr"
    if last.is_file():
        advice += f"; {last} is the last good checkpoint, and resume={run_dir} optimizer.lr=... goes on from it"
    return TrainingError("; ".join([*parts, advice]))


def check_weights(trainer: Trainer, model: OvrModel, taxonomy: Taxonomy) -> None:
    """Raise TrainingError, on all ranks, where a weight of any rank is NaN or infinite: such a checkpoint is not to be written."""
    # Not the state dict, for which sharded weights would be gathered.
    kept = (
        value
        for module in model.modules()
        for name, value in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    )
    values = [value.detach() for value in (*model.parameters(), *kept) if value.is_floating_point() and value.numel()]
    # Unlike isfinite, extremes take no array of the weights' size; NaN is both of them.
    bad = not all(extreme.isfinite() for value in values for extreme in value.aminmax())
    flag = torch.tensor(float(bad), device=trainer.strategy.root_device)
    if trainer.strategy.reduce(flag, reduce_op="sum"):
        raise training_error(trainer, taxonomy, [], what=f"the weights after epoch {trainer.current_epoch}")


def _listed(values: Sequence[Any]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more
