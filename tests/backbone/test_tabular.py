import pytest
import torch

from ovr.backbone.tabular import Tabular
from ovr.errors import ConfigError

SETTINGS = {
    "embedded": [],
    "num_buckets": 5,
    "embedding_width": 3,
    "width": 8,
    "num_blocks": 2,
    "hidden_factor": 2.0,
    "activation": "relu",
    "dropout": 0.1,
    "hidden_dropout": 0.1,
}


def test_each_embedded_column_has_vectors_of_its_own():
    backbone = Tabular((4,), **{**SETTINGS, "embedded": ["a", "b"]}).eval()
    x = torch.tensor([[0.5, -1.0, 2.0, 2.0], [0.5, -1.0, 2.0, 3.0]])
    assert backbone.vector_VD.shape == (10, 3)
    backbone(x)[0].square().sum().backward()
    assert backbone.vector_VD.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [2, 7]
    assert not torch.equal(*backbone(x))
    with torch.no_grad():
        backbone.vector_VD[8] = backbone.vector_VD[7]
    torch.testing.assert_close(*backbone(x))


def test_an_index_out_of_range_is_taken_to_the_nearest():
    backbone = Tabular((2,), **{**SETTINGS, "embedded": ["a"]}).eval()
    torch.testing.assert_close(backbone(torch.tensor([[1.0, 99.0], [1.0, -3.0]])), backbone(torch.tensor([[1.0, 4.0], [1.0, 0.0]])))


def test_without_blocks_it_is_one_layer():
    backbone = Tabular((3,), **{**SETTINGS, "num_blocks": 0}).eval()
    x = torch.randn(5, 3)
    torch.testing.assert_close(backbone(x), torch.relu(torch.nn.functional.layer_norm(backbone.first(x), (8,))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedded": ["a"] * 4}, r"backbone.embedded names 4 columns, but rows have shape \(3,\)"),
        ({"num_buckets": 0}, "backbone.num_buckets must be a whole number above 0, got 0"),
        ({"width": 2.5}, "backbone.width must be a whole number above 0"),
        ({"num_blocks": -1}, "backbone.num_blocks must be a whole number of at least 0, got -1"),
        ({"hidden_factor": 0}, "backbone.hidden_factor must be above 0, got 0"),
        ({"activation": "tanh"}, "backbone.activation is 'tanh'; expected one of relu, gelu, silu"),
        ({"dropout": 1.0}, "backbone.dropout must be a probability"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ConfigError, match=message):
        Tabular((3,), **{**SETTINGS, **change})
