import pytest
import torch

from ovr.backbone.mlp import Mlp
from ovr.errors import ConfigError
from ovr.head.linear import Linear
from ovr.model import Normalizer, OvrModel


def model(shift, scale):
    torch.manual_seed(0)
    backbone = Mlp((6,), hidden=[8], activation="relu", dropout=0.1)
    return OvrModel(Normalizer(shift, scale), backbone, Linear(8, num_heads=3)).eval()


@pytest.mark.parametrize("shape", [(1,), (6,)])
def test_the_normalizer_is_part_of_the_network(shape):
    x, shift, scale = torch.randn(5, 6), torch.randn(shape), torch.rand(shape) + 0.5
    plain = model(torch.zeros(1), torch.ones(1))
    torch.testing.assert_close(model(shift, scale)(x), plain((x - shift) * scale))


def test_a_channel_statistic_broadcasts_over_an_image():
    x, shift, scale = torch.randn(4, 3, 5, 5), torch.randn(3, 1, 1), torch.rand(3, 1, 1)
    torch.testing.assert_close(Normalizer(shift, scale)(x)[2, 1, 0, 4], (x[2, 1, 0, 4] - shift[1, 0, 0]) * scale[1, 0, 0])


def test_logits_are_the_head_of_the_features():
    network, x = model(torch.zeros(1), torch.ones(1)), torch.randn(5, 6)
    torch.testing.assert_close(network(x), network.head(network.features(x)))
    assert network(x).shape == (5, 3)


def test_the_statistics_are_saved_but_not_trained():
    network = model(torch.full((6,), 2.0), torch.ones(6))
    assert {"normalizer.shift", "normalizer.scale"} <= set(network.state_dict())
    assert not any(name.startswith("normalizer") for name, _ in network.named_parameters())


def test_float64_statistics_are_kept_in_float32():
    assert Normalizer(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)).scale.dtype == torch.float32


def test_statistics_of_two_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"shift has shape \(2,\), scale \(3,\)"):
        Normalizer(torch.zeros(2), torch.ones(3))


def test_a_statistic_that_is_not_finite_is_refused():
    with pytest.raises(ConfigError, match="normalizer scale holds inf"):
        Normalizer(torch.zeros(2), torch.tensor([1.0, float("inf")]))


def test_a_fixed_backbone_is_neither_trained_nor_in_training_mode():
    network, x = model(torch.zeros(1), torch.ones(1)), torch.randn(5, 6)
    expected = network.eval()(x)
    fixed = OvrModel(network.normalizer, network.backbone, network.head, fixed_backbone=True).train()
    assert fixed.training
    assert fixed.head.training
    assert not any(part.training for part in fixed.backbone.modules())
    assert torch.equal(fixed(x), expected), "no dropout"
    assert fixed.trained_parameters() == list(fixed.head.parameters())
    assert not fixed.features(x).requires_grad
