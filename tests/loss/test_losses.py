import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ovr.errors import ConfigError
from ovr.loss.bce import Bce
from ovr.loss.focal import Focal

IDS = ("a", "b", "c")


def batch(num_rows=50, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logit_BK = torch.randn(num_rows, 3, generator=generator, dtype=dtype) * 4
    return logit_BK, (torch.rand(num_rows, 3, generator=generator) < 0.3).to(dtype)


def losses():
    return [Bce(IDS, pos_weight=None), Bce(IDS, pos_weight={"b": 3.0}), Focal(IDS, gamma=2.0, pos_weight={"c": 0.5})]


def test_bce_is_torchs_with_and_without_positive_weights():
    logit_BK, target_BK = batch()
    weight_K = torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64)
    for loss, pos_weight in ((Bce(IDS, pos_weight=None), None), (Bce(IDS, pos_weight={"b": 3.0}), weight_K)):
        expected = binary_cross_entropy_with_logits(logit_BK, target_BK, pos_weight=pos_weight, reduction="none")
        torch.testing.assert_close(loss(logit_BK, target_BK), expected)


def test_one_number_weights_every_head():
    logit_BK, target_BK = batch()
    torch.testing.assert_close(
        Bce(IDS, pos_weight=2.0)(logit_BK, target_BK), Bce(IDS, pos_weight=dict.fromkeys(IDS, 2.0))(logit_BK, target_BK)
    )


def test_focal_is_the_papers_formula():
    logit_BK, target_BK = batch()
    p_t = torch.where(target_BK > 0, logit_BK.sigmoid(), 1 - logit_BK.sigmoid())
    torch.testing.assert_close(Focal(IDS, gamma=1.5, pos_weight=None)(logit_BK, target_BK), -((1 - p_t) ** 1.5) * p_t.log())


def test_focal_with_gamma_zero_is_bce():
    logit_BK, target_BK = batch()
    torch.testing.assert_close(
        Focal(IDS, gamma=0.0, pos_weight=None)(logit_BK, target_BK), Bce(IDS, pos_weight=None)(logit_BK, target_BK)
    )


@pytest.mark.parametrize("loss", losses())
def test_gradients_agree_with_differences(loss):
    logit_BK, target_BK = batch(5)
    assert torch.autograd.gradcheck(lambda z: loss.double()(z, target_BK), logit_BK.requires_grad_())


@pytest.mark.parametrize("loss", losses())
@pytest.mark.parametrize("logit", [-1e4, -90.0, 90.0, 1e4])
def test_extreme_logits_keep_loss_and_gradient_finite(loss, logit):
    logit_BK = torch.full((2, 3), logit, requires_grad=True)
    value = loss.float()(logit_BK, torch.tensor([[0.0] * 3, [1.0] * 3]))
    value.sum().backward()
    assert value.isfinite().all()
    assert logit_BK.grad.isfinite().all()


@pytest.mark.parametrize("loss", losses())
def test_a_head_ignores_the_other_heads(loss):
    logit_BK, target_BK = (tensor.float() for tensor in batch())
    before = loss.float()(logit_BK, target_BK)
    logit_BK[:, 1] = 7.0
    after = loss(logit_BK, target_BK)
    np.testing.assert_array_equal(before[:, [0, 2]], after[:, [0, 2]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bce(IDS, pos_weight={"d": 1.0}), r"names classes \['d'\]"),
        (lambda: Bce(IDS, pos_weight=-1.0), "must be positive and finite, got -1.0"),
        (lambda: Bce(IDS, pos_weight={"a": float("nan")}), "must be positive and finite"),
        (lambda: Focal(IDS, gamma=-0.5, pos_weight=None), "at least 0, got -0.5"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
