"""Images from files to predictions: augmented while training and nowhere else, and read alike by training and `ovr predict`."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from ovr import EdgePredictor
from ovr.cli.main import main
from ovr.errors import ConfigError, InputError
from ovr.training.checkpoint import read_checkpoint
from ovr.training.recipe import build_model
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe
from tests.training.test_run import StopAt, same_bits, weights

Image = pytest.importorskip("PIL.Image", reason="pip install 'ovr[images]'")

QUICK = [
    "data=images",
    "data.size=[8,10]",
    "backbone=cnn",
    "backbone.channels=[4]",
    "backbone.width=8",
    "trainer.max_epochs=3",
    "batch_size=16",
    "~callback.progress",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty images a class, bright on the left or on the right, of various sizes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        (root / name).mkdir()
        for n in range(40):
            pixels = rng.integers(100, size=(9 + n % 3, 12, 3), dtype=np.uint8)
            half = slice(None, 6) if name == "left" else slice(6, None)
            pixels[:, half] += 120
            Image.fromarray(pixels).save(root / name / f"{n}.{'png' if n % 2 else 'jpg'}")
    return root


def configure(run_dir, folder, *overrides):
    return compose_recipe(run_dir, f"data.path={folder}", *QUICK, *overrides)


AUGMENT = ["augment=flip_crop", "augment.rotate_deg=5", "augment.flip_prob=0", "augment.erase_prob=0.3"]


def test_a_model_changes_rows_in_training_steps_only(tmp_path, folder):
    pytest.importorskip("kornia", reason="pip install 'ovr[augment]'")
    recipe, splits = configure(tmp_path, folder, *AUGMENT, "seed=0")
    torch.manual_seed(0)
    model = build_model(recipe, splits)
    torch.manual_seed(0)
    plain = build_model(replace(recipe, augment=None), splits)
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    x = torch.from_numpy(splits.train.x[:16])
    assert torch.equal(model.eval()(x), plain.eval()(x))
    model.backbone.eval()
    made = []
    for seed in (0, 0, 1):
        model.training = True
        torch.manual_seed(seed)
        made.append(model.features(x))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert not torch.equal(made[0], plain.features(x))


def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(tmp_path, folder):
    pytest.importorskip("kornia", reason="pip install 'ovr[augment]'")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_training(*configure(whole, folder, *AUGMENT), whole)
    recipe, splits = configure(broken, folder, *AUGMENT)
    with pytest.raises(RuntimeError, match="power cut"):
        run_training(replace(recipe, callbacks=[*recipe.callbacks, StopAt(1)]), splits, broken)
    assert read_checkpoint(broken / "checkpoints" / "last.ckpt")["epoch"] == 0
    run_training(*configure(broken, folder, *AUGMENT), broken, resume=True)
    assert same_bits(weights(whole), weights(broken))


def test_features_that_are_computed_once_are_not_augmented(tmp_path, folder):
    recipe, splits = configure(tmp_path, folder, *AUGMENT, "backbone_grad=none")
    with pytest.raises(ConfigError, match="a fixed backbone gives a row the same features in every step"):
        run_training(recipe, splits, tmp_path)
    recipe, splits = configure(tmp_path, folder, *AUGMENT, "solver=convex")
    with pytest.raises(ConfigError, match="solver=convex computes the features of every row once"):
        run_training(recipe, splits, tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder):
    run_dir = tmp_path_factory.mktemp("run")
    recipe, splits = configure(run_dir, folder)
    return run_training(recipe, splits, run_dir), splits


def test_files_of_the_test_split_get_the_probabilities_that_training_saw(trained, folder):
    result, splits = trained
    files = sorted(folder.rglob("*.*"))
    prob_of = dict(zip((x.tobytes() for x in splits.test.x), result.test_prob_NK, strict=True))
    predictor = EdgePredictor(result.bundle.path)
    encoded = predictor.encode(files)
    prob_NK = predictor.predict_proba(files)
    seen = [n for n, x in enumerate(encoded) if x.tobytes() in prob_of]
    assert len(seen) == len(splits.test)
    np.testing.assert_allclose(prob_NK[seen], [prob_of[encoded[n].tobytes()] for n in seen], atol=1e-5)
    assert predictor.predict([folder / "left" / "0.jpg", (folder / "right" / "1.png").read_bytes()]).labels() == (
        [("left",), ("right",)]
    )


def test_a_folder_a_list_and_an_array_of_the_same_images_get_the_same_answers(trained, folder, tmp_path, capsys):
    result, _ = trained
    files = sorted(folder.rglob("*.*"))
    (tmp_path / "list.csv").write_text("\n".join(["file", *map(str, files)]) + "\n")
    np.save(tmp_path / "x.npy", EdgePredictor(result.bundle.path).encode(files))
    answers = []
    for n, (given, *more) in enumerate([(folder,), (tmp_path / "list.csv", "path_column=file"), (tmp_path / "x.npy",)]):
        output = tmp_path / f"{n}.csv"
        assert main(["predict", f"bundle={result.bundle.path}", f"input={given}", f"output={output}", "batch_size=7", *more]) == 0
        answers.append([{k: v for k, v in row.items() if k != "file"} for row in csv.DictReader(output.read_text().splitlines())])
    assert len(answers[0]) == 80
    assert answers[0] == answers[1] == answers[2]
    assert sum(row["label"] == file.parent.name for row, file in zip(answers[0], files, strict=True)) > 70
    (tmp_path / "bad.png").write_bytes(b"")
    assert main(["predict", f"bundle={result.bundle.path}", f"input={tmp_path / 'bad.png'}", f"output={tmp_path / 'z.csv'}"]) == 1
    assert "1 of 1 images cannot be used" in capsys.readouterr().err


def test_a_text_is_no_path(trained, folder):
    with pytest.raises(InputError, match=r"row 0 is str .*; a file is given as pathlib\.Path"):
        EdgePredictor(trained[0].bundle.path).predict([str(folder / "left" / "0.jpg")])


def test_rows_that_are_decoded_in_every_epoch_give_the_same_weights(trained, folder, tmp_path):
    recipe, splits = configure(tmp_path, folder, "data.source.memory_mib=0")
    run_training(recipe, splits, tmp_path)
    assert same_bits(weights(tmp_path), weights(trained[0].bundle.path.parent))
