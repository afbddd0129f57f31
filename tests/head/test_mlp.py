import pytest
import torch

from ovr.errors import ConfigError
from ovr.head.mlp import Mlp


def test_it_is_k_torch_networks():
    torch.manual_seed(0)
    head, z_BD = Mlp(6, num_heads=4, hidden=5), torch.randn(9, 6)
    for k in range(4):
        weights = {name: torch.from_numpy(value) for name, value in head.head_weights(k).items()}
        network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
        network[0].load_state_dict({"weight": weights["hidden_weight"], "bias": weights["hidden_bias"]})
        network[2].load_state_dict({"weight": weights["weight"], "bias": weights["bias"]})
        torch.testing.assert_close(head(z_BD)[:, k : k + 1], network(z_BD))


@pytest.mark.parametrize(("num_features", "num_heads"), [(0, 3), (3, 0)])
def test_no_feature_or_no_head_is_refused(num_features, num_heads):
    with pytest.raises(ConfigError, match=f"at least one feature and one head, got {num_features} and {num_heads}"):
        Mlp(num_features, num_heads=num_heads, hidden=4)


@pytest.mark.parametrize("hidden", [0, 1.5, [8]])
def test_a_width_that_is_none_is_refused(hidden):
    with pytest.raises(ConfigError, match=r"head\.hidden must be a whole number above 0"):
        Mlp(6, num_heads=2, hidden=hidden)
