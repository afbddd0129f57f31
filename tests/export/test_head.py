import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from ovr.core.artifact import Calibration, HeadArtifact
from ovr.core.onnx_file import HEAD_OPS
from ovr.errors import ArtifactError
from ovr.export.check import check_structure, run
from ovr.export.head import head_constants, head_metadata, head_model, metadata_of
from ovr.head.linear import Linear
from ovr.head.mlp import Mlp
from tests.export.sample import HEADS

D = 7
CALIBRATION = Calibration(scale=0.4, bias=-0.7, status="ok", num_rows=10, num_positives=3)
WEIGHTS = {
    "linear": {"weight": np.ones((1, D), np.float32), "bias": np.zeros(1, np.float32)},
    "mlp": {
        "hidden_weight": np.ones((4, D), np.float32),
        "hidden_bias": np.zeros(4, np.float32),
        "weight": np.ones((1, 4), np.float32),
        "bias": np.zeros(1, np.float32),
    },
}


@pytest.mark.parametrize("kind", HEADS)
def test_it_gives_the_calibrated_probability_of_torchs_head(kind):
    torch.manual_seed(0)
    heads, z_BD = HEADS[kind](D, 3), torch.randn(9, D)
    logit_BK = heads(z_BD).detach().double()
    for k in range(3):
        data = check_structure(head_model(kind, heads.head_weights(k), CALIBRATION, {}), allowed_ops=HEAD_OPS, what="head")
        expected = torch.sigmoid(0.4 * logit_BK[:, k : k + 1] - 0.7).numpy()
        np.testing.assert_allclose(run(data, z_BD.numpy()), expected, atol=1e-6)


def test_a_linear_head_is_gemm_mul_add_sigmoid_in_versions_that_runtimes_take():
    model = head_model("linear", WEIGHTS["linear"], CALIBRATION, {})
    assert [node.op_type for node in model.graph.node] == ["Gemm", "Mul", "Add", "Sigmoid"]
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert [tensor.name for tensor in model.graph.initializer] == ["weight", "bias", "scale", "calibration_bias"]


def test_swapping_the_scale_recalibrates():
    z_BD = np.random.default_rng(0).normal(size=(5, D)).astype(np.float32)
    model = head_model("linear", WEIGHTS["linear"], Calibration(scale=0.4), {})
    for tensor in model.graph.initializer:
        if tensor.name == "scale":
            tensor.CopyFrom(numpy_helper.from_array(np.array([2.5], np.float32), "scale"))
    other = head_model("linear", WEIGHTS["linear"], Calibration(scale=2.5), {})
    assert np.array_equal(run(model.SerializeToString(), z_BD), run(other.SerializeToString(), z_BD))


def test_the_file_says_what_it_is():
    head = HeadArtifact("a/b ü", 3, "ab" * 32, "linear", CALIBRATION, 0.25)
    said = metadata_of(
        onnx.load_model_from_string(head_model("linear", WEIGHTS["linear"], CALIBRATION, head_metadata(head)).SerializeToString())
    )
    assert (said["ovr.class_id"], said["ovr.version"], said["ovr.kind"]) == ("a/b ü", "3", "linear")
    assert (said["ovr.backbone_sha256"], float(said["ovr.threshold"])) == ("ab" * 32, 0.25)
    assert Calibration(**json.loads(said["ovr.calibration"])) == CALIBRATION


@pytest.mark.parametrize("kind", HEADS)
def test_kind_and_constants_are_read_back(kind):
    got_kind, constants = head_constants(head_model(kind, WEIGHTS[kind], CALIBRATION, {}))
    assert got_kind == kind
    assert set(constants) == {*WEIGHTS[kind], "scale", "calibration_bias"}
    assert all(np.array_equal(constants[name], value) for name, value in WEIGHTS[kind].items())


def test_heads_of_one_feature_and_one_unit_work():
    for heads in (Linear(1, num_heads=1), Mlp(1, num_heads=1, hidden=1)):
        model = head_model(heads.kind, heads.head_weights(0), Calibration(), {})
        assert run(model.SerializeToString(), np.ones((2, 1), np.float32)).shape == (2, 1)


def test_another_kind_is_refused():
    with pytest.raises(ArtifactError, match="head kind is 'tree'; expected one of 'linear', 'mlp'"):
        head_model("tree", WEIGHTS["linear"], CALIBRATION, {})


def test_missing_weights_are_refused():
    with pytest.raises(ArtifactError, match=r"a linear head has the weights \['weight'\]; expected \['bias', 'weight'\]"):
        head_model("linear", {"weight": np.ones((1, D), np.float32)}, CALIBRATION, {})


@pytest.mark.parametrize(("kind", "name", "shape"), [
    ("linear", "weight", (2, D)), ("linear", "weight", (D,)), ("linear", "weight", (1, 0)), ("linear", "bias", ()),
    ("mlp", "weight", (1, 5)), ("mlp", "hidden_bias", (5,)), ("mlp", "hidden_weight", (0, D)), ("mlp", "bias", (2,)),
])  # fmt: skip
def test_weights_of_another_shape_are_refused(kind, name, shape):
    with pytest.raises(ArtifactError, match=f"a {kind} head has weights of shapes .*; expected"):
        head_model(kind, {**WEIGHTS[kind], name: np.ones(shape, np.float32)}, CALIBRATION, {})


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ArtifactError, match="a head's bias holds nan"):
        head_model("linear", {**WEIGHTS["linear"], "bias": np.array([np.nan], np.float32)}, CALIBRATION, {})


@pytest.mark.parametrize("calibration", [Calibration(scale=0.0), Calibration(scale=float("inf")), Calibration(bias=float("nan"))])
def test_a_calibration_that_is_none_is_refused(calibration):
    with pytest.raises(ArtifactError, match="expected finite, scale above 0"):
        head_model("linear", WEIGHTS["linear"], calibration, {})


def test_a_model_that_is_no_head_is_refused():
    model = head_model("linear", WEIGHTS["linear"], CALIBRATION, {})
    del model.graph.initializer[2]
    with pytest.raises(ArtifactError, match="needs the initialisers scale and calibration_bias"):
        head_constants(model)
