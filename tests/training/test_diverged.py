"""NaN and infinity stop a run where they come up, say what can be told, and leave the last checkpoint as it was."""

import re
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch

from ovr.data.splits import Splits, make_splits
from ovr.errors import TrainingError
from ovr.training.checkpoint import read_checkpoint
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
    assert run_training(recipe, drawn(), tmp_path, resume=True) is not None
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
    assert f"training rows {', '.join(map(str, Break.rows[:10]))} and 6 more; lower optimizer.lr" in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_far_from_all_others_is_named(tmp_path, kind):
    splits: Splits = drawn()
    parts = {name: (getattr(splits, name).x, getattr(splits, name).labels) for name in ("train", "val", "calib", "test")}
    parts["train"][0][37, 1] = 3e38
    splits = make_splits(splits.taxonomy, splits.input, parts)
    recipe, _ = compose_recipe(tmp_path, *QUICK, HIDDEN, kind, "data.normalize=none")
    with pytest.raises(TrainingError, match=r"row 37 has a normalised value of 3e\+38, far from the others"):
        run_training(recipe, splits, tmp_path)


def test_a_checkpoint_that_is_not_there_is_not_spoken_of(tmp_path):
    recipe, _ = compose_recipe(tmp_path, *QUICK, HIDDEN, "optimizer.lr=1e30")
    with pytest.raises(TrainingError, match=r"lower optimizer\.lr, or look at these rows$"):
        run_training(recipe, drawn(), tmp_path)
    with pytest.raises(Exception, match="does not exist"):
        read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
