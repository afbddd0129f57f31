"""What is said of a step that gave NaN or infinity: where, in which heads, on which rows, and what to go on from.

N = rows, B = batch, K = heads
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from ovr.core.files import write_file
from ovr.data.splits import Splits
from ovr.errors import TrainingError
from ovr.model import OvrModel
from ovr.training.ranks import Ranks

log = logging.getLogger(__name__)

SHOWN = 10
EXTREME = 1000.0  # times the median over the rows of the largest normalised value
DIVERGED = "diverged.json"  # in the run directory: what the message has no room for


@dataclass(frozen=True, slots=True)
class Findings:
    """What one rank found in a step: columns of the heads with NaN or infinity, and its rows, by their numbers in the training
    split: all of them, those with something that is not finite, by what it is, and those with a value far from the others."""

    columns: list[int]
    rows: list[int]
    not_finite: dict[str, list[int]] = field(default_factory=dict)  # "features" or "loss" -> rows
    far: dict[int, float] = field(default_factory=dict)  # row -> its largest normalised value


@torch.no_grad()
def findings(model: OvrModel, x: Tensor, row_B: Tensor, columns: Sequence[int]) -> Findings:
    """Return which of the rows stand out: by features that are not finite, or by values far from those of the others."""
    was_training = model.training
    normal_B = model.normalizer(x).double().flatten(1).abs().amax(1)
    model.eval()
    bad_B = ~model.features(x).isfinite().flatten(1).all(1)
    model.train(was_training)
    far_B = ~(normal_B <= EXTREME * normal_B.median().clamp(min=1e-12))
    far = dict(zip(row_B[far_B].tolist(), normal_B[far_B].tolist(), strict=True))
    return Findings(list(columns), row_B.tolist(), {"features": row_B[bad_B].tolist()}, far)


def step_error(trainer: Trainer, splits: Splits, own: Findings, *, step: int, what: str) -> TrainingError:
    """Return the error of a step on every rank, put together from what each found; the first writes all of it to `DIVERGED`.

    Every rank must call it.

    Args:
        own: what this rank found.
        step: the number of the step in its epoch.
        what: the figures that are not finite, such as "the loss is nan".
    """
    found = Ranks(trainer.global_rank, trainer.world_size).objects(own)
    taxonomy, path = splits.taxonomy, Path(trainer.default_root_dir) / DIVERGED
    ids = [taxonomy[k].id for k in sorted({column for one in found for column in one.columns})]
    rows = [row for one in found for row in one.rows]
    parts = [f"epoch {trainer.current_epoch}, step {step} ({what})"]
    if ids:
        parts.append(f"in {len(ids)} of {len(taxonomy)} heads: {_listed([repr(class_id) for class_id in ids])}")
    parts.append(f"the batch has the training rows {_listed(rows)}")
    if said := _said(found):
        parts.append(_listed(said))
    record = {
        "schema_version": 1,
        "epoch": trainer.current_epoch,
        "step": step,
        "what": what,
        "heads": ids,
        "rows": rows,
        **_places(splits, rows),
        "rows_not_finite": {
            name: sorted({row for one in found for row in one.not_finite[name]}) for name in sorted(found[0].not_finite)
        },
        "rows_far_from_the_others": sorted({row for one in found for row in one.far}),
    }
    if not trainer.is_global_zero or _written(path, record):
        parts.append(f"{path} lists all of them")
    return _error(trainer, "; ".join(parts), "lower optimizer.lr, or look at these rows")


def training_error(trainer: Trainer, *, what: str) -> TrainingError:
    """Return the error of figures that are not finite and belong to no step, such as "the weights after epoch 3"."""
    return _error(trainer, what, "lower optimizer.lr")


def forget(run_dir: Path) -> None:
    """Remove what an earlier fit into `run_dir` wrote of a step: what is there tells of the last fit."""
    (run_dir / DIVERGED).unlink(missing_ok=True)


def check_weights(trainer: Trainer, model: OvrModel) -> None:
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
        raise training_error(trainer, what=f"the weights after epoch {trainer.current_epoch}")


def _error(trainer: Trainer, where: str, advice: str) -> TrainingError:
    run_dir = Path(trainer.default_root_dir)
    last = run_dir / "checkpoints" / "last.ckpt"
    if last.is_file():
        advice += f"; {last} is the last good checkpoint, and resume={run_dir} optimizer.lr=... goes on from it"
    return TrainingError(f"NaN or infinity in {where}; {advice}")


def _said(found: Sequence[Findings]) -> list[str]:
    """Return what can be told of rows, in words."""
    bad = {row for one in found for row in one.not_finite.get("features", [])}
    far = {row: value for one in found for row, value in one.far.items()}
    rows = dict.fromkeys(row for one in found for row in one.rows)
    every = bad.issuperset(rows)
    said = []
    for row in rows:
        if row in far:
            said.append(f"row {row} has a normalised value of {far[row]:.3g}, far from the others")
        elif row in bad and not every:
            said.append(f"row {row} has features that are not finite")
    return [*said, "the features of every row are not finite"] if every else said


def _places(splits: Splits, rows: Sequence[int]) -> dict[str, list[Any]]:
    """Return where the rows are in what they were read from, as far as their source tells."""
    places: dict[str, list[Any]] = {}
    if (number_N := splits.origin.row_numbers.get("train")) is not None:
        places["source_rows"] = [int(number_N[row]) for row in rows]
    if (where := splits.origin.where.get("train")) is not None:
        places["where"] = [where(row) for row in rows]
    return places


def _written(path: Path, record: dict[str, Any]) -> bool:
    try:
        write_file(path, json.dumps(record, indent=1, allow_nan=False).encode())
    except OSError as error:  # such as a full disk: the run ends with its own error
        log.warning("%s is not written: %s", path, error.strerror or error)
        return False
    return True


def _listed(values: Sequence[Any]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more
