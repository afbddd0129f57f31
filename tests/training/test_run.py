import csv
import json
import logging
import signal
from dataclasses import replace
from typing import ClassVar

import lightning
import numpy as np
import pytest
import torch

from ovr import EdgePredictor
from ovr.core.bundle import open_bundle
from ovr.data.splits import SPLIT_NAMES
from ovr.errors import ArtifactError, ConfigError, DataError
from ovr.training.checkpoint import read_checkpoint
from ovr.training.run import run_training

pytestmark = pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")


def weights(run_dir, name="last"):
    return read_checkpoint(run_dir / "checkpoints" / f"{name}.ckpt")["state_dict"]


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class StopAt(lightning.Callback):
    """Ends the process's fit like a crash would, at the start of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("power cut")


@pytest.fixture
def table(tmp_path, write_table):
    return write_table(tmp_path / "rows.csv", ["x/y", "..", "train"] * 60)


def test_a_run_leaves_config_environment_metrics_checkpoints_and_bundle(tmp_path, table, configure):
    run_dir = tmp_path / "run"
    recipe, splits = configure(run_dir, f"data.path={table}")
    result = run_training(recipe, splits, run_dir)
    with (run_dir / "metrics" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["epoch"] for row in rows} == {"0", "1", "2", "3"}
    assert all(float(row["val/macro_ap"]) >= 0 for row in rows if row["val/macro_ap"])
    environment = json.loads((run_dir / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"].split("+")[0])
    bundle = open_bundle(run_dir / "bundle")
    assert bundle.bundle_sha256 == result.bundle.bundle_sha256
    assert bundle.taxonomy.ids == ("..", "train", "x/y")
    assert bundle.provenance["config"]["data"]["target"] == "label"
    assert set(result.seconds) == {"leakage", "fit", "calibrate", "evaluate", "export"}
    prob_NK = EdgePredictor(run_dir / "bundle").predict(splits.test.x, encoded=True).prob_BK
    np.testing.assert_allclose(prob_NK, result.test_prob_NK, atol=1e-5)
    assert max(result.max_abs_diff.values()) <= 1e-5


def test_the_bundle_holds_the_epoch_with_the_best_validation_ap(tmp_path, table, configure):
    recipe, splits = configure(tmp_path, f"data.path={table}", "optimizer.lr=0.5", "trainer.max_epochs=8")
    result = run_training(recipe, splits, tmp_path)
    with (tmp_path / "metrics" / "version_0" / "metrics.csv").open() as file:
        by_epoch = {int(row["epoch"]): float(row["val/macro_ap"]) for row in csv.DictReader(file) if row["val/macro_ap"]}
    assert result.val_macro_ap == pytest.approx(max(by_epoch.values()))
    assert by_epoch[result.bundle.provenance["best_epoch"]] == max(by_epoch.values())


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_resumed_run_gives_what_an_uninterrupted_one_gives(tmp_path, table, configure, stop_at):
    overrides = [f"data.path={table}", "backbone.dropout=0.5", "scheduler=cosine"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = run_training(*configure(whole, *overrides), whole)
    recipe, splits = configure(broken, *overrides)
    with pytest.raises(RuntimeError, match="power cut"):
        run_training(replace(recipe, callbacks=[*recipe.callbacks, StopAt(stop_at)]), splits, broken)
    assert read_checkpoint(broken / "checkpoints" / "last.ckpt")["epoch"] == stop_at - 1
    result = run_training(*configure(broken, *overrides), broken, resume=True)
    assert same_bits(weights(whole), weights(broken))
    assert same_bits(weights(whole, "best"), weights(broken, "best"))
    for a, b in zip(expected.bundle.heads, result.bundle.heads, strict=True):
        assert expected.bundle.head_onnx(a).read_bytes() == result.bundle.head_onnx(b).read_bytes()


def test_a_run_resumed_from_another_directory_still_knows_its_best_epoch(tmp_path, table, configure):
    # From the first epoch on at a rate so high that the best one comes early.
    overrides = [f"data.path={table}", "optimizer.lr=1.0", "scheduler=constant", "trainer.max_epochs=8", "seed=3"]
    whole, broken, moved = tmp_path / "whole", tmp_path / "broken", tmp_path / "moved"
    expected = run_training(*configure(whole, *overrides), whole)
    best = expected.bundle.provenance["best_epoch"]
    assert best < 6, "nothing is shown unless the best epoch lies before the break"
    recipe, splits = configure(broken, *overrides)
    with pytest.raises(RuntimeError, match="power cut"):
        run_training(replace(recipe, callbacks=[*recipe.callbacks, StopAt(6)]), splits, broken)
    broken.rename(moved)
    result = run_training(*configure(moved, *overrides), moved, resume=True)
    assert (result.bundle.provenance["best_epoch"], result.val_macro_ap) == (best, expected.val_macro_ap)
    assert same_bits(weights(whole, "best"), weights(moved, "best"))


class Signal(lightning.Callback):
    """Sends a signal to this process at the start of the third epoch."""

    def __init__(self, signum):
        self.signum = signum

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            signal.raise_signal(self.signum)


@pytest.mark.parametrize(("signum", "outcome"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_ends_the_fit_as_it_ends_others_and_says_how_to_go_on(tmp_path, table, configure, caplog, signum, outcome):
    recipe, splits = configure(tmp_path / "run", f"data.path={table}")
    at_first = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with caplog.at_level(logging.WARNING, "ovr"), pytest.raises(outcome) as caught:
        run_training(replace(recipe, callbacks=[*recipe.callbacks, Signal(signum)]), splits, tmp_path / "run")
    assert outcome is KeyboardInterrupt or caught.value.code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert f"stopped by {signum.name}; resume={tmp_path / 'run'} goes on from the last checkpoint" in caplog.text
    signal.signal(signal.SIGINT, at_first)
    assert run_training(*configure(tmp_path / "run", f"data.path={table}"), tmp_path / "run", resume=True) is not None


def test_an_exit_that_is_no_interrupt_stays_an_exit(tmp_path, table, configure):
    class Exit(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            raise SystemExit(3)

    recipe, splits = configure(tmp_path / "run", f"data.path={table}")
    with pytest.raises(SystemExit, match="3"):
        run_training(replace(recipe, callbacks=[*recipe.callbacks, Exit()]), splits, tmp_path / "run")


def test_a_seed_gives_byte_equal_weights_and_another_seed_others(tmp_path, table, configure):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe, splits = configure(
            tmp_path / name, f"data.path={table}", "deterministic=true", f"seed={seed}", "backbone.dropout=0.5"
        )
        run_training(recipe, splits, tmp_path / name)
    assert same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same_bits(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_early_stopping_ends_a_fit_that_no_longer_improves(tmp_path, table, configure):
    recipe, splits = configure(
        tmp_path, f"data.path={table}", "trainer.max_epochs=50", "callback.early_stopping.patience=2", "optimizer.lr=0.0"
    )
    run_training(recipe, splits, tmp_path)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["epoch"] == 2


def test_neither_weights_nor_epoch_nor_thresholds_depend_on_the_test_rows(tmp_path, table, configure):
    bundles = []
    for name in ("a", "b"):
        recipe, splits = configure(tmp_path / name, f"data.path={table}")
        if name == "b":
            splits = replace(splits, test=replace(splits.test, x=splits.test.x * 100))
        bundles.append(run_training(recipe, splits, tmp_path / name).bundle)
    for a, b in zip(bundles[0].heads, bundles[1].heads, strict=True):
        assert bundles[0].head_onnx(a).read_bytes() == bundles[1].head_onnx(b).read_bytes()
        assert (a.calibration, a.threshold) == (b.calibration, b.threshold)


def test_weights_do_not_depend_on_the_calibration_rows(tmp_path, table, configure):
    for name in ("a", "b"):
        recipe, splits = configure(tmp_path / name, f"data.path={table}")
        if name == "b":
            splits = replace(splits, calib=replace(splits.calib, x=-splits.calib.x))
        run_training(recipe, splits, tmp_path / name)
    assert same_bits(weights(tmp_path / "a", "best"), weights(tmp_path / "b", "best"))


@pytest.mark.parametrize(
    ("ids", "status"),
    [(["only"] * 40, "one_class"), (["yes", "no"] * 30, None), (["a", "b"] * 30 + ["rare"], "one_class")],
    ids=["K=1", "K=2", "a class with one row"],
)
def test_small_problems_work_and_say_so(tmp_path, write_table, configure, ids, status):
    recipe, splits = configure(
        tmp_path / "run",
        f"data.path={write_table(tmp_path / 'rows.csv', ids)}",
        "batch_size=1",
        "trainer.max_epochs=1",
        "allow_small_classes=true",
    )
    bundle = run_training(recipe, splits, tmp_path / "run").bundle
    rare = bundle.heads[bundle.taxonomy.column(ids[-1])]
    if status:
        assert rare.calibration.status == status
        assert rare.calibration.temperature == 1.0
    assert EdgePredictor(bundle.path).predict(splits.test.x[:1], encoded=True).prob_BK.shape == (1, len(set(ids)))


def test_a_class_that_val_and_calib_lack_gets_a_status(tmp_path, write_table, configure):
    files = {name: write_table(tmp_path / f"{name}.csv", ["a", "b", "c"] * 20) for name in ("train", "test")}
    files |= {name: write_table(tmp_path / f"{name}.csv", ["a", "b"] * 20) for name in ("val", "calib")}
    paths = [f"data.files.{name}={path}" for name, path in files.items()]
    recipe, splits = configure(tmp_path / "run", *paths)
    with pytest.raises(DataError, match=r"1 of 3 classes have fewer .*'c' has 0 in calib"):
        run_training(recipe, splits, tmp_path / "run")
    recipe, splits = configure(tmp_path / "run", *paths, "allow_small_classes=true", "max_leakage=1", "calib_overlap=keep")
    head = run_training(recipe, splits, tmp_path / "run").bundle.heads[2]
    assert (head.class_id, head.calibration.status, head.calibration.num_positives) == ("c", "one_class", 0)
    assert (head.metrics["test"]["positives"], head.metrics["test"]["small"]) == (20, True)


def test_a_file_for_two_splits_is_refused_before_the_fit_and_the_limit_can_be_lifted(tmp_path, write_table, configure):
    files = {name: write_table(tmp_path / f"{name}.csv", ["a", "b"] * 20, seed=seed) for seed, name in enumerate(SPLIT_NAMES)}
    files["test"] = files["train"]
    with files["calib"].open("a") as calib:  # two training rows more
        calib.writelines(files["train"].read_text().splitlines(keepends=True)[1:3])
    paths = [f"data.files.{name}={path}" for name, path in files.items()]
    recipe, splits = configure(tmp_path / "run", *paths)
    with pytest.raises(DataError, match=r"40 rows of test \(100\.0%\) are also in train"):
        run_training(recipe, splits, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics").exists()
    for name, limit in (("all", 1), ("unchecked", "null")):
        result = run_training(*configure(tmp_path / name, *paths, f"max_leakage={limit}"), tmp_path / name)
        card = json.loads((result.bundle.path / "data" / "card.json").read_text())
        assert (card["splits"]["train"]["rows"], card["splits"]["calib"]["rows"]) == (40, 40 if name == "all" else 42)
        assert card["splits"]["calib"].get("left_out") == (2 if name == "all" else None)
        assert len(np.load(result.bundle.path / "calibration/logit.npy")) == card["splits"]["calib"]["rows"]
        assert [row["class_id"] for row in card["classes"]] == ["a", "b"]
        assert (card["leakage"] is None) == (limit == "null")


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("batch_size=0", ConfigError, "batch_size must be a whole number of at least 1, got 0"),
        ("calib_overlap=some", ConfigError, "calib_overlap is 'some'; expected one of drop, refuse, keep"),
        ("version=0", ConfigError, "version must be a whole number of at least 1, got 0"),
        ("seed=-1", ConfigError, "seed must be a whole number of at least 0, got -1"),
        ("promise_share=1", ConfigError, "promise_share is 1; expected a share of the calibration rows, from 0 to below 1"),
        ("reference_rows=1.5", ConfigError, "reference_rows must be a whole number of at least 1, got 1.5"),
        ("loss.pos_weight={z:2}", ConfigError, r"names classes \['z'\]"),
        ("loss.pos_weight=heavy", ConfigError, "loss.pos_weight is 'heavy'; expected auto, a number"),
        ("sampler=class_balanced sampler.power=2", ConfigError, r"sampler\.power must be from 0 to 1, got 2"),
        ("loss=subsampled loss.negatives_per_positive=0", ConfigError, "must be positive and finite, got 0"),
        ("data.normalize=row", DataError, "normalize is 'row'"),
        ("~callback.best", ConfigError, 'must keep checkpoints with filename "best" and "last"'),
        ("callback.best.dirpath=elsewhere", ConfigError, "in .*checkpoints, as conf/callback/default.yaml does"),
        (
            "callback.early_stopping.monitor=val/foo",
            ConfigError,
            "monitors 'val/foo'; expected one of train/loss, val/loss, val/macro_ap",
        ),
        ("optimizer.lr=-1", ConfigError, "the optimizer cannot be made with lr=-1, .*Invalid learning rate: -1"),
        ("scheduler.factor=2 scheduler=constant", ConfigError, "the scheduler cannot be made with factor=2"),
        ("trainer.precision=3", ConfigError, "the trainer cannot be made with .*precision=3"),
        ("seed=4294967296", ConfigError, "seed must be at most 4294967295, got 4294967296"),
        ("trainer.max_epochs=0", ConfigError, "trainer.max_epochs must be a whole number of at least 1, got 0"),
        ("trainer.max_epochs=1.5", ConfigError, "trainer.max_epochs must be a whole number of at least 1, got 1.5"),
        ("trainer.gradient_clip_val=-1", ConfigError, "trainer.gradient_clip_val must be at least 0, got -1"),
        ("loss=focal loss.gamma=many", ConfigError, "the loss cannot be made with .*gamma='many'"),
        ("backbone.dropout=some", ConfigError, "the backbone cannot be made with .*dropout='some'"),
        ("head=mlp head.hidden=[2]", ConfigError, r"head.hidden must be a whole number above 0, got \[2\]"),
        (
            "trainer=ddp trainer.accelerator=cpu trainer.devices=40 trainer.precision=32-true",
            ConfigError,
            "40 processes share the 18 rows of the val split, and each needs one",
        ),
    ],
)
def test_bad_settings_stop_a_run_before_it_writes(tmp_path, table, configure, override, error, message):
    run_dir = tmp_path / "run"
    with pytest.raises(error, match=message):
        run_training(*configure(run_dir, f"data.path={table}", *override.split(" ")), run_dir)
    assert not run_dir.exists()


def test_a_finished_run_and_an_empty_one_cannot_be_resumed(tmp_path, table, configure):
    recipe, splits = configure(tmp_path, f"data.path={table}", "trainer.max_epochs=1")
    with pytest.raises(ArtifactError, match=r"has no checkpoints/last\.ckpt to resume from"):
        run_training(recipe, splits, tmp_path, resume=True)
    run_training(recipe, splits, tmp_path)
    with pytest.raises(ArtifactError, match="is a finished run: it has its bundle"):
        run_training(recipe, splits, tmp_path, resume=True)


def test_every_epoch_is_shuffled_anew(tmp_path, table, configure):
    class Watch(lightning.Callback):
        epochs: ClassVar[list[int]] = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.epochs.append(trainer.train_dataloader.sampler.epoch)

    recipe, splits = configure(tmp_path, f"data.path={table}", "trainer.max_epochs=3")
    run_training(replace(recipe, callbacks=[*recipe.callbacks, Watch()]), splits, tmp_path)
    assert sorted(set(Watch.epochs)) == [0, 1, 2]
