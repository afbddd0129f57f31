"""A pretrained encoder that is not trained: its features are computed once, and heads of any kind are fitted on them."""

import csv
import logging
from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch

from ovr.core.bundle import open_bundle
from ovr.errors import ConfigError
from ovr.export.check import run
from ovr.input.encoder import encoder_from_json
from ovr.input.joined import JoinedTexts
from ovr.input.text import HashedText
from ovr.training import features as cache
from ovr.training.checkpoint import read_checkpoint
from ovr.training.recipe import build_model
from ovr.training.run import run_training
from tests.bundles import small_bundle
from tests.encoders import WORDS, save_encoder
from tests.training.conftest import compose_recipe

pytest.importorskip("transformers")
SGD = ["solver=sgd", "trainer.max_epochs=3", "batch_size=16", "~callback.progress", "optimizer.lr=0.01"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """120 texts of three classes, each with words of its own."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    words = [word for word in WORDS if not word.startswith("##")]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(120):
            own = words[row % 3 * 4 : row % 3 * 4 + 4]
            writer.writerow([" ".join([*rng.choice(own, 4), *rng.choice(words, row % 5), str(row)]), f"class {row % 3}"])
    return path


@pytest.fixture
def compose(folder, texts, tmp_path):
    """Return a function of (run directory, overrides) that gives recipe and splits of `experiment=transformer`."""
    common = ["experiment=transformer", f"data.path={texts}", "data.label=label", "data.max_tokens=16"]
    common += [f"solver.cache_dir={tmp_path / 'cache'}"]

    def make(run, *overrides):
        key = "backbone.parts.transformer.path" if "backbone=joined" in overrides else "backbone.path"
        return compose_recipe(tmp_path / run, *common, f"{key}={folder}", *overrides)

    return make


@pytest.fixture
def computed(monkeypatch):
    """Numbers of rows whose features were computed, not read."""
    counts = []
    compute = cache._computed
    monkeypatch.setattr(cache, "_computed", lambda model, x, device: (counts.append(len(x)), compute(model, x, device))[1])
    return counts


def fit(compose, tmp_path, name, *overrides, resume=False):
    recipe, splits = compose(name, *overrides)
    (tmp_path / name).mkdir(exist_ok=True)
    return recipe.solver.fit(recipe, splits, tmp_path / name, resume=resume), splits


def test_the_convex_solver_takes_a_pretrained_encoder_as_it_is(compose, tmp_path, computed):
    fitted, splits = fit(compose, tmp_path, "one")
    assert fitted.val_macro_ap > 0.9
    num_rows = [len(splits.train), len(splits.val)]
    assert computed == num_rows
    fit(compose, tmp_path, "other", "solver.C=2")
    assert computed == num_rows, "the second run reads what the first kept"


def test_heads_are_trained_on_features_that_are_computed_once(compose, tmp_path, computed):
    fitted, splits = fit(compose, tmp_path, "cached", *SGD, "head=mlp")
    assert computed == [len(splits.train), len(splits.val)]
    saved = read_checkpoint(tmp_path / "cached/checkpoints/best.ckpt")["state_dict"]
    assert not any(".encoder." in name for name in saved), "a checkpoint has the heads alone"
    live, _ = fit(compose, tmp_path, "live", *SGD, "head=mlp", "solver.cache_features=false")
    for one, other in zip(fitted.model.head.parameters(), live.model.head.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(fitted.features(splits.test), live.features(splits.test), atol=1e-5)
    assert fitted.val_macro_ap == pytest.approx(live.val_macro_ap, abs=1e-4)


JOINED = [*SGD, "encoder@data.source.encoder=joined", "backbone=joined", "data.max_tokens=32", "data.num_tokens=512"]
JOINED += ["data.source.encoder.parts.transformer.max_tokens=16", "backbone.parts.bag.width=8"]


def test_a_bag_learns_beside_an_encoder_whose_features_are_computed_once(compose, tmp_path, texts, computed, caplog):
    recipe, splits = compose("first", *JOINED)
    (tmp_path / "first").mkdir()
    result = run_training(recipe, splits, tmp_path / "first")
    assert max(result.max_abs_diff.values()) < 1e-5
    num_rows = [len(rows) for rows in (splits.train, splits.val, splits.calib, splits.test)]
    assert computed == num_rows
    saved = read_checkpoint(tmp_path / "first/checkpoints/best.ckpt")["state_dict"]
    assert not any(".encoder." in name for name in saved)
    bundle = tmp_path / "first/bundle"
    expected = run((bundle / "backbone/model.onnx").read_bytes(), splits.test.x)
    assert expected.shape == (len(splits.test), 8 + 16)
    live, _ = fit(compose, tmp_path, "live", *JOINED, "solver.cache_features=false")
    np.testing.assert_allclose(live.features(splits.test), expected, atol=1e-4)
    drawn = build_model(recipe, splits).eval()
    assert not np.allclose(drawn.features(torch.from_numpy(splits.test.x)).detach()[:, :8], expected[:, :8], atol=0.01)

    assert isinstance(encoder := encoder_from_json(open_bundle(bundle).input.encoder), JoinedTexts)
    with texts.open(newline="") as file:
        some = [row["text"] for row in csv.DictReader(file)]
    assert {row.tobytes() for row in splits.test.x} < {row.tobytes() for row in encoder.encode(some)}
    overrides = [*JOINED, f"backbone.parts.transformer.path={bundle}", f"init_from={bundle}", "backbone_grad=none"]
    caplog.clear()
    again, splits_again = fit(compose, tmp_path, "second", *overrides)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert splits_again.input == splits.input
    np.testing.assert_allclose(again.features(splits.test), expected, atol=1e-5)
    assert computed == num_rows, "the encoder's features are known, whatever is beside it"


class Stopped(Exception):
    pass


class StopAtTwo(lightning.Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            raise Stopped


def test_a_resumed_fit_gives_what_an_uninterrupted_one_gives(compose, tmp_path):
    whole, _ = fit(compose, tmp_path, "whole", *SGD)
    recipe, splits = compose("stopped", *SGD)
    (tmp_path / "stopped").mkdir()

    stopped = replace(recipe, callbacks=[*recipe.callbacks, StopAtTwo()])
    with pytest.raises(Stopped):
        stopped.solver.fit(stopped, splits, tmp_path / "stopped", resume=False)
    again, _ = fit(compose, tmp_path, "stopped", *SGD, resume=True)
    assert all(torch.equal(one, other) for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_a_bundle_is_all_that_further_training_needs(compose, tmp_path, folder, texts, caplog):
    recipe, splits = compose("first", "backbone.frozen=false", *SGD, "optimizer.lr=0.001")
    (tmp_path / "first").mkdir()
    result = run_training(recipe, splits, tmp_path / "first")
    assert max(result.max_abs_diff.values()) < 1e-5
    bundle = tmp_path / "first/bundle"
    overrides = [f"backbone.path={bundle}", f"init_from={bundle}", *SGD, "frozen_heads=[class 0]"]
    caplog.clear()
    fitted, again = fit(compose, tmp_path, "second", *overrides)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert again.input == splits.input
    x = torch.from_numpy(splits.test.x)
    expected = run((bundle / "backbone/model.onnx").read_bytes(), splits.test.x)
    with torch.no_grad():
        torch.testing.assert_close(fitted.model.features(x), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_a_bundle_without_an_encoder_or_a_tokenizer_is_refused(compose, tmp_path):
    numbers = small_bundle(tmp_path / "numbers").path
    with pytest.raises(ConfigError, match="is a bundle whose input is made by no tokenizer, but by no encoder"):
        compose("run", f"backbone.path={numbers}")
    hashed = small_bundle(tmp_path / "hashed", shape=(4, 2), encoder=HashedText(num_tokens=6, max_tokens=4).to_json()).path
    with pytest.raises(ConfigError, match="made by no tokenizer, but by text"):
        compose("run", f"backbone.path={hashed}")
