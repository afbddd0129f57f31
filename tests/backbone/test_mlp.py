import pytest
import torch

from ovr.backbone.mlp import Mlp
from ovr.errors import ConfigError


def test_an_image_is_flattened():
    torch.manual_seed(0)
    backbone = Mlp((2, 3), hidden=[5, 4], activation="gelu", dropout=0.0).eval()
    x = torch.randn(7, 2, 3)
    assert backbone.num_features == 4
    torch.testing.assert_close(backbone(x), backbone.layers[1:](x.reshape(7, 6)))


def test_each_width_is_a_layer():
    backbone = Mlp((6,), hidden=[5, 4, 3], activation="silu", dropout=0.1)
    assert [tuple(m.weight.shape) for m in backbone.modules() if isinstance(m, torch.nn.Linear)] == [(5, 6), (4, 5), (3, 4)]


@pytest.mark.parametrize("hidden", [[], [8, 0], [-1], [2.5], ["8"]])
def test_widths_that_are_none_are_refused(hidden):
    with pytest.raises(ConfigError, match=r"backbone\.hidden must be one or more whole widths above 0"):
        Mlp((6,), hidden=hidden, activation="relu", dropout=0.0)


def test_an_unknown_activation_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"activation is 'tanhh'; expected one of relu, gelu, silu"):
        Mlp((6,), hidden=[4], activation="tanhh", dropout=0.0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_is_no_probability_is_refused(dropout):
    with pytest.raises(ConfigError, match=r"backbone\.dropout must be a probability"):
        Mlp((6,), hidden=[4], activation="relu", dropout=dropout)
