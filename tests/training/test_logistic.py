"""References: scikit-learn's LogisticRegression, and the objective and its gradient written out in float64."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ovr.errors import ConfigError, DataError
from ovr.training import logistic
from ovr.training.logistic import fit_logistic

EXACT = {"C": 1.0, "tol": 1e-7, "max_iter": 2000}


@pytest.fixture(scope="module")
def digits():
    x, column_N = load_digits(return_X_y=True)
    x = ((x - x.mean()) / x.std()).astype(np.float32)
    return x, column_N[:, None] == np.arange(10)


def objective(x_ND, target_N, weight_N, weight_D, bias, C):
    logit_N = x_ND.astype(np.float64) @ weight_D + bias
    return C * weight_N @ np.logaddexp(0, np.where(target_N, -logit_N, logit_N)) + weight_D @ weight_D / 2


def excess_K(x_ND, target_NK, mask_NK, fit, C, pos_weight_K=None):
    """Return how far each head's objective lies above the reference's, relative to it."""
    found = []
    for k in range(target_NK.shape[1]):
        known_N = mask_NK[:, k]
        x, target_N = x_ND[known_N].astype(np.float64), target_NK[known_N, k]
        weight_N = np.where(target_N, 1.0 if pos_weight_K is None else pos_weight_K[k], 1.0)
        reference = LogisticRegression(C=C, tol=1e-10, max_iter=10_000, solver="newton-cholesky")
        reference.fit(x, target_N, sample_weight=weight_N)
        best = objective(x, target_N, weight_N, reference.coef_[0], reference.intercept_[0], C)
        found.append(objective(x, target_N, weight_N, fit.weight_KD[k], fit.bias_K[k], C) / best - 1)
    return np.array(found)


@pytest.mark.parametrize("C", [0.01, 1.0, 10.0])
def test_every_head_has_the_optimum_of_scikit_learn(digits, C):
    x_ND, target_NK = digits
    mask_NK = np.ones_like(target_NK)
    fit = fit_logistic(x_ND, target_NK, mask_NK, **(EXACT | {"C": C}))
    assert set(fit.status) == {"ok"}
    assert np.abs(excess_K(x_ND, target_NK, mask_NK, fit, C)).max() <= 1e-6


def test_unknown_rows_and_positive_weights_are_what_they_are_in_scikit_learn(digits, rng):
    x_ND, target_NK = digits
    mask_NK = rng.random(target_NK.shape) < rng.uniform(0.2, 1.0, 10)
    pos_weight_K = rng.uniform(0.2, 20.0, 10)
    garbage_NK = np.where(mask_NK, target_NK, 7)  # what is unknown is not looked at
    fit = fit_logistic(x_ND, garbage_NK, mask_NK, pos_weight_K=pos_weight_K, **EXACT)
    assert set(fit.status) == {"ok"}
    assert np.abs(excess_K(x_ND, target_NK, mask_NK, fit, 1.0, pos_weight_K)).max() <= 1e-6


def test_the_stopping_rule_is_that_of_scikit_learn(digits):
    x_ND, target_NK = digits
    x_ND = x_ND + 3.0  # a mean of the features, so that centring shows
    for tol in (1e-2, 1e-4, 1e-6):
        fit = fit_logistic(x_ND, target_NK, np.ones_like(target_NK), C=1.0, tol=tol, max_iter=1000)
        x64_ND = x_ND.astype(np.float64)
        residual_NK = 1 / (1 + np.exp(-(x64_ND @ fit.weight_KD.T + fit.bias_K))) - target_NK
        grad_KD = (residual_NK.T @ x64_ND + fit.weight_KD) / len(x_ND)
        largest_K = np.maximum(np.abs(grad_KD).max(axis=1), np.abs(residual_NK.mean(axis=0)))
        np.testing.assert_allclose(fit.max_abs_grad_K, largest_K, rtol=1e-6)
        assert largest_K.max() <= tol


def test_heads_without_an_optimum_say_so_and_are_the_share_of_positives(digits):
    x_ND, target_NK = digits
    target_NK, mask_NK = target_NK[:, :5].copy(), np.ones((len(x_ND), 5), dtype=bool)
    target_NK[:, 1], target_NK[:, 2], mask_NK[:, 3] = True, False, False
    mask_NK[:, 4] = target_NK[:, 4]
    fit = fit_logistic(x_ND, target_NK, mask_NK, **EXACT)
    assert fit.status == ["ok", "one_class", "one_class", "no_rows", "one_class"]
    assert not fit.weight_KD[1:].any()
    n, positives = len(x_ND), int(target_NK[:, 4].sum())
    expected = [np.log((n + 0.5) / 0.5), np.log(0.5 / (n + 0.5)), 0.0, np.log((positives + 0.5) / 0.5)]
    np.testing.assert_allclose(fit.bias_K[1:], expected)
    assert np.isnan(fit.max_abs_grad_K[1:]).all()
    alone = fit_logistic(x_ND, target_NK[:, :1], mask_NK[:, :1], **EXACT)
    np.testing.assert_allclose(fit.weight_KD[0], alone.weight_KD[0], atol=1e-4)
    assert fit_logistic(x_ND, target_NK[:, 1:2], mask_NK[:, 1:2], **EXACT).status == ["one_class"]


def test_a_head_that_needs_more_steps_says_so_and_keeps_what_it_has(digits):
    x_ND, target_NK = digits
    fit = fit_logistic(x_ND, target_NK, np.ones_like(target_NK), C=1.0, tol=1e-7, max_iter=3)
    assert set(fit.status) == {"not_converged"}
    assert (fit.num_steps_K == 3).all()
    logit_NK = x_ND @ fit.weight_KD.T + fit.bias_K
    assert (logit_NK.argmax(axis=1) == target_NK.argmax(axis=1)).mean() > 0.9


def test_a_tolerance_below_rounding_ends_with_a_status(digits):
    x_ND, target_NK = digits
    fit = fit_logistic(x_ND, target_NK[:, :3], np.ones((len(x_ND), 3)), C=1.0, tol=1e-18, max_iter=300)
    assert set(fit.status) == {"not_converged"}
    assert fit.max_abs_grad_K.max() < 1e-12


@pytest.mark.parametrize(
    "change",
    [
        lambda x, rng: x * 10 ** rng.uniform(-2, 2, x.shape[1]),
        lambda x, rng: x + 100.0,
        lambda x, rng: np.hstack([x, x]),
        lambda x, rng: x[:, :1] * 0 + 5.0,
        lambda x, rng: rng.normal(size=(len(x), 450)),
    ],
    ids=["scales", "offset", "twice the same", "constant", "wide"],
)
def test_features_of_any_kind_are_solved(digits, rng, change):
    x_ND, target_NK = digits[0][:400], digits[1][:400, :3]
    x_ND = change(x_ND, rng).astype(np.float32)
    fit = fit_logistic(x_ND, target_NK, np.ones_like(target_NK), **EXACT)
    assert set(fit.status) == {"ok"}
    assert excess_K(x_ND, target_NK, np.ones_like(target_NK), fit, 1.0).max() <= 1e-5


def test_separable_rows_with_hardly_any_penalty_stay_finite():
    x_ND, target_NK = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([[0], [0], [1], [1]])
    fit = fit_logistic(x_ND, target_NK, np.ones_like(target_NK), C=1e8, tol=1e-9, max_iter=1000)
    assert fit.status == ["ok"]
    assert 5 < fit.weight_KD[0, 0] < 50


def test_the_same_arguments_give_the_same_bits_and_blocks_the_same_optimum(digits, monkeypatch):
    x_ND, target_NK = digits
    arguments = x_ND, target_NK, np.ones_like(target_NK)
    once, twice = fit_logistic(*arguments, **EXACT), fit_logistic(*arguments, **EXACT)
    assert (once.weight_KD == twice.weight_KD).all()
    assert (once.bias_K == twice.bias_K).all()
    monkeypatch.setattr(logistic, "BLOCK_VALUES", 3 * len(x_ND))
    in_blocks = fit_logistic(*arguments, **EXACT)
    assert (in_blocks.max_abs_grad_K <= 1e-7).all()
    np.testing.assert_allclose(in_blocks.weight_KD, once.weight_KD, atol=1e-3)


X, Y = np.zeros((4, 2), dtype=np.float32), np.array([[0], [1], [0], [1]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"C": 0.0}, ConfigError, r"solver\.C must be a finite number above 0, got 0\.0"),
        ({"tol": np.inf}, ConfigError, r"solver\.tol must be a finite number above 0, got inf"),
        ({"max_iter": -1}, ConfigError, r"solver\.max_iter must be a finite number above 0, got -1"),
        ({"max_iter": 1.5}, ConfigError, r"solver\.max_iter must be a whole number, got 1\.5"),
        ({"C": "1"}, ConfigError, r"solver\.C must be a finite number above 0, got '1'"),
        ({"feature_ND": X[:3]}, DataError, r"features have shape \(3, 2\) and targets \(4, 1\)"),
        ({"feature_ND": np.array([[0, 0], [0, np.nan], [0, 0], [0, 0]])}, DataError, "feature 1 of row 1 is nan; expected finite"),
        ({"feature_ND": X + 1e16}, DataError, r"feature 0 of row 0 is 1\.0*\d*e\+16; expected finite ones of at most 1e\+15"),
        ({"target_NK": Y * 2}, DataError, "target of row 1, head column 0 is 2; expected 0 or 1"),
        ({"mask_NK": np.ones((4, 2))}, DataError, r"mask has shape \(4, 2\); expected \(4, 1\)"),
        ({"pos_weight_K": [1.0, 1.0]}, DataError, "positive weights must be 1 finite numbers above 0"),
        ({"pos_weight_K": [0.0]}, DataError, "positive weights must be 1 finite numbers above 0"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {"feature_ND": X, "target_NK": Y, "mask_NK": np.ones((4, 1)), **EXACT} | change
    with pytest.raises(error, match=message):
        fit_logistic(arguments.pop("feature_ND"), arguments.pop("target_NK"), arguments.pop("mask_NK"), **arguments)
