import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ovr.core.counts import ClassCounts
from ovr.errors import ConfigError
from ovr.loss.asymmetric import Asymmetric
from ovr.loss.bce import Bce, positive_weights
from ovr.loss.focal import Focal
from ovr.loss.smoothed import Smoothed
from ovr.loss.subsampled import Subsampled

IDS = ("a", "b", "c")
COUNTS = ClassCounts(np.array([50, 10, 1]), np.array([50, 90, 99]))
NO_B = ClassCounts(np.array([50, 0, 1]), np.array([50, 90, 99]))


def batch(num_rows=50, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logit_BK = torch.randn(num_rows, 3, generator=generator, dtype=dtype) * 4
    return logit_BK, (torch.rand(num_rows, 3, generator=generator) < 0.3).to(dtype)


def losses():
    return [
        Bce(IDS, pos_weight=None),
        Bce(IDS, pos_weight={"b": 3.0}),
        Bce(IDS, pos_weight="auto", max_pos_weight=20.0, counts=COUNTS),
        Focal(IDS, gamma=2.0, pos_weight={"c": 0.5}),
        Asymmetric(IDS, gamma_positive=0.0, gamma_negative=4.0, margin=0.05),
        Asymmetric(IDS, gamma_positive=1.0, gamma_negative=2.0, margin=0.0),
        Smoothed(IDS, smoothing=0.1, counts=COUNTS),
        Subsampled(IDS, negatives_per_positive=5.0, counts=COUNTS).eval(),
    ]


def best_logit(loss, prob):
    """Return the logit of each head (K,) of least mean loss among rows of which a share `prob` is positive, by a fine grid."""
    grid_GK = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None].expand(-1, 3)
    loss = loss.double()
    mean_GK = prob * loss(grid_GK, torch.ones_like(grid_GK)) + (1 - prob) * loss(grid_GK, torch.zeros_like(grid_GK))
    return grid_GK[mean_GK.argmin(dim=0), range(3)].numpy()


def test_bce_is_torchs_with_and_without_positive_weights():
    logit_BK, target_BK = batch()
    weight_K = torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64)
    for loss, pos_weight in ((Bce(IDS, pos_weight=None), None), (Bce(IDS, pos_weight={"b": 3.0}), weight_K)):
        expected = binary_cross_entropy_with_logits(logit_BK, target_BK, pos_weight=pos_weight, reduction="none")
        shift_K = 0.0 if pos_weight is None else weight_K.log()  # what the weight does to the odds, which the head's logit lacks
        torch.testing.assert_close(loss.double()(logit_BK - shift_K, target_BK), expected)


@pytest.mark.parametrize("prob", [0.003, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("pos_weight", [None, 7.0, {"b": 0.2}, "auto"])
def test_weighted_bce_is_least_at_the_true_log_odds(pos_weight, prob):
    loss = Bce(IDS, pos_weight=pos_weight, max_pos_weight=50.0, counts=COUNTS)
    np.testing.assert_allclose(best_logit(loss, prob), np.log(prob / (1 - prob)), atol=1e-3)


@pytest.mark.parametrize("loss", losses())
def test_every_loss_is_least_at_logit_zero_for_even_odds(loss):
    np.testing.assert_allclose(best_logit(loss, 0.5), 0.0, atol=1e-3)


@pytest.mark.parametrize("loss", losses())
def test_a_higher_probability_is_taught_a_higher_logit(loss):
    logits = np.array([best_logit(loss, prob) for prob in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)])
    assert (np.diff(logits, axis=0) > 0).all()


def test_automatic_weights_are_negatives_a_positive_within_the_bound():
    weight_K = positive_weights(IDS, "auto", max_pos_weight=20.0, counts=COUNTS)
    np.testing.assert_allclose(weight_K, [1.0, 9.0, 20.0])
    common = ClassCounts(np.array([99, 0, 0]), np.array([1, 5, 0]))
    np.testing.assert_allclose(positive_weights(IDS, "auto", max_pos_weight=10.0, counts=common), [0.1, 10.0, 1.0])


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
        (lambda: Bce(IDS, pos_weight="balanced"), "is 'balanced'; expected auto, a number"),
        (lambda: Bce(IDS, pos_weight="auto"), "needs the counts of the training rows"),
        (lambda: Bce(IDS, pos_weight="auto", max_pos_weight=0.5, counts=COUNTS), "max_pos_weight must be .* at least 1, got 0.5"),
        (lambda: Focal(IDS, gamma=-0.5, pos_weight=None), "at least 0, got -0.5"),
        (lambda: Asymmetric(IDS, gamma_positive=-1, gamma_negative=4, margin=0), "gamma_positive must be .* got -1"),
        (lambda: Asymmetric(IDS, gamma_positive=0, gamma_negative=float("inf"), margin=0), "gamma_negative must be .* got inf"),
        (lambda: Asymmetric(IDS, gamma_positive=0, gamma_negative=4, margin=1.0), "margin must be .* below 1, got 1.0"),
        (lambda: Asymmetric(IDS, gamma_positive=0, gamma_negative=4, margin=0.5), "one side hardly counts; take a smaller margin"),
        (lambda: Smoothed(IDS, smoothing=1.0, counts=COUNTS), "smoothing must be .* below 1, got 1.0"),
        (lambda: Subsampled(IDS, negatives_per_positive=0, counts=COUNTS), "negatives_per_positive must be positive .* got 0"),
        (lambda: Subsampled(IDS, negatives_per_positive=1, counts=NO_B), r"classes \['b'\] have no positive training row"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 64, 100])
@pytest.mark.parametrize("center", [-40.0, -12.0, 0.0, 12.0, 60.0])
def test_summed_negatives_are_exact_to_float32_however_small_their_loss(num_rows, center):
    logit_BK = torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(0)) * 4 + center
    loss = Bce(IDS, pos_weight=None)
    expected_BK = torch.logaddexp(logit_BK.double(), torch.zeros(()))
    loss_K, grad_BK = loss.negatives(logit_BK.clone(), with_loss=True)
    torch.testing.assert_close(loss_K.double(), expected_BK.sum(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_BK.double(), logit_BK.double().sigmoid(), rtol=1e-6, atol=0)
    assert torch.equal(loss.negatives(logit_BK.clone(), with_loss=False)[1], grad_BK)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 64, 101])
def test_summed_negatives_of_equal_rows_are_exact_at_every_logit(num_rows):
    """Errors of rounding would all point one way."""
    logit_K = torch.linspace(-60, 60, 2401)
    loss_K, _ = Bce([str(k) for k in range(len(logit_K))], pos_weight=None).negatives(logit_K.repeat(num_rows, 1), with_loss=True)
    expected_K = torch.logaddexp(logit_K.double(), torch.zeros(())) * num_rows
    torch.testing.assert_close(loss_K.double(), expected_K, rtol=1e-6, atol=0)


def test_a_logit_of_minus_infinity_has_no_part_in_the_negatives():
    logit_BK = torch.tensor([[0.5, 1.0, -2.0], [-torch.inf, -torch.inf, 3.0], [1.5, -torch.inf, 0.0]])
    loss_K, grad_BK = Bce(IDS, pos_weight={"b": 3.0}).negatives(logit_BK.clone(), with_loss=True)
    shifted_BK = logit_BK + torch.tensor([1.0, 3.0, 1.0]).log()
    torch.testing.assert_close(loss_K, torch.nn.functional.softplus(shifted_BK).sum(0))
    torch.testing.assert_close(grad_BK, shifted_BK.sigmoid())
