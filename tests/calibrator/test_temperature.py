"""Properties of the temperature fit, against SciPy's Brent and direct evaluation."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit

from ovr.calibrator.newton import UNKNOWN
from ovr.calibrator.temperature import Temperature, fit_temperature
from ovr.core.artifact import Calibration
from ovr.errors import ConfigError, DataError

WIDE = {"min_temperature": 1e-3, "max_temperature": 1e3}


def sample_heads(rng, *, num_rows, temperatures, prevalence_logit=-1.0):
    """Return (N, K) overconfident logits whose best temperatures are near `temperatures`, targets and a full mask."""
    true_NK = rng.normal(prevalence_logit, 2.0, size=(num_rows, len(temperatures)))
    target_NK = rng.random(true_NK.shape) < 1.0 / (1.0 + np.exp(-true_NK))
    return true_NK * np.asarray(temperatures), target_NK, np.ones_like(target_NK)


def mean_nll(logit_N, target_N, scale=1.0):
    """Return the likelihood by its definition."""
    signed_N = np.where(target_N, -logit_N, logit_N) * scale
    return np.logaddexp(0.0, signed_N).mean()


def brent_temperature(logit_N, target_N, *, min_temperature, max_temperature):
    """Return T by Brent's minimisation of the likelihood."""
    bounds = (-np.log(max_temperature), -np.log(min_temperature))
    options = {"xatol": 1e-10}
    return np.exp(
        -minimize_scalar(lambda u: mean_nll(logit_N, target_N, np.exp(u)), bounds=bounds, method="bounded", options=options).x
    )


def root_temperature(logit_N, target_N):
    """Return T to the last digits, as the root of the derivative of the likelihood."""
    signed_N = np.where(target_N, logit_N, -logit_N)
    return np.exp(-brentq(lambda u: np.sum(signed_N * expit(-signed_N * np.exp(u))), -6, 3, xtol=1e-15, rtol=1e-15))


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("num_rows", [40, 300, 5000])
def test_it_finds_the_temperature_that_brent_finds(rng, num_rows):
    temperatures = np.geomspace(0.3, 5.0, 12)
    logit_NK, target_NK, mask_NK = sample_heads(rng, num_rows=num_rows, temperatures=temperatures)
    fit = fit_temperature(logit_NK, target_NK, mask_NK, **WIDE)
    assert set(fit.status_K) == {"ok"}
    for k in range(len(temperatures)):
        logit_N, target_N = logit_NK[:, k], target_NK[:, k]
        assert 1.0 / fit.scale_K[k] == pytest.approx(brent_temperature(logit_N, target_N, **WIDE), rel=1e-6)
        assert 1.0 / fit.scale_K[k] == pytest.approx(root_temperature(logit_N, target_N), rel=3e-7)
        assert fit.nll_before_K[k] == pytest.approx(mean_nll(logit_N, target_N), rel=1e-12)
        assert fit.nll_after_K[k] == pytest.approx(mean_nll(logit_N, target_N, fit.scale_K[k]), rel=1e-12)


def test_rows_enough_recover_the_true_temperature(rng):
    temperatures = (0.5, 1.0, 3.0)
    fit = fit_temperature(*sample_heads(rng, num_rows=60_000, temperatures=temperatures))
    np.testing.assert_allclose(1.0 / fit.scale_K, temperatures, rtol=0.03)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 1e3])
def test_heavy_tailed_logits_of_any_size_give_the_optimum(rng, spread):
    logit_NK = spread * rng.standard_cauchy(size=(400, 6)) * rng.choice([0.01, 1.0, 50.0], size=(400, 6))
    target_NK = rng.random(logit_NK.shape) < 0.3 + 0.4 * (logit_NK > 0)
    fit = fit_temperature(logit_NK, target_NK, np.ones_like(target_NK), min_temperature=1e-6, max_temperature=1e9)
    assert set(fit.status_K) == {"ok"}
    for k in range(6):
        signed_N = np.where(target_NK[:, k], logit_NK[:, k], -logit_NK[:, k])
        scale = fit.scale_K[k]
        with np.errstate(over="ignore"):
            pull_N = np.abs(signed_N) / (1.0 + np.exp(np.abs(signed_N) * scale))
        wrong = np.abs(signed_N[signed_N < 0]).sum()
        assert pull_N.sum() == pytest.approx(wrong, rel=1e-6)  # dL/db = 0


@pytest.mark.parametrize("kind", ["normal", "cauchy", "three sizes", "log-normal", "few values"])
@pytest.mark.parametrize("num_rows", [2, 3, 30, 1500])
def test_distributions_of_every_kind_give_the_root_of_the_derivative(rng, kind, num_rows):
    shape = (num_rows, 200)
    logit_NK = {
        "normal": lambda: rng.normal(size=shape),
        "cauchy": lambda: rng.standard_cauchy(shape),
        "three sizes": lambda: rng.choice([1e-6, 1.0, 30.0], size=shape) * rng.choice([-1, 1], size=shape),
        "log-normal": lambda: np.exp(5 * rng.normal(size=shape)) * rng.choice([-1, 1], size=shape),
        "few values": lambda: rng.integers(-3, 4, size=shape).astype(float),
    }[kind]() * np.exp(rng.uniform(-8, 8, 200))
    target_NK = (logit_NK > 0) ^ (rng.random(shape) < rng.choice([0.001, 0.01, 0.1, 0.3, 0.49], size=200))
    fit = fit_temperature(logit_NK, target_NK, np.ones(shape), min_temperature=1e-4, max_temperature=1e4)
    signed_NK = np.where(target_NK, logit_NK, -logit_NK)
    for k in np.flatnonzero(np.array(fit.status_K) == "ok"):
        wrong = -np.minimum(signed_NK[:, k], 0.0).sum()
        if wrong == 0:  # logits of 0 alone
            continue
        pull = [
            (np.abs(signed_NK[:, k]) * expit(-np.abs(signed_NK[:, k]) * fit.scale_K[k] * f)).sum() for f in (1 - 5e-7, 1 + 5e-7)
        ]
        assert pull[0] >= wrong * (1 - 1e-12)
        assert pull[1] <= wrong * (1 + 1e-12)


def test_sorted_rows_are_fitted_like_shuffled_ones(rng):
    logit_NK, target_NK, mask_NK = sample_heads(rng, num_rows=9000, temperatures=(2.0, 0.6))
    order = np.argsort(logit_NK[:, 0])
    fit = fit_temperature(logit_NK, target_NK, mask_NK)
    other = fit_temperature(logit_NK[order], target_NK[order], mask_NK)
    np.testing.assert_allclose(other.scale_K, fit.scale_K, rtol=3e-7)


@pytest.mark.parametrize("num_rows", [3, 300, 3000])
def test_a_head_ignores_the_other_heads(rng, num_rows):
    temperatures = rng.uniform(0.3, 4.0, 150)
    logit_NK, target_NK, mask_NK = sample_heads(rng, num_rows=num_rows, temperatures=temperatures)
    mask_NK = rng.random(mask_NK.shape) < 0.8
    every = fit_temperature(logit_NK, target_NK, mask_NK)
    for k in (0, 1, 63, 64, 149):
        alone = fit_temperature(logit_NK[:, k : k + 1], target_NK[:, k : k + 1], mask_NK[:, k : k + 1])
        assert alone.scale_K[0] == every.scale_K[k]
        assert alone.status_K[0] == every.status_K[k]
        np.testing.assert_array_equal([alone.nll_before_K[0], alone.nll_after_K[0]], [every.nll_before_K[k], every.nll_after_K[k]])


def test_memory_order_and_stored_type_of_equal_logits_change_nothing(rng):
    logit_NK, target_NK, mask_NK = sample_heads(rng, num_rows=500, temperatures=(2.0, 0.6, 1.0))
    logit_NK = logit_NK.astype(np.float32)
    fit = fit_temperature(logit_NK, target_NK, mask_NK)
    for other in (np.asfortranarray(logit_NK), logit_NK.astype(np.float64), np.repeat(logit_NK, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(
            fit_temperature(other, target_NK.astype(int), mask_NK.astype(np.float32)).scale_K, fit.scale_K
        )


def test_unknown_rows_count_for_nothing(rng):
    logit_NK, target_NK, _ = sample_heads(rng, num_rows=2000, temperatures=(2.0, 0.6, 1.3))
    mask_NK = rng.random(logit_NK.shape) < np.array([0.5, 0.01 + 0.03, 1.0])
    fit = fit_temperature(logit_NK, target_NK, mask_NK, **WIDE)
    for k in range(3):
        known = mask_NK[:, k]
        logit_N, target_N = logit_NK[known, k], target_NK[known, k]
        alone = fit_temperature(logit_N[:, None], target_N[:, None], np.ones((known.sum(), 1)), **WIDE)
        assert fit.num_rows_K[k] == known.sum()
        assert fit.num_positives_K[k] == target_N.sum()
        assert fit.scale_K[k] == pytest.approx(alone.scale_K[0], rel=3e-7)
        assert fit.nll_before_K[k] == pytest.approx(mean_nll(logit_N, target_N), rel=1e-13)
        assert fit.nll_after_K[k] == pytest.approx(mean_nll(logit_N, target_N, fit.scale_K[k]), rel=1e-13)


def test_what_stands_in_unknown_targets_is_not_looked_at(rng):
    logit_NK, target_NK, _ = sample_heads(rng, num_rows=200, temperatures=(2.0,))
    mask_NK = rng.random(logit_NK.shape) < 0.5
    fit = fit_temperature(logit_NK, target_NK, mask_NK)
    other = fit_temperature(logit_NK, np.where(mask_NK, target_NK, np.nan), mask_NK)
    assert other.scale_K[0] == fit.scale_K[0]
    assert other.num_positives_K[0] == fit.num_positives_K[0]


def test_the_likelihood_is_never_worse_than_at_one(rng):
    for num_rows in (1, 2, 3, 5, 20, 1100):
        logit_NK = rng.normal(size=(num_rows, 80)) * np.geomspace(1e-6, 1e6, 80)
        target_NK = rng.random(logit_NK.shape) < 0.4
        mask_NK = rng.random(logit_NK.shape) < 0.9
        fit = fit_temperature(logit_NK, target_NK, mask_NK)
        known_K = mask_NK.any(axis=0)
        assert np.all(fit.nll_after_K[known_K] <= fit.nll_before_K[known_K])
        assert np.isnan(fit.nll_after_K[~known_K]).all()
        assert np.isfinite(fit.scale_K).all()
        assert np.all((fit.scale_K >= 1 / 20.0) & (fit.scale_K <= 1 / 0.05))


def test_a_head_already_at_its_optimum_keeps_it(rng):
    logit_NK, target_NK, mask_NK = sample_heads(rng, num_rows=3000, temperatures=(2.0, 0.6))
    once = fit_temperature(logit_NK, target_NK, mask_NK)
    again = fit_temperature(logit_NK * once.scale_K, target_NK, mask_NK)
    np.testing.assert_allclose(again.scale_K, 1.0, rtol=3e-7)
    assert np.all(again.nll_after_K <= again.nll_before_K)


def test_one_class_and_no_rows_keep_one_and_say_so():
    logit_NK = np.array([[1.0, 2.0, -3.0], [-1.0, 0.5, 4.0], [2.0, 1.0, 1.0]])
    target_NK = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1]])
    mask_NK = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]])
    fit = fit_temperature(logit_NK, target_NK, mask_NK)
    assert fit.status_K == ("one_class", "one_class", "no_rows")
    np.testing.assert_array_equal(fit.scale_K, 1.0)
    np.testing.assert_array_equal(fit.num_rows_K, [3, 2, 0])
    np.testing.assert_array_equal(fit.num_positives_K, [3, 0, 0])
    assert fit.nll_before_K[0] == fit.nll_after_K[0] == pytest.approx(mean_nll(logit_NK[:, 0], target_NK[:, 0] == 1))
    assert np.isnan(fit.nll_before_K[2])
    assert np.isnan(fit.nll_after_K[2])


def test_no_rows_at_all_is_a_status_not_an_error():
    fit = fit_temperature(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)))
    assert fit.status_K == ("no_rows",) * 3
    np.testing.assert_array_equal(fit.scale_K, 1.0)


def test_one_row_has_one_class():
    assert fit_temperature([[3.0]], [[1]], [[1]]).status_K == ("one_class",)


def test_a_head_without_a_mistake_is_separable_and_keeps_one(rng):
    logit_N1 = rng.normal(size=(100, 1)) * 5
    fit = fit_temperature(logit_N1, logit_N1 > 0, np.ones_like(logit_N1))
    assert fit.status_K == ("separable",)
    assert fit.scale_K[0] == 1.0


def test_one_slight_mistake_among_confident_rows_ends_at_the_smallest_temperature():
    logit_N1 = np.array([[-1e-12], [1.0], [1.2], [-1.0]])
    fit = fit_temperature(logit_N1, [[1], [1], [1], [0]], np.ones((4, 1)), min_temperature=0.25)
    assert fit.status_K == ("at_bound",)
    assert fit.scale_K[0] == 4.0


@pytest.mark.parametrize("num_rows", [100, 3000])
def test_a_head_that_is_always_wrong_ends_at_the_largest_temperature(rng, num_rows):
    logit_N1 = rng.normal(size=(num_rows, 1)) * 5
    fit = fit_temperature(logit_N1, logit_N1 < 0, np.ones_like(logit_N1), max_temperature=8.0)
    assert fit.status_K == ("at_bound",)
    assert fit.scale_K[0] == 1 / 8
    assert fit.nll_after_K[0] < fit.nll_before_K[0]


def test_bounds_that_leave_no_choice_give_one(rng):
    fit = fit_temperature(*sample_heads(rng, num_rows=200, temperatures=(3.0, 0.3)), min_temperature=1.0, max_temperature=1.0)
    np.testing.assert_array_equal(fit.scale_K, 1.0)
    assert fit.status_K == ("at_bound", "at_bound")


def test_logits_of_zero_name_no_temperature():
    fit = fit_temperature(np.zeros((4, 1)), [[1], [0], [1], [0]], [[1], [1], [1], [0]])
    assert fit.status_K == ("ok",)
    assert fit.scale_K[0] == 1.0
    assert fit.nll_after_K[0] == pytest.approx(np.log(2.0))


@pytest.mark.parametrize("size", [1e2, 1e4, 3e38, 1e300])
def test_extreme_logits_give_finite_temperatures(rng, size):
    logit_NK = rng.normal(size=(200, 5)) * size
    target_NK = rng.random(logit_NK.shape) < 1.0 / (1.0 + np.exp(-np.clip(logit_NK / size * 3, -30, 30)))
    fit = fit_temperature(logit_NK, target_NK, np.ones_like(target_NK))
    assert np.isfinite(fit.scale_K).all()
    assert np.all(fit.nll_after_K <= fit.nll_before_K)


def test_float32_holds_the_distance_of_unknown_rows():
    assert np.isfinite(np.float32(UNKNOWN))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_naming_row_and_column(wrong):
    logit_NK = np.zeros((3, 2))
    logit_NK[2, 1] = wrong
    with pytest.raises(DataError, match=r"logit of row 2, head column 1 is .*finite \(1 of 6"):
        fit_temperature(logit_NK, np.zeros((3, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (-1.0, 2.0), (1.5, 2.0), (0.5, 0.9), (0.5, np.inf), (np.nan, 2.0)])
def test_bounds_that_do_not_hold_one_are_refused(low, high):
    with pytest.raises(ConfigError, match="0 < min_temperature <= 1 <= max_temperature < infinity"):
        Temperature(min_temperature=low, max_temperature=high)
    with pytest.raises(ConfigError, match="temperature bounds are"):
        fit_temperature([[1.0]], [[1]], [[1]], min_temperature=low, max_temperature=high)


def test_the_plug_in_returns_one_calibration_a_head(rng):
    logit_NK, target_NK, mask_NK = sample_heads(rng, num_rows=300, temperatures=(2.0, 0.6))
    fit = fit_temperature(logit_NK, target_NK, mask_NK, min_temperature=0.1, max_temperature=9.0)
    calibrations = Temperature(min_temperature=0.1, max_temperature=9.0, prior_strength=0.0).fit(logit_NK, target_NK, mask_NK)
    assert calibrations[1] == Calibration("temperature", float(fit.scale_K[1]), 0.0, "ok", 300, int(target_NK[:, 1].sum()))
    assert calibrations[0].temperature == pytest.approx(2.0, rel=0.3)
    assert all(type(c.scale) is float and type(c.num_rows) is int for c in calibrations)


def penalised(log_scale, logit_N, target_N, strength):
    """Return likelihood and prior by their definitions."""
    scale = np.exp(log_scale)
    return len(logit_N) * mean_nll(logit_N, target_N, scale) + strength * (scale - 1.0 - log_scale)


@pytest.mark.parametrize("strength", [0.1, 5.0, 300.0])
@pytest.mark.parametrize("num_rows", [30, 3000])
def test_with_a_prior_it_finds_the_optimum_that_brent_finds(rng, num_rows, strength):
    logit_NK, target_NK, mask_NK = sample_heads(rng, num_rows=num_rows, temperatures=np.geomspace(0.3, 5.0, 8))
    fit = fit_temperature(logit_NK, target_NK, mask_NK, prior_strength=strength, **WIDE)
    for k in range(8):
        found = minimize_scalar(
            penalised, bounds=(-7, 7), args=(logit_NK[:, k], target_NK[:, k], strength), options={"xatol": 1e-10}
        )
        assert fit.scale_K[k] == pytest.approx(np.exp(found.x), rel=1e-6)


def test_a_prior_draws_to_one_and_never_past_it(rng):
    logit_NK, target_NK, mask_NK = sample_heads(rng, num_rows=200, temperatures=np.geomspace(0.3, 5.0, 12))
    last = fit_temperature(logit_NK, target_NK, mask_NK)
    for strength in (0.5, 5.0, 50.0, 5e3, 1e9):
        fit = fit_temperature(logit_NK, target_NK, mask_NK, prior_strength=strength)
        assert np.all(np.abs(np.log(fit.scale_K)) <= np.abs(np.log(last.scale_K)) + 1e-9)
        assert np.all(np.log(fit.scale_K) * np.log(last.scale_K) >= -1e-9)
        assert np.all(fit.nll_after_K <= fit.nll_before_K)
        last = fit
    np.testing.assert_allclose(last.scale_K, 1.0, rtol=1e-5)


def test_with_many_rows_the_prior_hardly_counts(rng):
    sample = sample_heads(rng, num_rows=30_000, temperatures=(0.5, 2.0))
    np.testing.assert_allclose(fit_temperature(*sample, prior_strength=5.0).scale_K, fit_temperature(*sample).scale_K, rtol=0.01)


def test_a_separable_head_has_an_optimum_with_a_prior_and_still_says_so(rng):
    logit_N1 = rng.normal(size=(100, 1)) * 5
    fit = fit_temperature(logit_N1, logit_N1 > 0, np.ones_like(logit_N1), prior_strength=5.0)
    found = minimize_scalar(penalised, bounds=(-3, 3), args=(logit_N1[:, 0], logit_N1[:, 0] > 0, 5.0), options={"xatol": 1e-10})
    assert fit.status_K == ("separable",)
    assert 1.0 < fit.scale_K[0] == pytest.approx(np.exp(found.x), rel=1e-6)


def test_what_names_no_temperature_keeps_one_with_a_prior_too():
    fit = fit_temperature([[1.0, 5.0, 0.0], [2.0, 5.0, 0.0]], [[1, 0, 1], [1, 0, 0]], [[1, 0, 1], [1, 0, 1]], prior_strength=5.0)
    assert fit.status_K == ("one_class", "no_rows", "ok")
    np.testing.assert_array_equal(fit.scale_K, 1.0)


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_a_prior_strength_is_zero_or_more(wrong):
    with pytest.raises(ConfigError, match=r"prior_strength is .*; expected 0 \(no prior\) or more"):
        Temperature(prior_strength=wrong)
    with pytest.raises(ConfigError, match="prior_strength is"):
        fit_temperature([[1.0]], [[1]], [[1]], prior_strength=wrong)
