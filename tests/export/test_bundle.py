import json

import numpy as np
import pytest
import torch

from ovr.core.artifact import Calibration
from ovr.core.bundle import open_bundle
from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError, InputError
from ovr.export.check import run
from ovr.export.standalone import export_onnx
from tests.export.sample import BACKBONES, HEADS, SHAPE, sample_bundle, sample_calibrations, sample_model, sample_rows, torch_prob

STRANGE_IDS = ["train", "a/b", "..", "con", "Größe", "数字", " ", "x" * 300, "line\nbreak", "A", "a"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_file_gives_torchs_calibrated_probabilities(tmp_path, backbone, head):
    model = sample_model(backbone=backbone, head=head)
    bundle, diffs = sample_bundle(tmp_path / "bundle", model, ["a", "b", "c", "d", "e"])
    assert model.training, "the export left the model as it was"
    assert open_bundle(tmp_path / "bundle").card == bundle.card
    assert set(diffs) == {"heads", "fused"}
    x = sample_rows(20, seed=9)
    expected_NK = torch_prob(model, x, sample_calibrations(5))
    np.testing.assert_allclose(run(bundle.fused_onnx.read_bytes(), x), expected_NK, atol=1e-5)
    features_ND = run(bundle.backbone_onnx.read_bytes(), x)
    for k, artifact in enumerate(bundle.heads):
        np.testing.assert_allclose(run(bundle.head_onnx(artifact).read_bytes(), features_ND), expected_NK[:, k : k + 1], atol=1e-5)
    assert max(diffs.values()) <= 1e-5


def test_the_bundle_keeps_what_later_steps_need(tmp_path):
    model, calibrations = sample_model(), sample_calibrations(5)
    arrays = {"logit": np.ones((4, 5), np.float32), "target": np.eye(4, 5, dtype=bool), "mask": np.ones((4, 5), bool)}
    bundle, _ = sample_bundle(tmp_path / "bundle", model, list("abcde"), calibration_arrays=arrays, versions=[4, 1, 1, 1, 2])
    for name, array in arrays.items():
        assert np.array_equal(np.load(bundle.path / "calibration" / f"{name}.npy"), array)
    assert np.array_equal(np.load(bundle.path / "reference" / "x.npy"), sample_rows())
    np.testing.assert_allclose(
        np.load(bundle.path / "reference" / "prob.npy"), torch_prob(model, sample_rows(), calibrations), atol=1e-6
    )
    assert json.loads((bundle.path / "report" / "metrics.json").read_text()) == {"accuracy": 0.5}
    assert [head.version for head in bundle.heads] == [4, 1, 1, 1, 2]
    assert [head.calibration for head in bundle.heads] == calibrations
    assert bundle.heads[0].metrics == {"test": {"f1": 0.5, "positives": 3}}


@pytest.mark.parametrize("num_heads", [1, 2])
def test_one_and_two_classes(tmp_path, num_heads):
    bundle, _ = sample_bundle(
        tmp_path / "bundle", sample_model(num_heads=num_heads), list("ab")[:num_heads], reference_rows=sample_rows(1)
    )
    assert run(bundle.fused_onnx.read_bytes(), sample_rows(3)).shape == (3, num_heads)


def test_class_ids_of_any_kind(tmp_path):
    bundle, _ = sample_bundle(tmp_path / "bundle", sample_model(num_heads=len(STRANGE_IDS)), STRANGE_IDS)
    assert open_bundle(bundle.path).taxonomy.ids == tuple(STRANGE_IDS)
    exported = export_onnx(bundle, tmp_path / "out")
    assert len(list((exported.path / "heads").iterdir())) == exported.num_heads == len(STRANGE_IDS)
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} == {"bundle", "out"}


def test_the_same_model_gives_the_same_bundle(tmp_path):
    one, other = (sample_bundle(tmp_path / name, sample_model(), list("abcde"))[0] for name in ("one", "other"))
    assert one.bundle_sha256 == other.bundle_sha256
    assert one.fused_onnx.read_bytes() == other.fused_onnx.read_bytes()


def test_a_thousand_heads_are_a_thousand_right_files(tmp_path):
    model, calibrations = sample_model(num_heads=1000), sample_calibrations(1000)
    bundle, _ = sample_bundle(tmp_path / "bundle", model, [f"class/{k}" for k in range(1000)], reference_rows=sample_rows(4))
    x = sample_rows(3, seed=5)
    features_ND, expected_NK = run(bundle.backbone_onnx.read_bytes(), x), torch_prob(model, x, calibrations)
    got_NK = np.hstack([run(bundle.head_onnx(head).read_bytes(), features_ND) for head in bundle.heads])
    np.testing.assert_allclose(got_NK, expected_NK, atol=1e-6)
    np.testing.assert_allclose(run(bundle.fused_onnx.read_bytes(), x), expected_NK, atol=1e-6)


def test_a_model_that_onnx_does_not_follow_is_not_written(tmp_path):
    model = sample_model()
    weights = model.head.head_weights
    model.head.head_weights = lambda column: {**weights(column), "bias": weights(column)["bias"] + np.float32(column == 2)}
    with pytest.raises(
        ArtifactError, match=r"own model gives class 'c' on reference row 0 the probability .* \(1 of 5 classes are wrong\)"
    ):
        sample_bundle(tmp_path / "bundle", model, list("abcde"))
    assert not list(tmp_path.iterdir())


def test_a_sharp_head_is_given_the_tolerance_of_its_scale(tmp_path):
    sharp = [Calibration(scale=200.0, status="separable")] * 5
    _, diffs = sample_bundle(tmp_path / "bundle", sample_model(), list("abcde"), calibrations=sharp)
    assert max(diffs.values()) <= 200 * 1e-5


@pytest.mark.parametrize("name", ["calibrations", "thresholds", "versions", "metrics"])
def test_counts_that_differ_are_refused(tmp_path, name):
    with pytest.raises(ArtifactError, match=f"2 {name} for 5 classes; expected one a class"):
        sample_bundle(tmp_path / "bundle", sample_model(), list("abcde"), **{name: [None, None]})


@pytest.mark.parametrize("rows", [np.zeros((0, *SHAPE)), np.full((1, *SHAPE), np.nan), np.zeros((2, 64))])
def test_reference_rows_that_are_none_are_refused(tmp_path, rows):
    with pytest.raises(InputError):
        sample_bundle(tmp_path / "bundle", sample_model(), list("abcde"), reference_rows=rows)


def test_a_bundle_is_never_overwritten(tmp_path):
    bundle, _ = sample_bundle(tmp_path / "bundle", sample_model(), list("abcde"))
    with pytest.raises(ArtifactError, match="exists already"):
        sample_bundle(bundle.path, sample_model(seed=1), list("abcde"))
    assert open_bundle(bundle.path).bundle_sha256 == bundle.bundle_sha256


def test_a_model_in_bfloat16_is_compared_as_it_is_exported(tmp_path):
    model = sample_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    _, diffs = sample_bundle(tmp_path / "bundle", model, list("abcde"), input=InputSchema(SHAPE))
    assert max(diffs.values()) <= 1e-5
