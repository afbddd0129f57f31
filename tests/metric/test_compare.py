"""Comparison of two models on the same rows, against scipy, scikit-learn and simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest, chi2
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss

from ovr.core import scale
from ovr.errors import ConfigError, DataError
from ovr.metric.compare import compare, holm, mcnemar


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def pair(rng, rate_K, noise, num_rows=1500):
    """Return targets and the probabilities of two models that know equally much, each with its own noise."""
    target_NK = rng.random((num_rows, len(rate_K))) < rate_K
    logit_NK = 3 * target_NK + np.log(rate_K / (1 - np.asarray(rate_K))) - 1 + rng.normal(size=target_NK.shape)
    return target_NK, *(1 / (1 + np.exp(-logit_NK - size * rng.normal(size=target_NK.shape))) for size in noise)


def compared(target_NK, first_NK, second_NK, mask_NK=None, **settings):
    mask_NK = np.ones_like(target_NK) if mask_NK is None else mask_NK
    return compare(first_NK, second_NK, first_NK >= 0.5, second_NK >= 0.5, target_NK, mask_NK, **settings)


def test_mcnemar_is_exact_for_few_rows_and_corrected_for_many():
    first, second = np.array([0, 0, 3, 12, 24, 12, 40, 13]), np.array([0, 5, 3, 12, 0, 13, 20, 13])
    for a, b, p in zip(first.tolist(), second.tolist(), mcnemar(first, second).tolist(), strict=True):
        exact = a + b < 25
        expected = (binomtest(a, a + b).pvalue if a + b else 1) if exact else chi2.sf(max(abs(a - b) - 1, 0) ** 2 / (a + b), 1)
        assert p == pytest.approx(expected, rel=1e-9)


def test_holm_rejects_step_by_step():
    p = np.array([[0.01, 0.04, np.nan], [0.03, 0.0126, 0.5]])
    np.testing.assert_array_equal(holm(p), [[True, False, False], [False, False, False]])
    p[1, 1] = 0.0124  # at most 0.05 / 4; then 0.03 is above 0.05 / 3
    np.testing.assert_array_equal(holm(p), [[True, False, False], [False, True, False]])
    np.testing.assert_array_equal(holm(np.array([0.001, 0.001])), [True, True])
    np.testing.assert_array_equal(holm(np.array([np.nan])), [False])


def test_figures_are_those_of_scikit_learn_and_differences_lie_in_their_intervals(rng, monkeypatch):
    target_NK, first_NK, second_NK = pair(rng, [0.05, 0.2, 0.5], (0.5, 1.0))
    mask_NK = rng.random(target_NK.shape) < 0.8
    monkeypatch.setattr(scale, "BLOCK_VALUES", 3000)
    got = compared(target_NK, first_NK, second_NK, mask_NK)
    for k in range(3):
        y, p, q = (array_NK[mask_NK[:, k], k] for array_NK in (target_NK, first_NK, second_NK))
        for figure, reference in (
            (got.nll, log_loss),
            (got.brier, brier_score_loss),
            (got.average_precision, average_precision_score),
        ):
            assert figure.first_K[k] == pytest.approx(reference(y, p), rel=1e-9)
            assert figure.second_K[k] == pytest.approx(reference(y, q), rel=1e-9)
            assert figure.low_K[k] < figure.value_K[k] < figure.high_K[k]
        right = [(score >= 0.5) == y for score in (p, q)]
        assert (got.first_only_K[k], got.second_only_K[k]) == ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())


def test_intervals_of_differences_are_about_those_of_resampled_rows(rng):
    target_N1, first_N1, second_N1 = pair(rng, [0.1], (0.3, 1.0), num_rows=400)
    got = compared(target_N1, first_N1, second_N1)
    drawn = []
    for _ in range(120):
        rows = rng.integers(0, 400, 400)
        y, p, q = (array_N1[rows, 0] for array_N1 in (target_N1, first_N1, second_N1))
        drawn.append([average_precision_score(y, q) - average_precision_score(y, p), log_loss(y, q) - log_loss(y, p)])
    for figure, values in zip((got.average_precision, got.nll), np.array(drawn).T, strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        assert figure.low_K[0] == pytest.approx(low, abs=0.3 * (high - low))
        assert figure.high_K[0] == pytest.approx(high, abs=0.3 * (high - low))


def test_equally_good_models_are_rarely_told_apart_and_a_better_one_is_found(rng):
    wrong = 0
    for _ in range(20):
        wrong += (compared(*pair(rng, np.repeat([0.005, 0.02, 0.2], 3), (1.0, 1.0), num_rows=600)).verdict_K != "same").any()
    assert wrong <= 4  # 1 expected at most; 5 or more have a chance of 0.3 percent
    target_NK, good_NK, bad_NK = pair(rng, [0.3, 0.3], (0.0, 3.0))
    bad_NK[:, 1] = good_NK[:, 1]
    assert compared(target_NK, bad_NK, good_NK).verdict_K.tolist() == ["better", "same"]
    assert compared(target_NK, good_NK, bad_NK).verdict_K.tolist() == ["worse", "same"]
    report = compared(target_NK, bad_NK, good_NK).report(["a", "b"])
    assert (report["better"], report["same"], report["worse"]) == (1, 1, 0)
    assert report["classes"][0]["class_id"] == "a"
    assert report["classes"][0]["nll_difference"] == report["classes"][0]["nll_second"] - report["classes"][0]["nll_first"] < 0


def test_a_class_that_gains_in_one_test_and_loses_in_the_other_is_worse(rng):
    target_N1 = rng.random((3000, 1)) < 0.5
    right_N1 = target_N1 ^ (rng.random((3000, 1)) < 0.2)
    first_N1 = np.where(right_N1, 0.8, 0.2)  # calibrated
    second_N1 = np.where(target_N1 ^ (rng.random((3000, 1)) < 0.1), 0.9999, 0.0001)  # right more often, and far too sure
    got = compared(target_N1, first_N1, second_N1)
    assert got.second_only_K[0] > got.first_only_K[0]
    assert got.nll.value_K[0] > 0
    assert got.verdict_K.tolist() == ["worse"]


def test_the_same_model_twice_is_the_same_and_few_rows_tell_nothing(rng):
    target_NK, first_NK, _ = pair(rng, [0.3, 0.3], (0.0, 1.0), num_rows=50)
    mask_NK = np.stack([np.ones(50), np.zeros(50)], axis=1)
    got = compared(target_NK, first_NK, first_NK.copy(), mask_NK)
    assert got.verdict_K.tolist() == ["same", "same"]
    assert got.nll_p_K[0] == 1
    assert np.isnan([got.nll_p_K[1], got.nll.low_K[1], got.brier.first_K[1], got.average_precision.high_K[1]]).all()
    assert (got.nll.low_K[0], got.nll.high_K[0], got.decision_p_K[1]) == (0, 0, 1)


def test_a_probability_of_one_counts_as_far_from_it_as_its_dtype_tells():
    for dtype in (np.float32, np.float64):
        ones = np.ones((3, 1), dtype=dtype)
        got = compared(np.zeros((3, 1), dtype=bool), ones, ones)
        assert got.nll.first_K[0] == pytest.approx(-np.log(np.finfo(dtype).eps), rel=1e-3)


def test_wrong_settings_and_shapes_are_refused(rng):
    one = np.ones((2, 1))
    with pytest.raises(ConfigError, match=r"confidence is 0; expected a number above 0 and below 1"):
        compare(one, one, one, one, one, one, confidence=0)
    with pytest.raises(DataError, match=r"mask has shape \(2, 1\); expected \(3, 1\)"):
        compare(one, np.ones((3, 1)), one, one, one, one)
    with pytest.raises(DataError, match=r"probability of row 0, head column 0 is -1.0"):
        compare(one, -one, one, one, one, one)
