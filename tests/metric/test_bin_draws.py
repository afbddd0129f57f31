"""Intervals from the sums of bins hold the truth, and are those of drawn rows."""

import numpy as np
import pytest
from scipy.stats import poisson

from ovr.errors import ConfigError
from ovr.metric import bin_draws
from ovr.metric.bin_draws import FIGURES, BinDraws
from ovr.metric.binned import brier_parts, debiased_squared_ece
from ovr.metric.bins import bin_sums


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_draws_are_poisson_numbers_of_the_counts():
    draws = BinDraws(4, num_draws=500, seed=3)
    uniform_2RG = np.random.default_rng(3).random((2, 500, 4))
    for cell in (0, 1):
        got_RCG = draws._poisson(cell, np.array([[0.0, 1.0, 30.0, 31.0], [5.0, 100.0, 2000.0, 0.0]]))
        for head, counts in enumerate(((0, 1, 30, 31), (5, 100, 2000, 0))):
            for g, count in enumerate(counts):
                expected_R = poisson.ppf(uniform_2RG[cell, :, g], count) if count else np.zeros(500)
                assert np.abs(got_RCG[:, head, g] - expected_R).max() <= (0 if count <= 30 else 1)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_intervals_hold_the_truth_about_as_often_as_they_say(rng, share):
    prob_ND = np.repeat(np.sort(rng.random(900))[:, None], 300, axis=1)
    sums = bin_sums(prob_ND, rng.random(prob_ND.shape) < share * prob_ND, np.ones(prob_ND.shape))
    p_G = prob_ND[:, 0].reshape(15, 60).mean(axis=1)
    rate = share * p_G.mean()
    truth = {
        "ece_debiased_squared": ((1 - share) ** 2 * p_G**2).mean(),
        "brier_resolution": (share * p_G).var(),
        "brier_uncertainty": rate * (1 - rate),
    }
    assert set(truth) == set(FIGURES)
    for name, (low_D, high_D) in BinDraws(15).intervals(sums).items():
        assert ((low_D <= truth[name]) & (truth[name] <= high_D)).mean() >= 0.9


def test_intervals_are_about_those_of_drawn_rows(rng):
    prob_N1 = rng.random((400, 1)) ** 3
    target_N1 = rng.random((400, 1)) < 0.7 * prob_N1
    got = BinDraws(15, num_draws=1000).intervals(bin_sums(prob_N1, target_N1, np.ones((400, 1))))
    drawn = []
    for _ in range(300):
        rows = rng.integers(0, 400, 400)
        sums = bin_sums(prob_N1[rows], target_N1[rows], np.ones((400, 1)))
        drawn.append([debiased_squared_ece(sums)[0], brier_parts(sums).resolution_K[0], brier_parts(sums).uncertainty_K[0]])
    for (low_1, high_1), values in zip(got.values(), np.array(drawn).T, strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        assert (high_1 - low_1)[0] == pytest.approx(high - low, rel=0.3)


def test_a_head_ignores_the_others_and_blocks_change_nothing(rng, monkeypatch):
    prob_NK, mask_NK = rng.random((200, 5)), rng.random((200, 5)) < 0.8
    mask_NK[:, 2] = False
    target_NK = rng.random((200, 5)) < prob_NK
    whole = BinDraws(15).intervals(bin_sums(prob_NK, target_NK, mask_NK))
    alone = BinDraws(15).intervals(bin_sums(prob_NK[:, 3:4], target_NK[:, 3:4], mask_NK[:, 3:4]))
    monkeypatch.setattr(bin_draws, "BLOCK_VALUES", 1)
    blocks = BinDraws(15).intervals(bin_sums(prob_NK, target_NK, mask_NK))
    for name, (low_K, high_K) in whole.items():
        assert np.isnan(low_K).tolist() == [False, False, True, False, False]
        np.testing.assert_allclose([alone[name][0][0], alone[name][1][0]], [low_K[3], high_K[3]], rtol=1e-9)
        np.testing.assert_allclose(blocks[name], (low_K, high_K), rtol=1e-9)


def test_a_confidence_is_between_0_and_1():
    with pytest.raises(ConfigError, match=r"confidence is 1; expected a number above 0 and below 1"):
        BinDraws(15).intervals(bin_sums([[0.5]], [[1]], [[1]]), confidence=1)
