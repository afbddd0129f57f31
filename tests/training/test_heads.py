"""Frozen heads and heads without a say in the backbone, through whole runs."""

import logging
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from ovr.core.bundle import open_bundle
from ovr.errors import ArtifactError, ConfigError
from ovr.export.head import head_constants
from ovr.training.recipe import build_model
from ovr.training.run import run_training
from tests.training.conftest import QUICK, compose_recipe
from tests.training.test_run import StopAt, same_bits, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")

IDS = ["x/y", "..", "train"]  # columns: "..", "train", "x/y"


@pytest.fixture(scope="module")
def table(tmp_path_factory, write_table):
    return write_table(tmp_path_factory.mktemp("table") / "rows.csv", IDS * 60)


@pytest.fixture(scope="module")
def train_into(table):
    """Return a function that trains into a folder; with `stop_at` it ends at the start of that epoch, without a bundle."""

    def run(run_dir, *overrides, resume=False, stop_at=None):
        recipe, splits = compose_recipe(run_dir, "data=table", "data.target=label", *QUICK, f"data.path={table}", *overrides)
        if stop_at is None:
            run_training(recipe, splits, run_dir, resume=resume)
        else:
            with pytest.raises(RuntimeError, match="power cut"):
                run_training(replace(recipe, callbacks=[*recipe.callbacks, StopAt(stop_at)]), splits, run_dir)
        return run_dir

    return run


@pytest.fixture
def train(tmp_path, train_into):
    return lambda name, *overrides, **how: train_into(tmp_path / name, *overrides, **how)


@pytest.fixture(scope="module")
def first(tmp_path_factory, train_into):
    """Return a function that gives a finished run with this kind of head."""
    return cache(lambda head: train_into(tmp_path_factory.mktemp(head) / "run", f"head={head}", "trainer.max_epochs=1"))


def exported(run_dir, class_id):
    """The weights in a head's file, without its calibration."""
    bundle = open_bundle(run_dir / "bundle")
    _, constants = head_constants(onnx.load(bundle.head_onnx(bundle.heads[bundle.taxonomy.column(class_id)])))
    return {name: value for name, value in constants.items() if name not in ("scale", "calibration_bias")}


def moved(before, after):
    return {
        class_id: not all(
            np.array_equal(a, b)
            for a, b in zip(exported(before, class_id).values(), exported(after, class_id).values(), strict=True)
        )
        for class_id in IDS
    }


@pytest.mark.parametrize(("head", "optimizer"), [("linear", "sgd"), ("mlp", "adamw")])
def test_frozen_heads_come_out_of_a_run_with_every_bit(train, first, head, optimizer):
    before = first(head)
    settings = [f"head={head}", f"optimizer={optimizer}", "optimizer.weight_decay=0.1", "trainer.max_epochs=2"]
    after = train("again", *settings, f"init_from={before / 'bundle'}", "frozen_heads=[x/y,'..']")
    assert moved(before, after) == {"x/y": False, "..": False, "train": True}
    assert open_bundle(before / "bundle").backbone_sha256 != open_bundle(after / "bundle").backbone_sha256


@pytest.mark.parametrize("head_step", ["dense", "chunked"])
def test_a_precision_that_rounds_frozen_heads_is_refused(tmp_path, train, first, head_step):
    settings = [f"init_from={first('linear') / 'bundle'}", "frozen_heads=[train]", f"solver.head_step={head_step}"]
    with pytest.raises(ConfigError, match="precision=bf16-true rounds every weight, and frozen_heads keep every bit"):
        train("again", *settings, "trainer.precision=bf16-true")


def test_heads_with_no_say_leave_the_backbone_with_every_bit(train, first):
    before = first("linear")
    settings = ["backbone.dropout=0.5", "trainer.max_epochs=2", "backbone_grad=none"]
    after = train("again", *settings, f"init_from={before / 'bundle'}", "frozen_heads=[train]")
    a, b = open_bundle(before / "bundle"), open_bundle(after / "bundle")
    assert a.backbone_onnx.read_bytes() == b.backbone_onnx.read_bytes()
    assert moved(before, after) == {"x/y": True, "..": True, "train": False}


def test_a_fixed_backbone_keeps_its_running_statistics(tmp_path, configure):
    overrides = ["data=digits", "data.source.layout=image", "backbone=cnn", "backbone.channels=[4]", "backbone.width=8"]
    overrides += ["trainer.max_epochs=1", "~callback.progress", "backbone_grad=none", "batch_size=256"]
    recipe, splits = compose_recipe(tmp_path, *overrides)
    torch.manual_seed(0)
    drawn = {name: value for name, value in build_model(recipe, splits).state_dict().items() if "running" in name}
    run_training(recipe, splits, tmp_path)
    kept = weights(tmp_path)
    assert drawn
    assert all(torch.equal(kept[f"model.{name}"], value) for name, value in drawn.items())


def test_a_backbone_that_nothing_trains_says_so(train, caplog):
    with caplog.at_level(logging.WARNING, logger="ovr"):
        train("run", "backbone_grad=none", stop_at=1)
    assert "the backbone keeps the weights that were drawn for it" in caplog.text


def test_all_heads_frozen_trains_the_backbone_under_them(train, first):
    before = first("linear")
    after = train("again", f"init_from={before / 'bundle'}", "frozen_heads=[x/y,'..',train]", "trainer.max_epochs=2")
    assert not any(moved(before, after).values())
    assert open_bundle(before / "bundle").backbone_sha256 != open_bundle(after / "bundle").backbone_sha256


# One step of plain SGD with lr 1: what moved is the clipped gradient.
CLIPPED = ["optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0"]
CLIPPED += ["batch_size=1000", "scheduler=constant", "seed=3", "trainer.gradient_clip_val=0.001"]


def moved_weights(recipe, splits, run_dir):
    """Return what the first step of the run in `run_dir` added to each weight."""
    after = weights(run_dir)
    torch.manual_seed(3)
    return {name: (after[f"model.{name}"] - value).double() for name, value in build_model(recipe, splits).state_dict().items()}


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_each_head_and_the_backbone_are_clipped_on_their_own(tmp_path, train, table, head, algorithm):
    settings = [f"head={head}", *CLIPPED, f"+trainer.gradient_clip_algorithm={algorithm}"]
    recipe, splits = compose_recipe(tmp_path, "data=table", "data.target=label", *QUICK, f"data.path={table}", *settings)
    step = moved_weights(recipe, splits, train("run", *settings, stop_at=1))
    by_head = [value.reshape(3, -1) for name, value in step.items() if name.startswith("head.")]
    backbone = torch.cat([value.flatten() for name, value in step.items() if name.startswith("backbone.")])
    if algorithm == "value":
        assert max(float(value.abs().max()) for value in step.values()) == pytest.approx(0.001, rel=1e-3)
    else:
        assert torch.cat(by_head, dim=1).norm(dim=1).tolist() == pytest.approx([0.001] * 3, rel=1e-2)
        assert float(backbone.norm()) == pytest.approx(0.001, rel=1e-2)


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_are_clipped_head_by_head_too(tmp_path, table, fused):
    """trainer.precision=16-mixed, whose scaler Lightning gives to GPUs alone; a fused optimizer's gradients are still scaled."""
    settings = [*CLIPPED, f"+optimizer.fused={fused}", f"data.path={table}"]
    recipe, splits = compose_recipe(tmp_path, "data=table", "data.target=label", *QUICK, *settings)

    def trainer(*, plugins, **how):
        scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
        return recipe.trainer(plugins=[*plugins, scaled], precision=None, **how)

    with pytest.raises(RuntimeError, match="power cut"):
        run_training(replace(recipe, trainer=trainer, callbacks=[*recipe.callbacks, StopAt(1)]), splits, tmp_path)
    step = moved_weights(recipe, splits, tmp_path)
    by_head = torch.cat([value.reshape(3, -1) for name, value in step.items() if name.startswith("head.")], dim=1)
    backbone = torch.cat([value.flatten() for name, value in step.items() if name.startswith("backbone.")])
    assert [*by_head.norm(dim=1).tolist(), float(backbone.norm())] == pytest.approx([0.001] * 4, rel=1e-2)


@pytest.mark.parametrize("backbone_grad", ["none", "['..',x/y]"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_head_without_a_say_changes_no_bit_of_the_others(train, head, backbone_grad):
    """Its loss is another and thousands of times larger; gradients are clipped by norm, as they are by default."""
    runs = [
        train(f"run {weight}", f"head={head}", f"backbone_grad={backbone_grad}", f"loss.pos_weight={{train:{weight}}}", stop_at=2)
        for weight in (1, 5000)
    ]
    states = [{name: value for name, value in weights(run).items() if name.startswith("model.")} for run in runs]
    loud = "groups.trained_stopped." if backbone_grad != "none" else None
    for name, value in states[0].items():
        other = states[1][name]
        if loud is None and ".head." in name:  # all three heads in one group, "train" the second
            value, other = value.unflatten(0, (3, -1)), other.unflatten(0, (3, -1))
            assert not torch.equal(value[1], other[1]), name
            value, other = value[[0, 2]], other[[0, 2]]
        assert torch.equal(value, other) == (loud is None or loud not in name), name


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_resumed_run_with_frozen_heads_gives_what_an_uninterrupted_one_gives(tmp_path, train, first, head):
    bundle = tmp_path / "bundle"
    shutil.copytree(first(head) / "bundle", bundle)
    settings = [f"head={head}", f"init_from={bundle}", "frozen_heads=[train]", "backbone_grad=[train,'..']", "backbone.dropout=0.5"]
    whole = train("whole", *settings, "trainer.max_epochs=3")
    broken = train("broken", *settings, "trainer.max_epochs=3", stop_at=1)
    shutil.rmtree(bundle)  # a checkpoint holds all that a resumed run needs
    train("broken", *settings, "trainer.max_epochs=3", resume=True)
    assert same_bits(weights(whole), weights(broken))
    assert not any(moved(whole, broken).values())
    assert moved(first(head), broken) == {"x/y": True, "..": True, "train": False}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("frozen_heads=[x/y]", r"keeps its frozen_heads: the checkpoint has \['train'\], the configuration \['x/y'\]"),
        ("backbone_grad=none", "keeps its backbone_grad: the checkpoint has all, the configuration none"),
    ],
)
def test_a_resumed_run_cannot_treat_heads_otherwise(train, first, override, message):
    settings = [f"init_from={first('linear') / 'bundle'}", "frozen_heads=[train]"]
    broken = train("broken", *settings, stop_at=1)
    before = weights(broken)
    with pytest.raises(ConfigError, match=message):
        train("broken", *settings, override, resume=True)
    assert same_bits(before, weights(broken))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["frozen_heads=[train]"], ConfigError, r"frozen_heads keep the weights of an earlier bundle: add init_from=BUNDLE"),
        (["frozen_heads=[z]"], ConfigError, r"frozen_heads names classes \['z'\]"),
        (["backbone_grad=[z]"], ConfigError, r"backbone_grad names classes \['z'\]"),
        (["init_from=nowhere"], ArtifactError, "nowhere is not a bundle"),
        (
            ["init_from=nowhere", "frozen_heads=[train,'..',x/y]", "backbone_grad=none"],
            ConfigError,
            "nothing is left to train: every head is in frozen_heads, and the backbone is fixed by backbone_grad=none",
        ),
    ],
)
def test_settings_that_cannot_be_followed_stop_a_run_before_it_writes(tmp_path, train, overrides, error, message):
    with pytest.raises(error, match=message):
        train("run", *overrides)
    assert not (tmp_path / "run").exists()


def test_frozen_heads_on_a_backbone_without_weights_leave_nothing_to_train(tmp_path, table):
    settings = [f"data.path={table}", "backbone=identity", "init_from=nowhere", "frozen_heads=[train,'..',x/y]"]
    recipe, splits = compose_recipe(tmp_path, "data=table", "data.target=label", "~callback.progress", *settings)
    with pytest.raises(ConfigError, match=r"nothing is left to train: .* the backbone has no weights"):
        build_model(recipe, splits)
