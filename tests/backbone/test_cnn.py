import pytest
import torch

from ovr.backbone.cnn import Cnn
from ovr.errors import ConfigError


def cnn(input_shape, **changes):
    return Cnn(input_shape, **{"channels": [4, 8], "width": 16, "dropout": 0.1, **changes})


def test_a_grey_image_may_have_its_channel_or_not():
    torch.manual_seed(0)
    backbone = cnn((8, 8)).eval()
    x = torch.randn(3, 8, 8)
    torch.testing.assert_close(backbone(x), backbone(x.unsqueeze(1)))


@pytest.mark.parametrize("input_shape", [(3, 9, 14), (1, 28, 28), (1, 4, 4)])
def test_images_of_any_size_that_the_stages_can_halve(input_shape):
    backbone = cnn(input_shape).eval()
    assert backbone(torch.randn(2, *input_shape)).shape == (2, 16)


def test_the_smallest_image_can_be_trained_on_one_row_a_batch():
    assert cnn((1, 4, 4)).train()(torch.randn(1, 1, 4, 4)).isfinite().all()


def test_a_row_that_is_no_image_is_refused():
    with pytest.raises(ConfigError, match=r"needs rows of shape \(H, W\) or \(C, H, W\), got \(64,\); use backbone=mlp"):
        cnn((64,))


def test_an_image_too_small_for_the_stages_is_refused():
    with pytest.raises(ConfigError, match=r"an image of 3x8 is too small for 2 stages .* expected at least 4x4"):
        cnn((1, 3, 8))


@pytest.mark.parametrize("channels", [[], [0], [8, 1.5]])
def test_channels_that_are_none_are_refused(channels):
    with pytest.raises(ConfigError, match=r"backbone\.channels must be one or more whole numbers above 0"):
        cnn((8, 8), channels=channels)


@pytest.mark.parametrize("width", [0, 2.5])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(ConfigError, match=r"backbone\.width must be a whole number above 0"):
        cnn((8, 8), width=width)


def test_a_dropout_that_is_no_probability_is_refused():
    with pytest.raises(ConfigError, match=r"backbone\.dropout must be a probability"):
        cnn((8, 8), dropout=1.0)
