"""Needs timm and a torchvision that it can import (see docs/images.md); elsewhere only what is refused without them is tested."""

import io

import numpy as np
import onnxruntime as ort
import pytest
import torch

from ovr.backbone.timm import Timm
from ovr.core.schema import InputSchema
from ovr.errors import ConfigError
from ovr.export.backbone import backbone_model, backbone_weights
from ovr.export.graph import FEATURES
from ovr.head.linear import Linear
from ovr.model import Normalizer, OvrModel
from ovr.torchvision_ops import declare_missing_ops

SETTINGS = {
    "model": "test_resnet",
    "pretrained": False,
    "checkpoint": None,
    "drop_rate": 0.0,
    "white": 255.0,
    "normalize": "none",
}


def build(input_shape=(3, 48, 32), **changes):
    torch.manual_seed(0)
    return Timm(input_shape, **{**SETTINGS, **changes})


def test_another_normaliser_before_it_is_refused():
    with pytest.raises(ConfigError, match=r"data\.normalize=channel would do so before: add data\.normalize=none"):
        build(normalize="channel")


@pytest.mark.parametrize("shape", [(64,), (4, 8, 8), (2, 1, 8, 8)])
def test_rows_that_are_no_images_are_refused(shape):
    with pytest.raises(ConfigError, match=r"needs rows of shape \(H, W\) or \(C, H, W\) with C 1 or 3"):
        build(shape)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"backbone\.white must be a number above 0"):
        build(white=0)
    with pytest.raises(ConfigError, match="two sources of weights"):
        build(pretrained=True, checkpoint="a.pth")


def test_without_timm_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'ovr\[timm\]', with the torchvision that was built for torch"):
        build()


@pytest.fixture
def timm():
    declare_missing_ops()
    return pytest.importorskip("timm", reason="timm, or the torchvision that it needs, cannot be imported", exc_type=ImportError)


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit", "test_mambaout"])
@pytest.mark.parametrize("shape", [(48, 32), (1, 48, 32), (3, 48, 32), (3, 160, 160)])
def test_features_have_the_promised_width_and_rows_do_not_see_each_other(timm, model, shape):
    backbone = build(shape, model=model).eval()
    x = 255 * torch.rand(3, *shape)
    with torch.no_grad():
        z_BD = backbone(x)
        assert z_BD.shape == (3, backbone.num_features)
        torch.testing.assert_close(backbone(x[1:2]), z_BD[1:2], rtol=1e-4, atol=1e-5)


def test_images_are_normalised_as_the_weights_expect(timm):
    backbone = build(model="resnet18.a1_in1k").eval()
    x = 255 * torch.rand(2, 3, 48, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = backbone.model((x / 255 - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1))
    torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(build(model="resnet18.a1_in1k", white=1.0).eval()(x / 255), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("shape", [(3, 160, 160), (1, 48, 32)])
def test_weights_come_from_a_file_classifier_or_not(timm, tmp_path, suffix, shape):
    torch.manual_seed(7)
    whole = timm.create_model("test_vit", num_classes=11)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(whole.state_dict(), file)
    else:
        pytest.importorskip("safetensors.torch").save_file(whole.state_dict(), file)
    backbone = build(shape, model="test_vit", checkpoint=str(file)).eval()
    torch.testing.assert_close(backbone.model.blocks[0].mlp.fc1.weight, whole.blocks[0].mlp.fc1.weight)
    if shape == (3, 160, 160):
        x = 255 * torch.rand(2, *shape)
        with torch.no_grad():
            features = whole.eval().forward_head(whole.forward_features((x - backbone.mean) / backbone.std), pre_logits=True)
            torch.testing.assert_close(backbone(x), features, rtol=1e-4, atol=1e-5)


def test_weights_of_another_model_are_refused(timm, tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    with pytest.raises(
        ConfigError, match=r"vit\.pth holds only .* of the model's .* weights; is it of another model|cannot be made"
    ):
        build(checkpoint=str(tmp_path / "vit.pth"))
    with pytest.raises(ConfigError, match=r"none\.pth does not exist"):
        build(checkpoint=str(tmp_path / "none.pth"))


def test_a_file_that_would_run_code_is_refused(timm, tmp_path):
    torch.save({"state_dict": io.BytesIO}, tmp_path / "code.pth")
    with pytest.raises(ConfigError, match="cannot be made for images"):
        build(checkpoint=str(tmp_path / "code.pth"))


def test_an_unknown_model_is_refused_with_those_near_it(timm):
    with pytest.raises(ConfigError, match=r"backbone\.model is 'resnet18b', which timm .* does not have|near it: none"):
        build(model="resnet18b")
    with pytest.raises(ConfigError, match=r"near it: \['test_resnet'\]|near it: .*test_resnet"):
        build(model="test_resne")


def test_an_image_that_the_model_cannot_take_is_refused(timm):
    with pytest.raises(
        ConfigError, match=r"test_vit cannot be made for images of 3x50x30: .*trained on images of 160x160 \(data\.size\)"
    ):
        build((3, 50, 30), model="test_vit")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_convnext"])
def test_it_is_exported_for_batches_of_any_size(timm, model):
    backbone = build((3, 64, 64), model=model)
    network = OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), backbone, Linear(backbone.num_features, num_heads=2)).eval()
    proto = backbone_model(network, InputSchema((3, 64, 64)))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for num_rows in (1, 5):
        x = 255 * torch.rand(num_rows, 3, 64, 64)
        with torch.no_grad():
            expected = network.features(x).numpy()
        np.testing.assert_allclose(session.run([FEATURES], {"x": x.numpy()})[0], expected, rtol=1e-3, atol=2e-5)
    assert backbone_weights(network)
