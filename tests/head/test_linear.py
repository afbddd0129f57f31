import pytest
import torch

from ovr.errors import ConfigError
from ovr.head.linear import Linear


def test_it_is_one_torch_layer():
    head, layer = Linear(6, num_heads=4), torch.nn.Linear(6, 4)
    layer.load_state_dict({"weight": head.weight_KD.detach(), "bias": head.bias_K.detach()})
    z_BD = torch.randn(9, 6)
    assert torch.equal(head(z_BD), layer(z_BD))


@pytest.mark.parametrize(("num_features", "num_heads"), [(0, 3), (3, 0)])
def test_no_feature_or_no_head_is_refused(num_features, num_heads):
    with pytest.raises(ConfigError, match=f"at least one feature and one head, got {num_features} and {num_heads}"):
        Linear(num_features, num_heads=num_heads)
