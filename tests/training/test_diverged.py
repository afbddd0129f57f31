"""NaN and infinity stop a run where they come up, say what can be told, and leave the last checkpoint as it was."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch

from ovr.core.taxonomy import Taxonomy
from ovr.data.origin import Origin
from ovr.data.splits import Splits, make_splits
from ovr.errors import TrainingError
from ovr.training.checkpoint import read_checkpoint
from ovr.training.diverged import Findings, step_error
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe
from tests.training.test_chunked import HIDDEN, QUICK, checkpoint, drawn

pytestmark = pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")

KINDS = ("solver.head_step=dense", "solver.head_step=chunked")


class Rate(lightning.Callback):
    """Sets every learning rate at a step of the second epoch, and keeps the bytes of the last checkpoint by then."""

    def __init__(self, rate, *, step):
        self.rate, self.step = rate, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, self.step):
            self.before = (Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt").read_bytes()
            for optimizer in trainer.optimizers:
                optimizer.param_groups[0]["lr"] = self.rate


@pytest.mark.parametrize("step", [1, 5], ids=["in the epoch", "in its last step"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_checkpoint_stays_good_and_is_gone_on_from_at_a_lower_rate(tmp_path, kind, step):
    spoil = Rate(1e38, step=step)
    recipe, _ = compose_recipe(tmp_path, *QUICK, HIDDEN, kind)
    with pytest.raises(TrainingError) as caught:
        run_training(replace(recipe, callbacks=[*recipe.callbacks, spoil]), drawn(), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    where = r"epoch 1, step 2" if step == 1 else r"the validation after epoch 1"
    assert re.search(rf"^NaN or infinity in {where}", str(caught.value)), caught.value
    assert f"{last} is the last good checkpoint, and resume={tmp_path} optimizer.lr=... goes on from it" in str(caught.value)
    assert last.read_bytes() == spoil.before
    assert checkpoint(tmp_path)["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint(tmp_path, "best")["state_dict"].values())
    recipe, _ = compose_recipe(tmp_path, *QUICK, HIDDEN, kind, "optimizer.lr=0.0004")
    assert (tmp_path / "diverged.json").exists() == (step == 1)
    assert run_training(recipe, drawn(), tmp_path, resume=True) is not None
    assert not (tmp_path / "diverged.json").exists()
    groups = [group for state in checkpoint(tmp_path)["optimizer_states"] for group in state["param_groups"]]
    assert {group["initial_lr"] for group in groups} == {0.0004}


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_without_validation_leaves_no_bad_checkpoint_either(tmp_path, kind):
    spoil = Rate(3e38, step=5)
    recipe, _ = compose_recipe(tmp_path, *QUICK, HIDDEN, kind, "+trainer.check_val_every_n_epoch=3")
    with pytest.raises(
        TrainingError, match=r"^NaN or infinity in the weights after epoch 1; .*last\.ckpt is the last good checkpoint"
    ):
        run_training(replace(recipe, callbacks=[*recipe.callbacks, spoil]), drawn(), tmp_path)
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == spoil.before
    assert all(value.isfinite().all() for value in checkpoint(tmp_path)["state_dict"].values())


class Settings(lightning.Callback):
    """Keeps rate and weight decay of every optimizer in each epoch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            groups = [optimizer.param_groups[0] for optimizer in trainer.optimizers]
            self.seen.append([(group["lr"], group["weight_decay"]) for group in groups])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("whole", "first"),
    [
        ("optimizer.lr=0.002", "optimizer.lr=0.02 scheduler.T_max=3"),
        ("trainer.max_epochs=3", "trainer.max_epochs=1"),
        pytest.param("optimizer.weight_decay=0.3", "optimizer.weight_decay=0.1 scheduler.T_max=3", marks=pytest.mark.exhaustive),
        ("scheduler.eta_min=0.001", "scheduler.eta_min=0 scheduler.T_max=3"),
    ],
)
def test_a_resumed_run_has_the_settings_of_one_that_had_them_all_along(tmp_path, kind, whole, first):
    """A cosine, from the second of three epochs on."""

    def run(name, overrides, *, resume=False):
        recipe, _ = compose_recipe(tmp_path / name, *QUICK, HIDDEN, kind, *overrides.split(" "))
        settings = Settings()
        run_training(replace(recipe, callbacks=[*recipe.callbacks, settings]), drawn(), tmp_path / name, resume=resume)
        return settings.seen

    expected = run("whole", whole)
    run("broken", f"{first} trainer.max_epochs=1" if "max_epochs" not in first else first)
    (tmp_path / "broken" / "bundle").rename(tmp_path / "bundle")
    assert run("broken", whole, resume=True) == expected[1:]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", [*KINDS, "solver.head_step=chunked solver.loss_every=4"])
def test_heads_that_are_not_finite_are_named_and_so_are_the_rows_of_the_batch(tmp_path, kind, value):
    class Break(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 3:
                Break.rows = batch[-1].tolist()
                with torch.no_grad():
                    pl_module.model.head.bias_K[[1, 4]] = value

    recipe, _ = compose_recipe(tmp_path, *QUICK, HIDDEN, *kind.split(" "))
    with pytest.raises(
        TrainingError, match=r"epoch 0, step 3 .*; in 2 of 6 heads: 'c1', 'c4'; the batch has the training rows"
    ) as caught:
        run_training(replace(recipe, callbacks=[*recipe.callbacks, Break()]), drawn(known=2.0), tmp_path)
    written = tmp_path / "diverged.json"
    said = f"training rows {', '.join(map(str, Break.rows[:10]))} and 6 more; {written} lists all of them; lower optimizer.lr"
    assert said in str(caught.value)
    record = json.loads(written.read_text())
    assert (record["epoch"], record["step"], record["heads"], record["rows"]) == (0, 3, ["c1", "c4"], Break.rows)
    assert record["rows_not_finite"].get("loss", sorted(Break.rows)) == sorted(Break.rows)
    assert record["rows_not_finite"]["features"] == []
    assert not (tmp_path / "checkpoints").exists()


def with_a_far_row() -> Splits:
    """Return splits whose training row 37 overflows in the first layer."""
    splits: Splits = drawn()
    parts = {name: (getattr(splits, name).x, getattr(splits, name).labels) for name in ("train", "val", "calib", "test")}
    parts["train"][0][37, 1] = 3e38
    return make_splits(splits.taxonomy, splits.input, parts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_far_from_all_others_is_named(tmp_path, kind):
    recipe, _ = compose_recipe(tmp_path, *QUICK, HIDDEN, kind, "data.normalize=none")
    with pytest.raises(TrainingError, match=r"row 37 has a normalised value of 3e\+38, far from the others"):
        run_training(recipe, with_a_far_row(), tmp_path)
    record = json.loads((tmp_path / "diverged.json").read_text())
    assert 37 in record["rows"]
    assert record["rows_far_from_the_others"] == [37]
    assert record["rows_not_finite"] == {"features": [37]} | ({"loss": [37]} if "dense" in kind else {})


def test_the_file_lists_what_the_message_has_no_room_for_and_where_the_rows_were_read(tmp_path):
    ids, numbers = [f"c{k:02}" for k in range(40)], np.arange(100)[::-1]
    origin = Origin(row_numbers={"train": numbers}, where={"train": lambda row: f"rows.csv, row {numbers[row]}"})
    splits = SimpleNamespace(taxonomy=Taxonomy.from_ids(ids), origin=origin)
    trainer = SimpleNamespace(global_rank=0, world_size=1, is_global_zero=True, current_epoch=2, default_root_dir=tmp_path)
    rows = list(range(20, 50))
    far = Findings(list(range(5, 35)), rows, {"features": rows[1:]}, dict.fromkeys(rows[:12], torch.inf))
    message = str(step_error(trainer, splits, far, step=7, what="the loss is nan"))
    assert len(message) < 1500
    assert "'c14' and 20 more" in message
    record = json.loads((tmp_path / "diverged.json").read_text(), parse_constant=pytest.fail)
    assert record == {
        "schema_version": 1,
        "epoch": 2,
        "step": 7,
        "what": "the loss is nan",
        "heads": ids[5:35],
        "rows": rows,
        "source_rows": [99 - row for row in rows],
        "where": [f"rows.csv, row {99 - row}" for row in rows],
        "rows_not_finite": {"features": rows[1:]},
        "rows_far_from_the_others": rows[:12],
    }


def test_a_file_that_cannot_be_written_is_not_spoken_of_and_hides_no_error(tmp_path):
    (tmp_path / "diverged.json").mkdir()
    trainer = SimpleNamespace(global_rank=0, world_size=1, is_global_zero=True, current_epoch=0, default_root_dir=tmp_path)
    error = step_error(trainer, drawn(), Findings([1], [3, 4]), step=0, what="the loss is nan")
    assert str(error) == (
        "NaN or infinity in epoch 0, step 0 (the loss is nan); in 1 of 6 heads: 'c1'; the batch has the training rows 3, 4; "
        "lower optimizer.lr, or look at these rows"
    )


def test_a_checkpoint_that_is_not_there_is_not_spoken_of(tmp_path):
    recipe, _ = compose_recipe(tmp_path, *QUICK, HIDDEN, "optimizer.lr=1e30")
    with pytest.raises(TrainingError, match=r"lower optimizer\.lr, or look at these rows$"):
        run_training(recipe, drawn(), tmp_path)
    with pytest.raises(Exception, match="does not exist"):
        read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
