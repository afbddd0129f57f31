"""Heads that are trained in chunks come out as those that are trained at once."""

import csv
import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from ovr.core.bundle import open_bundle
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.splits import make_splits
from ovr.errors import ConfigError
from ovr.loss.bce import Bce
from ovr.training.checkpoint import read_checkpoint
from ovr.training.large_k import check_large_k
from ovr.training.recipe import build_model
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe
from tests.training.test_run import StopAt, same_bits

pytestmark = pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")

NUM_HEADS = 6
IDS = [f"c{k}" for k in range(NUM_HEADS)]
HIDDEN = "backbone.hidden=[8]"
QUICK = ("trainer.max_epochs=3", "batch_size=16", "~callback.progress", "decision=multilabel")
SIZES = {"train": 90, "val": 41, "calib": 40, "test": 40}


def drawn(*, known=0.8):
    """Return splits of several labels a row, some of them unknown; the last class has no positive validation row."""
    rng = np.random.default_rng(0)
    weight_DK, parts = rng.normal(size=(3, NUM_HEADS)), {}
    for name, num_rows in SIZES.items():
        x = rng.normal(size=(num_rows, 3))
        target_NK = x @ weight_DK + rng.normal(size=(num_rows, NUM_HEADS)) > 0.5
        if name == "val":
            target_NK[:, -1] = False
        parts[name] = (x, Labels.from_dense(target_NK, rng.random((num_rows, NUM_HEADS)) < known))
    return make_splits(Taxonomy.from_ids(IDS), InputSchema((3,)), parts)


@pytest.fixture
def train(tmp_path):
    """Return a function that trains into a folder of this name and returns it; with `stop_at` it ends before that epoch."""

    def run(name, *overrides, splits=None, resume=False, stop_at=None, backbone=HIDDEN):
        run_dir = tmp_path / name
        recipe, _ = compose_recipe(run_dir, *QUICK, backbone, *overrides)
        splits = splits or drawn()
        if stop_at is None:
            run_training(recipe, splits, run_dir, resume=resume)
        else:
            with pytest.raises(RuntimeError, match="power cut"):
                run_training(replace(recipe, callbacks=[*recipe.callbacks, StopAt(stop_at)]), splits, run_dir)
        return run_dir

    return run


def checkpoint(run_dir, name="last"):
    return read_checkpoint(run_dir / "checkpoints" / f"{name}.ckpt")


def weights(run_dir, name="last"):
    return {key: value for key, value in checkpoint(run_dir, name)["state_dict"].items() if key.startswith("model.")}


def figures(run_dir, name):
    """Return what was logged by epoch."""
    with (run_dir / "metrics" / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def alike(a, b, *, tolerance=1e-5):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


CHUNKED = ("solver.head_step=chunked", "solver.chunk_heads=4")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("loss.pos_weight=auto", "optimizer=sgd", "optimizer.lr=0.5", "trainer.gradient_clip_val=0.1"),
        ("loss=focal", "loss.pos_weight={c1:3.0}", "optimizer=rowwise_adagrad"),
        pytest.param(("loss=asymmetric", "optimizer=rowwise_adam"), marks=pytest.mark.exhaustive),
        pytest.param(("loss=smoothed", "scheduler=constant"), marks=pytest.mark.exhaustive),
        ("loss=subsampled", "loss.negatives_per_positive=1000000"),
        ("sampler=class_balanced", "backbone.dropout=0.5"),
        ("head=mlp", "head.hidden=4"),
        ("backbone_grad=[c1,c4]",),
        pytest.param(("+trainer.limit_val_batches=2", "backbone_grad=[c1,c4]"), marks=pytest.mark.exhaustive),
        ("backbone_grad=none", "head=mlp", "head.hidden=4"),
    ],
    ids=" ".join,
)
def test_weights_and_figures_are_those_of_dense_training(train, overrides):
    dense, chunked = train("dense", *overrides), train("chunked", *CHUNKED, *overrides)
    alike(dense, chunked)
    for name in ("train/loss", "val/loss", "val/macro_ap"):
        np.testing.assert_allclose(figures(chunked, name), figures(dense, name), rtol=1e-5, err_msg=name)
    assert open_bundle(chunked / "bundle").taxonomy.ids == tuple(IDS)


def test_a_backbone_without_weights_needs_no_optimizer(train):
    dense, chunked = train("dense", backbone="backbone=identity"), train("chunked", *CHUNKED, backbone="backbone=identity")
    alike(dense, chunked)
    assert checkpoint(chunked)["global_step"] == checkpoint(dense)["global_step"]


def test_frozen_heads_keep_every_bit_and_all_frozen_ones_still_train_the_backbone(train):
    first = train("first", "trainer.max_epochs=1")
    for name, frozen in (("some", "[c0,c3]"), ("all", "[c0,c1,c2,c3,c4,c5]")):
        settings = [f"init_from={first / 'bundle'}", f"frozen_heads={frozen}", "backbone_grad=[c0,c1,c2]"]
        dense, chunked = train(f"{name}_dense", *settings), train(f"{name}_chunked", *CHUNKED, *settings)
        alike(dense, chunked)
        a, b = weights(dense), weights(chunked)
        assert all(torch.equal(a[key], b[key]) for key in a if "frozen" in key)


def test_the_heads_may_have_an_optimizer_of_their_own(train):
    whole = train("whole", *CHUNKED, "optimizer@head_optimizer=rowwise_adagrad", "head_optimizer.lr=0.1")
    states = checkpoint(whole)["head_step"]["states"]
    assert {name: list(state["tensors"]) for name, state in states.items()} == {"weight_KD": ["sum"], "bias_K": ["sum"]}
    assert checkpoint(whole)["optimizer_states"][1]["param_groups"][0]["betas"] == (0.9, 0.999)
    # A cosine over three epochs, for both.
    rates = [group["lr"] for state in checkpoint(whole)["optimizer_states"] for group in state["param_groups"]]
    np.testing.assert_allclose(rates, [0.0, 0.0], atol=1e-9)


@pytest.mark.parametrize(
    "overrides",
    [
        ("backbone.dropout=0.5",),
        ("solver.head_dtype=bfloat16", "optimizer=rowwise_adagrad"),
        ("backbone_grad=[c1,c4]", "head=mlp", "head.hidden=4", "loss=subsampled", "loss.negatives_per_positive=1"),
    ],
    ids=" ".join,
)
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(train, overrides):
    whole = train("whole", *CHUNKED, *overrides)
    broken = train("broken", *CHUNKED, *overrides, stop_at=1)
    assert checkpoint(broken)["epoch"] == 0
    train("broken", *CHUNKED, *overrides, resume=True)
    for name in ("last", "best"):
        assert same_bits(weights(whole, name), weights(broken, name))
    dtypes = {key: value.dtype for key, value in weights(whole).items() if "head.weight" in key}
    assert all((dtype == torch.bfloat16) == ("solver.head_dtype=bfloat16" in overrides) for dtype in dtypes.values())


def test_a_checkpoint_knows_nothing_of_chunks(train):
    whole = train("whole", *CHUNKED)
    broken = train("broken", *CHUNKED, stop_at=1)
    train("broken", "solver.head_step=chunked", "solver.chunk_heads=1", resume=True)
    alike(whole, broken, tolerance=1e-6)


def test_a_checkpoint_of_the_other_kind_is_refused(train):
    for kind, other in (("dense", "chunked"), ("chunked", "dense")):
        train(kind, f"solver.head_step={kind}", stop_at=1)
        with pytest.raises(ConfigError, match=f"go on with solver.head_step={kind}"):
            train(kind, f"solver.head_step={other}", resume=True)


def test_the_true_loss_is_logged_of_every_nth_step_and_changes_nothing(train):
    every, some = train("every", *CHUNKED), train("some", *CHUNKED, "solver.loss_every=4")
    assert same_bits(weights(every), weights(some))
    assert figures(every, "train/loss") != figures(some, "train/loss")
    assert figures(every, "val/loss") == figures(some, "val/loss")


def test_products_in_bfloat16_come_near(train):
    exact, mixed = train("exact", *CHUNKED), train("mixed", *CHUNKED, "trainer.precision=bf16-mixed")
    half = train("half", *CHUNKED, "trainer.precision=bf16-true")
    for other in (mixed, half):
        np.testing.assert_allclose(figures(other, "val/loss"), figures(exact, "val/loss"), rtol=0.05)
    assert not same_bits(weights(exact), weights(mixed))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+trainer.accumulate_grad_batches=2",
            "trainer.accumulate_grad_batches=2 cannot be used with heads that are trained in chunks",
        ),
        ("trainer.precision=64-true", "trainer.precision=64-true cannot be used .* expected 32-true or bf16-mixed or bf16-true"),
        ("+trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_algorithm=value cannot be used"),
        (
            "optimizer._target_=torch.optim.Adafactor ~optimizer.betas ~optimizer.fused",
            "the optimizer Adafactor cannot be applied in chunks",
        ),
        ("loss._target_=tests.training.test_chunked.Margin allow_targets=[tests.]", "the loss Margin cannot be computed in chunks"),
        ("head=mlp solver.head_dtype=bfloat16", "keeps heads in bfloat16, which head=linear alone can; got head=mlp"),
        ("solver.head_dtype=float16", "solver.head_dtype is 'float16'; expected 'float32' or 'bfloat16'"),
        ("solver.chunk_heads=0", "solver.chunk_heads must be a whole number of at least 1, got 0"),
        ("solver.head_step=often", "solver.head_step is 'often'; expected 'auto' or 'dense' or 'chunked'"),
        ("solver.head_step=auto solver.loss_every=2", "these 6 are trained at once; add solver.head_step=chunked"),
        ("solver.head_step=auto optimizer@head_optimizer=sgd", "these 6 are trained at once; add solver.head_step=chunked"),
        (
            "trainer=ddp trainer.accelerator=cpu trainer.devices=7 trainer.precision=32-true",
            "7 processes cannot share 6 heads; use fewer trainer.devices",
        ),
    ],
)
def test_what_updating_in_place_rules_out_stops_a_run_before_it_writes(tmp_path, train, override, message):
    overrides = [] if "head_step" in override else ["solver.head_step=chunked"]
    with pytest.raises(ConfigError, match=message):
        train("run", *overrides, *override.split(" "))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_so_many_heads_are_trained_in_chunks_by_themselves(tmp_path):
    """12,000 heads, one row of each in the training split."""
    rng = np.random.default_rng(0)
    centre_CD, parts = rng.normal(size=(50, 8)), {}
    for name, num_rows in {"train": 12_000, "val": 100, "calib": 100, "test": 100}.items():
        column_N = np.arange(num_rows) if name == "train" else rng.integers(12_000, size=num_rows)
        x = centre_CD[column_N % 50] + 0.1 * rng.normal(size=(num_rows, 8))
        parts[name] = (x, Labels.from_columns(column_N, num_heads=12_000))
    splits = make_splits(Taxonomy.from_ids([f"c{k}" for k in range(12_000)]), InputSchema((8,)), parts)
    recipe, _ = compose_recipe(
        tmp_path, "backbone=identity", "decision=multilabel", "trainer.max_epochs=1", "batch_size=1000", "allow_small_classes=true"
    )
    result = run_training(recipe, splits, tmp_path)
    assert sorted(checkpoint(tmp_path)["head_step"]["states"]) == ["bias_K", "weight_KD"]
    assert len(open_bundle(tmp_path / "bundle").heads) == 12_000
    assert max(result.max_abs_diff.values()) <= 1e-5
    # A row's class is one of the 240 of its centre: were nothing learnt, the average precision would be 1 / 100.
    assert result.val_macro_ap > 0.015


def test_the_heads_of_the_fit_are_gone_before_those_of_the_best_epoch_are_made(train, monkeypatch):
    made, alive = [], []

    def watched(recipe, splits):
        alive.append(sum(reference() is not None for reference in made))
        model = build_model(recipe, splits)
        made.append(weakref.ref(model.head))
        return model

    monkeypatch.setattr("ovr.training.sgd.build_model", watched)
    for kind in ("dense", "chunked"):
        train(kind, f"solver.head_step={kind}", "trainer.max_epochs=1")
        gc.collect()
    assert alive == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "16-mixed"}, "trainer.precision=16-mixed cannot be used with heads that are trained in chunks"),
        ({"strategy": FSDPStrategy()}, "trainer.strategy FSDPStrategy cannot be used .*; with trainer=ddp each process has"),
    ],
)
def test_what_only_a_gpu_could_start_is_refused_too(tmp_path, changes, message):
    recipe, _ = compose_recipe(tmp_path, *QUICK, HIDDEN)
    settings = {"accumulate_grad_batches": 1, "precision": "32-true", "gradient_clip_algorithm": None, "world_size": 1}
    with pytest.raises(ConfigError, match=message):
        check_large_k(recipe, SimpleNamespace(**{**settings, **changes}), Bce(IDS, pos_weight=None), None, in_bfloat16=False)


class Margin(torch.nn.Module):
    """A loss that does not say that it can be taken apart by heads."""

    def __init__(self, class_ids, *, counts, **settings):
        super().__init__()
