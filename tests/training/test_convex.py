import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ovr import EdgePredictor
from ovr.data.labels import Labels
from ovr.data.splits import standardization
from ovr.errors import ConfigError
from ovr.training import logistic, memory
from ovr.training.convex import Convex
from ovr.training.exact_memory import check_exact_memory, exact_parts
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe

IDS = ["x/y", "..", "train"] * 60


@pytest.fixture
def convex(tmp_path, write_table):
    """Return a function of (name of the run, overrides, class ids) that gives recipe, splits and run directory."""

    def configure(name, *overrides, ids=IDS):
        table = write_table(tmp_path / f"{name}.csv", ids)
        fixed = ["data=table", "data.target=label", f"data.path={table}", "solver=convex", f"paths.output_dir={tmp_path / 'out'}"]
        return *compose_recipe(tmp_path / name, *fixed, *overrides), tmp_path / name

    return configure


def normalised(splits, rows):
    shift, scale = standardization(splits.train, per="feature")
    return (rows.x.astype(np.float64) - shift) * scale


def test_a_run_gives_a_bundle_with_the_heads_of_scikit_learn(convex):
    recipe, splits, run_dir = convex("run", "backbone=identity", "solver.C=0.5")
    result = run_training(recipe, splits, run_dir)
    logit_NK = np.load(result.bundle.path / "calibration" / "logit.npy")
    target_NK, _ = splits.train.labels.dense()
    for k in range(3):
        reference = LogisticRegression(C=0.5, tol=1e-10, solver="newton-cholesky").fit(
            normalised(splits, splits.train), target_NK[:, k]
        )
        np.testing.assert_allclose(logit_NK[:, k], reference.decision_function(normalised(splits, splits.calib)), atol=1e-3)
    prob_NK = EdgePredictor(result.bundle.path).predict(splits.test.x, encoded=True).prob_BK
    np.testing.assert_allclose(prob_NK, result.test_prob_NK, atol=1e-5)
    assert 0.5 < result.val_macro_ap <= 1
    assert result.bundle.provenance["unsolved_heads"] == {}
    assert 0 < result.bundle.provenance["max_steps"] < 100
    assert set(result.seconds) == {"leakage", "fit", "calibrate", "evaluate", "export"}
    assert json.loads((run_dir / "environment.json").read_text())["packages"]["torch"]


def test_the_heads_are_at_the_optimum_of_the_loss_that_the_configuration_names(convex):
    recipe, splits, run_dir = convex("run", "backbone=identity", "loss.pos_weight={train:4.0}")
    model = recipe.solver.fit(recipe, splits, run_dir, resume=False).model.requires_grad_(True)
    target_NK, _ = (torch.from_numpy(array).float() for array in splits.train.labels.dense())
    loss_NK = recipe.loss(splits.taxonomy.ids)(model(torch.from_numpy(splits.train.x)), target_NK)
    (loss_NK.sum() + (model.head.weight_KD**2).sum() / 2).backward()
    assert model.head.weight_KD.grad.abs().max() / len(splits.train) < 1e-5
    assert model.head.bias_K.grad.abs().max() / len(splits.train) < 1e-5


@pytest.mark.parametrize("pos_weight", ["auto", "4.0"])
def test_heads_without_an_optimum_have_the_odds_of_their_rows_beside_weighted_heads(convex, pos_weight):
    recipe, splits, run_dir = convex("run", "backbone=identity", f"loss.pos_weight={pos_weight}")
    target_NK, mask_NK = splits.train.labels.dense()
    target_NK, mask_NK = target_NK & [True, False, False], mask_NK & [True, True, False]
    splits = replace(splits, train=replace(splits.train, labels=Labels.from_dense(target_NK, mask_NK)))
    loss = recipe.loss(splits.taxonomy.ids, counts=splits.train.labels.counts())
    assert (loss.pos_weight_K[:2] > 1.5).all()
    model = recipe.solver.fit(recipe, splits, run_dir, resume=False).model.requires_grad_(True)
    np.testing.assert_allclose(model.head.bias_K[1:].tolist(), [np.log(0.5 / (len(splits.train) + 0.5)), 0], rtol=1e-6)
    loss_NK = loss(model(torch.from_numpy(splits.train.x)), torch.from_numpy(target_NK).float())
    (loss_NK[:, 0].sum() + (model.head.weight_KD**2).sum() / 2).backward()
    assert model.head.weight_KD.grad.abs().max() / len(splits.train) < 1e-5
    assert model.head.bias_K.grad.abs().max() / len(splits.train) < 1e-5


def test_heads_are_solved_again_on_the_backbone_of_an_earlier_bundle(convex):
    first, second = (convex(name, "backbone.hidden=[8]", "solver.untrained_backbone=true") for name in ("first", "second"))
    earlier = run_training(*first).bundle
    again = replace(second[0], init_from=str(earlier.path), seed=7, solver=Convex(**SETTINGS))
    bundle = run_training(again, *second[1:]).bundle
    assert bundle.backbone_sha256 == earlier.backbone_sha256
    assert bundle.provenance["unsolved_heads"] == {}
    assert bundle.provenance["init_from_bundle_sha256"] == earlier.bundle_sha256
    assert "init_from_bundle_sha256" not in earlier.provenance


def test_a_second_run_reads_the_features_and_gives_the_same_bytes(convex, tmp_path):
    bundles, written = [], []
    for name in ("a", "b", "c"):
        overrides = ["backbone.hidden=[8]", "solver.untrained_backbone=true", *(["solver.cache_dir=null"] if name == "c" else [])]
        recipe, splits, run_dir = convex(name, *overrides)
        bundles.append(run_training(recipe, splits, run_dir).bundle)
        files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "features").iterdir()}
        assert len(files) == 4
        written.append(files)
    assert written[0] == written[1] == written[2]
    for other in bundles[1:]:
        assert other.backbone_sha256 == bundles[0].backbone_sha256
        for a, b in zip(bundles[0].heads, other.heads, strict=True):
            assert bundles[0].head_onnx(a).read_bytes() == other.head_onnx(b).read_bytes()


@pytest.mark.parametrize(
    ("overrides", "ids", "unsolved"),
    [
        (["allow_small_classes=true"], ["only"] * 40, {"only": "one_class"}),
        (["solver.max_iter=1"], IDS, dict.fromkeys(set(IDS), "not_converged")),
    ],
    ids=["one class", "too few steps"],
)
def test_heads_that_are_not_solved_are_named_in_the_log_and_in_the_bundle(convex, caplog, overrides, ids, unsolved):
    recipe, splits, run_dir = convex("run", "backbone=identity", *overrides, ids=ids)
    bundle = run_training(recipe, splits, run_dir).bundle
    assert bundle.provenance["unsolved_heads"] == unsolved
    status = next(iter(unsolved.values()))
    assert f"fit status {status!r} for {len(unsolved)} heads" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone=identity", "head=mlp"], "solver=convex solves head=linear, got Mlp; use solver=sgd"),
        (["backbone=identity", "loss=focal"], "solver=convex solves loss=bce, got Focal; use solver=sgd"),
        (["backbone.hidden=[8]"], "trains no backbone, and the 48 weights of Mlp are untrained; use backbone=identity"),
    ],
)
def test_what_has_no_convex_problem_is_refused_before_anything_is_written(convex, overrides, message):
    recipe, splits, run_dir = convex("run", *overrides)
    with pytest.raises(ConfigError, match=message):
        run_training(recipe, splits, run_dir)
    assert not run_dir.exists()


def test_it_neither_resumes_nor_runs_in_several_processes(convex, monkeypatch):
    recipe, splits, run_dir = convex("run", "backbone=identity")
    with pytest.raises(ConfigError, match="keeps no checkpoints and cannot resume"):
        recipe.solver.fit(recipe, splits, run_dir, resume=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="runs in one process, got WORLD_SIZE=2"):
        run_training(recipe, splits, run_dir)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(ConfigError, match="runs in one process, got SLURM_NTASKS=4"):
        run_training(recipe, splits, run_dir)
    assert not run_dir.exists()


def test_heads_that_do_not_fit_are_refused_before_any_is_made(convex, monkeypatch):
    recipe, splits, run_dir = convex("run", "backbone=identity")
    monkeypatch.setattr("ovr.training.convex.build_model", None)
    heads, rows = exact_parts(num_heads=3, num_rows=len(splits.train), num_features=3, device="cpu")
    needed = sum(heads.values()) + sum(rows.values())
    monkeypatch.setattr(memory, "available_memory", lambda: (needed, "in this machine's memory"))
    said = r"3 heads do not fit: 0\.00 GiB are needed \(.*\), and 0\.00 GiB are there in this machine's memory; at most 2 heads fit"
    with pytest.raises(ConfigError, match=said):
        run_training(recipe, splits, run_dir)
    assert not run_dir.exists()


def test_what_heads_take_is_the_rows_once_and_of_heads_a_block():
    (heads, rows), (few_heads, few_rows) = (
        exact_parts(num_heads=num, num_rows=1000, num_features=63, device="cpu") for num in (10**7, 10**6)
    )
    assert heads["weights of the heads"] == 10 * few_heads["weights of the heads"] == (12 * 64 + 64) * 10**7
    assert rows == few_rows
    assert rows["features of the training rows"] == 16 * 64 * 1000
    assert 0.6e9 < rows["a block of heads"] < 1e9
    check_exact_memory(num_heads=10, num_rows=100, num_features=3, device="cpu")


TAKEN = """
import numpy as np, torch
from ovr.training.logistic import fit_logistic
def held(kind): return int(next(line for line in open("/proc/self/status") if line.startswith(kind)).split()[1]) * 1024
def fit(num_features):
    x = np.random.default_rng(0).normal(size=(50, num_features)).astype(np.float32)
    fit_logistic(x, x[:, :3] > 0, np.ones((50, 3), bool), C=1.0, tol=1e-6, max_iter=4)
torch.set_num_threads(1)
fit(300)
before = held("VmRSS")
fit({num_features})
print(held("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_many_features_take_what_is_counted_for_their_second_moment():
    heads, rows = exact_parts(num_heads=3, num_rows=50, num_features=2500, device="cpu")
    counted = sum(heads.values()) + sum(rows.values())
    script = TAKEN.format(num_features=2500)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert 0.8 * counted < int(done.stdout) < 1.2 * counted


def test_more_features_than_fit_are_refused_with_what_their_second_moment_takes(monkeypatch):
    sizes = {"num_heads": 10, "num_rows": 1000, "num_features": 32767}
    monkeypatch.setattr(memory, "available_memory", lambda: (16 << 30, "in this machine's memory"))
    with pytest.raises(ConfigError, match=r"their second moment 15\.\d\d GiB.*, and 16\.00 GiB are there in this machine's memory"):
        check_exact_memory(**sizes, device="cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (24 << 30, 80 << 30))
    with pytest.raises(ConfigError, match=r"their second moment 23\.\d\d GiB.*, and 24\.00 GiB are there on the GPU"):
        check_exact_memory(**sizes, device="cuda")
    monkeypatch.setattr(memory, "available_memory", lambda: (18 << 30, "in this machine's memory"))
    check_exact_memory(**sizes, device="cpu")


def test_labels_are_taken_a_block_of_columns_at_a_time(convex, monkeypatch):
    """No array of rows times heads is made."""
    recipe, splits, run_dir = convex("run", "backbone=identity")
    whole = recipe.solver.fit(recipe, splits, run_dir, resume=False).model.head
    monkeypatch.setattr(logistic, "BLOCK_VALUES", len(splits.train))
    monkeypatch.setattr(Labels, "dense", None)
    blocks = recipe.solver.fit(recipe, splits, run_dir, resume=False).model.head
    torch.testing.assert_close(whole.weight_KD, blocks.weight_KD, rtol=1e-4, atol=1e-5)


SETTINGS = {"C": 1.0, "tol": 1e-6, "max_iter": 1000, "device": "cpu", "untrained_backbone": False, "cache_dir": None}


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"C": -1}, r"solver\.C must be"), ({"tol": True}, r"solver\.tol must be"), ({"device": "tpu"}, r"solver\.device is 'tpu'")],
)
def test_wrong_settings_are_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        Convex(**(SETTINGS | setting))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        Convex(**(SETTINGS | {"device": "cuda"}))
