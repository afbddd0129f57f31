"""Every kind of head, computed for all K at once, is K heads that do not see each other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ovr.export.head import check_weights
from ovr.head.bank import HeadBank, check_heads_first

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "conf" / "head").glob("*.yaml"))
D, K = 12, 5


def build(name, num_heads=K, num_features=D, seed=0):
    torch.manual_seed(seed)
    cfg = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "head" / f"{name}.yaml"))
    return instantiate(cfg, _convert_="all")(num_features, num_heads=num_heads)


def numpy_logit(kind, weights, z_BD):
    """What one head gives, from its own weights alone."""
    if kind == "mlp":
        z_BD = np.maximum(z_BD @ weights["hidden_weight"].T + weights["hidden_bias"], 0)
    return (z_BD @ weights["weight"].T + weights["bias"])[:, 0]


def test_files_and_configurations_have_the_same_names():
    assert sorted(path.stem for path in (ROOT / "ovr" / "head").glob("*.py") if path.stem not in ("__init__", "bank")) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_heads", [1, 2, K])
def test_all_heads_at_once_give_what_each_gives_alone(name, num_heads):
    head, z_BD = build(name, num_heads), torch.randn(7, D)
    logit_BK = head(z_BD).detach().numpy()
    assert logit_BK.shape == (7, num_heads)
    for k in range(num_heads):
        np.testing.assert_allclose(logit_BK[:, k], numpy_logit(head.kind, head.head_weights(k), z_BD.numpy()), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_one_head_are_a_copy_that_export_takes(name):
    head = build(name)
    weights = head.head_weights(3)
    check_weights(head.kind, weights)
    assert all(value.dtype == np.float32 for value in weights.values())
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    assert all(value.any() for value in weights.values())


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_one_head_gave_make_another_the_same_head(name):
    first, second, z_BD = build(name), build(name, num_heads=3, seed=1), torch.randn(7, D)
    before = [second.head_weights(k) for k in (0, 2)]
    second.set_head_weights(1, first.head_weights(4))
    torch.testing.assert_close(second(z_BD)[:, 1], first(z_BD)[:, 4], atol=1e-6, rtol=1e-6)
    for old, k in zip(before, (0, 2), strict=True):
        assert all(np.array_equal(value, second.head_weights(k)[key]) for key, value in old.items())


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_head_lie_together_in_column_order(name):
    check_heads_first(build(name), num_heads=K)


@pytest.mark.parametrize("name", NAMES)
def test_a_heads_loss_has_no_gradient_in_another_heads_weights(name):
    head, z_BD = build(name), torch.randn(7, D)
    head(z_BD)[:, 2].square().sum().backward()
    for parameter_name, parameter in head.named_parameters():
        moved = parameter.grad.reshape(K, -1).abs().sum(1) > 0
        assert moved.tolist() == [False, False, True, False, False], parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_heads_begin_apart_and_at_the_size_of_one_torch_layer(name):
    num_heads, num_features = 400, 100
    head = build(name, num_heads, num_features)
    logit_BK = head(torch.randn(50, num_features)).detach()
    assert len(torch.unique(logit_BK[0])) == num_heads
    first = head.head_weights(0)
    first = first.get("hidden_weight", first["weight"])
    assert np.abs(first).max() <= num_features**-0.5
    every = np.concatenate([head.head_weights(k).get("hidden_weight", head.head_weights(k)["weight"]) for k in range(num_heads)])
    assert abs(every.std() - (3 * num_features) ** -0.5) < 1e-3  # of the uniform distribution on [-D^-1/2, D^-1/2]
    assert abs(every.mean()) < 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [slice(None), slice(0, 2), slice(3, 5), slice(1, 4), slice(2, 2)])
def test_some_columns_are_those_of_all(name, columns):
    head, z_BD = build(name), torch.randn(7, D)
    torch.testing.assert_close(head(z_BD, columns), head(z_BD)[:, columns])
    bank = HeadBank(lambda n, num_heads: build(name, num_heads, n), D, num_heads=K, frozen=[1, 4], to_backbone=[0, 1, 3])
    torch.testing.assert_close(bank(z_BD, columns), bank(z_BD)[:, columns])
