import io
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from ovr.core.onnx_file import GRAPH_OPS
from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError
from ovr.export.backbone import backbone_model, backbone_weights
from ovr.export.check import check_structure, run
from ovr.head.linear import Linear
from ovr.model import Normalizer, OvrModel
from tests.export.sample import BACKBONES, SHAPE, sample_model, sample_rows


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_torchs_at_any_batch_size(name):
    model, x = sample_model(backbone=name), sample_rows(33)
    proto = backbone_model(model, InputSchema(SHAPE))
    data = check_structure(proto, allowed_ops=GRAPH_OPS, what="backbone")
    assert (proto.ir_version, [(o.domain, o.version) for o in proto.opset_import]) == (10, [("", 18)])
    assert model.training, "the export left the model as it was"
    with torch.no_grad():
        expected = model.eval().features(torch.from_numpy(x)).numpy()
    for batch_size in (1, 2, 33):
        np.testing.assert_allclose(run(data, x, batch_size=batch_size), expected, atol=2e-6)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_same_weights_give_the_same_bytes(name):
    one, other = (
        backbone_model(sample_model(backbone=name), InputSchema(SHAPE)).SerializeToString(deterministic=True) for _ in "ab"
    )
    assert one == other


def test_the_file_names_no_place_on_this_machine():
    text = backbone_model(sample_model(), InputSchema(SHAPE)).SerializeToString()
    assert b"site-packages" not in text
    assert b".py" not in text


def test_the_exporter_says_nothing(capfd, caplog):
    with warnings.catch_warnings(), caplog.at_level("INFO"):
        warnings.simplefilter("error")
        backbone_model(sample_model(backbone="cnn"), InputSchema(SHAPE))
    assert capfd.readouterr() == ("", "")
    assert [record.name for record in caplog.records if record.levelname != "DEBUG"] == []


class Colliding(nn.Module):
    """Parameters and modules named like the graph's input and output."""

    num_features = 4

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(6, 4)
        self.x = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.features(x) * self.x


def test_names_in_the_backbone_never_meet_those_of_input_and_output():
    model = OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), Colliding(), Linear(4, num_heads=2)).eval()
    proto = backbone_model(model, InputSchema((6,), name="features_in"))
    check_structure(proto, allowed_ops=GRAPH_OPS, what="backbone")
    assert [v.name for v in (*proto.graph.input, *proto.graph.output)] == ["features_in", "features"]
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    got = onnxruntime.InferenceSession(proto.SerializeToString()).run(["features"], {"features_in": x})[0]
    np.testing.assert_allclose(got, model.features(torch.from_numpy(x)).detach().numpy(), atol=1e-6)


class Branching(nn.Module):
    num_features = 6

    def forward(self, x):
        return x if x.sum() > 0 else -x


class TooNarrow(nn.Module):
    num_features = 9

    def forward(self, x):
        return x


class FixedBatch(nn.Module):
    num_features = 6

    def forward(self, x):
        return x.reshape(2, 6)


def network(backbone):
    return OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), backbone, Linear(backbone.num_features, num_heads=2))


def test_a_backbone_that_cannot_be_exported_is_named():
    with pytest.raises(ArtifactError, match=r"backbone Branching cannot be exported to ONNX for rows of shape \(6,\)"):
        backbone_model(network(Branching()), InputSchema((6,)))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [(FixedBatch(), r"\[2, 6\]; expected \['batch', 6\]"), (TooNarrow(), r"\['batch', 6\]; expected \['batch', 9\]")],
)
def test_features_of_another_shape_than_promised_are_refused(backbone, message):
    with pytest.raises(ArtifactError, match=f"gives features of shape {message}"):
        backbone_model(network(backbone), InputSchema((6,)))


@pytest.mark.parametrize("name", BACKBONES)
def test_the_weights_file_restores_the_backbone(name):
    model, other = sample_model(backbone=name), sample_model(backbone=name, seed=1)
    data = backbone_weights(model)
    assert data == backbone_weights(model)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        state = {key: torch.from_numpy(arrays[key]) for key in arrays}
    missing = other.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("head.") for key in missing.missing_keys)
    x = torch.from_numpy(sample_rows())
    assert torch.equal(other.eval().features(x), model.eval().features(x))


def test_a_half_precision_backbone_is_kept_in_float32():
    model = sample_model(backbone="mlp").bfloat16()
    with np.load(io.BytesIO(backbone_weights(model)), allow_pickle=False) as arrays:
        assert {arrays[key].dtype for key in arrays} == {np.dtype(np.float32)}
    proto = backbone_model(model, InputSchema(SHAPE))
    assert {tensor.data_type for tensor in proto.graph.initializer if tensor.dims} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
    }
