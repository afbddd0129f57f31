import torch

from ovr.backbone.identity import Identity


def test_features_are_the_values_in_order():
    backbone = Identity((2, 3))
    x = torch.randn(4, 2, 3)
    assert backbone.num_features == 6
    assert torch.equal(backbone(x), x.reshape(4, 6))
    assert not list(backbone.parameters())
