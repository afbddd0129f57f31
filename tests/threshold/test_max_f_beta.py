"""Thresholds of highest F-beta, against trying every cut."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, fbeta_score

from ovr.core import ranking
from ovr.core.artifact import DecisionPolicy
from ovr.decision.decide import decide
from ovr.errors import ConfigError, DataError
from ovr.threshold import max_f_beta
from ovr.threshold.max_f_beta import MaxFBeta


def max_f_beta_thresholds(*args, **settings):
    return max_f_beta.max_f_beta_thresholds(*args, **settings).threshold_K


@pytest.fixture
def rng():
    return np.random.default_rng(2)


@pytest.mark.parametrize("num_levels", [2, 6, 10**9])
@pytest.mark.parametrize("block_values", [100, 1 << 20])
def test_no_threshold_has_a_higher_f1(rng, monkeypatch, num_levels, block_values):
    monkeypatch.setattr(ranking, "BLOCK_VALUES", block_values)
    prob_NK = np.floor(rng.random((80, 8)) * (num_levels + 1)) / (num_levels + 1)
    target_NK, mask_NK = rng.random((80, 8)) < prob_NK, rng.random((80, 8)) < np.linspace(0.3, 1.0, 8)
    threshold_K = max_f_beta_thresholds(prob_NK, target_NK, mask_NK)
    for k in range(8):
        prob_n, target_n = prob_NK[mask_NK[:, k], k].astype(np.float32), target_NK[mask_NK[:, k], k]
        best = max(f1_score(target_n, prob_n >= t) for t in np.unique(prob_n))
        assert f1_score(target_n, prob_n >= np.float32(threshold_K[k])) == best
        equal = [t for t in np.unique(prob_n) if f1_score(target_n, prob_n >= t) == best]
        taken = prob_n[prob_n >= threshold_K[k]]
        assert taken.min() == max(equal)  # of equal cuts the highest


def test_a_threshold_lies_in_the_middle_between_scores():
    threshold_K = max_f_beta_thresholds([[0.9, 0.5], [0.5, 0.25], [0.1, 0.125]], [[1, 1], [0, 1], [0, 1]], np.ones((3, 2)))
    np.testing.assert_allclose(threshold_K, [0.7, 0.0625], rtol=1e-6)


def test_float32_and_float64_decide_alike_at_the_threshold(rng):
    low = np.float32(0.6)
    high = np.nextafter(low, np.float32(1))
    prob_NK = np.array([[high, 1.0], [low, 0.0]], dtype=np.float32)
    threshold_K = max_f_beta_thresholds(prob_NK, [[1, 1], [0, 0]], np.ones((2, 2)))
    assert threshold_K.dtype == np.float64
    np.testing.assert_array_equal(threshold_K, threshold_K.astype(np.float32))
    assert low < threshold_K[0] <= high
    for dtype in (np.float32, np.float64):
        decision = decide(prob_NK.astype(dtype), threshold_K=threshold_K.astype(dtype), policy=DecisionPolicy("multilabel"))
        np.testing.assert_array_equal(decision.label_BK, [[True, True], [False, False]])


def test_scores_that_float32_cannot_tell_apart_are_not_cut_apart():
    prob_N1 = np.array([[0.5 + 1e-12], [0.5], [0.1]])
    assert max_f_beta_thresholds(prob_N1, [[1], [0], [0]], np.ones((3, 1)))[0] == pytest.approx(0.3)


def test_heads_without_a_known_positive_keep_the_fallback():
    prob_NK, target_NK, mask_NK = np.full((2, 3), 0.4), [[0, 1, 1], [0, 1, 1]], [[1, 0, 1], [1, 0, 1]]
    np.testing.assert_allclose(max_f_beta_thresholds(prob_NK, target_NK, mask_NK, fallback=0.3), [0.3, 0.3, 0.2])
    np.testing.assert_array_equal(max_f_beta_thresholds(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2))), [0.5, 0.5])


def test_zero_probabilities_of_positives_take_every_row():
    assert max_f_beta_thresholds([[0.0], [0.0]], [[1], [1]], [[1], [1]])[0] == 0.0


def test_a_head_ignores_the_other_heads_and_the_order_of_rows(rng):
    prob_NK, target_NK, mask_NK = rng.random((50, 6)).round(1), rng.random((50, 6)) < 0.3, rng.random((50, 6)) < 0.8
    every_K = max_f_beta_thresholds(prob_NK, target_NK, mask_NK)
    order = rng.permutation(50)
    for k in range(6):
        part = np.s_[order, k : k + 1]
        assert max_f_beta_thresholds(prob_NK[part], target_NK[part], mask_NK[part])[0] == every_K[k]


def test_the_plug_in_is_the_function(rng):
    prob_NK, target_NK, mask_NK = rng.random((50, 3)), rng.random((50, 3)) < [0.3, 0.5, 0.0], np.ones((50, 3))
    expected_K = max_f_beta_thresholds(prob_NK, target_NK, mask_NK, fallback=0.25)
    np.testing.assert_array_equal(MaxFBeta(fallback=0.25).fit(prob_NK, target_NK, mask_NK).threshold_K, expected_K)
    assert expected_K[2] == 0.25


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan])
def test_a_fallback_is_a_probability(wrong):
    with pytest.raises(ConfigError, match=r"fallback threshold is .*; expected a probability from 0 to 1"):
        MaxFBeta(fallback=wrong)
    with pytest.raises(ConfigError, match="fallback threshold is"):
        max_f_beta_thresholds([[0.5]], [[1]], [[1]], fallback=wrong)


def test_values_that_are_no_probabilities_are_refused():
    with pytest.raises(DataError, match="probability of row 0, head column 0 is nan"):
        max_f_beta_thresholds([[np.nan]], [[1]], [[1]])
    with pytest.raises(DataError, match=r"probability of row 0, head column 0 is 2.0; expected 0 to 1"):
        max_f_beta_thresholds([[2.0]], [[1]], [[1]])


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_no_threshold_has_a_higher_f_beta(rng, beta):
    prob_NK = rng.random((80, 6)).round(1)
    target_NK, mask_NK = rng.random((80, 6)) < prob_NK, rng.random((80, 6)) < 0.8
    threshold_K = max_f_beta_thresholds(prob_NK, target_NK, mask_NK, beta=beta)
    for k in range(6):
        prob_n, target_n = prob_NK[mask_NK[:, k], k], target_NK[mask_NK[:, k], k]
        best = max(fbeta_score(target_n, prob_n >= t, beta=beta) for t in np.unique(prob_n))
        assert fbeta_score(target_n, prob_n >= threshold_K[k], beta=beta) == pytest.approx(best, rel=1e-12)


def test_heads_without_a_known_positive_say_so(rng):
    found = MaxFBeta().fit(rng.random((9, 2)), np.array([[1, 0]] * 9), np.ones((9, 2)))
    assert found.status_K == ("ok", "no_positive")


@pytest.mark.parametrize("wrong", [0, -1.0, np.inf, "two"])
def test_beta_is_above_0(wrong):
    with pytest.raises(ConfigError, match=r"beta is .*; expected a number above 0"):
        MaxFBeta(beta=wrong)
