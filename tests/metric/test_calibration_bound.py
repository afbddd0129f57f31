"""The bound of a head's calibration error holds as often as it says, and the rows it asks for are enough."""

import math

import numpy as np
import pytest

from ovr.errors import ConfigError, DataError
from ovr.metric.bins import bin_sums
from ovr.metric.calibration import ece_equal_mass
from ovr.metric.calibration_bound import ece_interval, ece_upper_bound, rows_needed

NUM_DRAWS = 300
PROBS = {
    "rare": lambda rng, n: rng.beta(0.1, 9.9, n),
    "flat": lambda rng, n: rng.uniform(0.099, 0.101, n),
    "sharp": lambda rng, n: 1 / (1 + np.exp(-rng.normal(-3, 6, n))),
}
TRUTHS = {"calibrated": lambda p: p, "too high": lambda p: 0.6 * p, "too low": lambda p: p + 0.04 * (1 - p), "cube": lambda p: p**3}


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def true_error(prob_N, truth_N):
    """Return the error in the bins of these probabilities, if `truth_N` is how likely the targets are."""
    count_G = bin_sums(prob_N[:, None], np.zeros((len(prob_N), 1)), np.ones((len(prob_N), 1))).count_KG[0]
    gap_N = (truth_N - prob_N)[np.argsort(prob_N)]
    return sum(abs(part.sum()) for part in np.split(gap_N, np.cumsum(count_G)[:-1])) / len(prob_N)


@pytest.mark.parametrize("num_rows", [30, 2000])
@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("probs", PROBS)
def test_the_true_error_is_below_the_bound_as_often_as_promised(rng, probs, truth, num_rows):
    prob_N = PROBS[probs](rng, num_rows)
    truth_N = TRUTHS[truth](prob_N)
    prob_ND = np.repeat(prob_N[:, None], NUM_DRAWS, axis=1)
    drawn = prob_ND, rng.random(prob_ND.shape) < truth_N[:, None], np.ones(prob_ND.shape)
    _, upper_D = ece_upper_bound(*drawn, confidence=0.8)
    error = true_error(prob_N, truth_N)
    assert (upper_D >= error).mean() >= 0.8
    assert np.median(upper_D) <= error + 4 / math.sqrt(num_rows)  # and says something
    low_D, high_D = ece_interval(bin_sums(*drawn), confidence=0.6)
    np.testing.assert_array_equal(high_D, upper_D)
    assert (low_D <= error).mean() >= 0.8
    if error > 10 / math.sqrt(num_rows):
        assert np.median(low_D) > 0


def test_the_bound_solves_its_equation(rng):
    prob_NK, mask_NK = rng.random((300, 3)), rng.random((300, 3)) < 0.8
    target_NK = rng.random((300, 3)) < prob_NK
    ece_K, upper_K = ece_upper_bound(prob_NK, target_NK, mask_NK, confidence=0.9, num_bins=1)
    np.testing.assert_allclose(ece_K, ece_equal_mass(prob_NK, target_NK, mask_NK, num_bins=1), rtol=1e-12)
    for k in range(3):
        mean, n = prob_NK[mask_NK[:, k], k].mean(), mask_NK[:, k].sum()
        s, variance = upper_K[k] - ece_K[k], min(mean * (1 - mean) + upper_K[k], 0.25) / n
        assert math.exp(-(s**2) / (2 * variance + 2 * s / (3 * n))) == pytest.approx(0.1, rel=1e-6)


def test_more_rows_and_less_confidence_lower_the_bound(rng):
    prob_NK = rng.random((4000, 1)).repeat(2, axis=1)
    target_NK, mask_NK = rng.random((4000, 1)).repeat(2, axis=1) < prob_NK, np.ones((4000, 2), bool)
    mask_NK[1000:, 0] = False
    few, many = ece_upper_bound(prob_NK, target_NK, mask_NK)[1]
    assert many < few < 0.12
    assert ece_upper_bound(prob_NK, target_NK, mask_NK, confidence=0.5)[1][1] < many


def test_a_head_without_a_known_row_may_be_as_wrong_as_can_be():
    ece_K, upper_K = ece_upper_bound([[0.5, 0.5]], [[1, 1]], [[1, 0]])
    assert ece_K[0] == 0.5
    assert np.isnan(ece_K[1])
    assert upper_K[1] == 1
    assert np.isnan(np.array(ece_interval(bin_sums([[0.5, 0.5]], [[1, 1]], [[1, 0]])))[:, 1]).all()
    assert rows_needed(0.05, [[0.5, 0.5]], [[1, 0]])[1] > rows_needed(0.05, np.full((9, 1), 0.01), np.ones((9, 1)))[0]


@pytest.mark.parametrize(("probs", "ece"), [("rare", 0.0), ("flat", 0.0), ("sharp", 0.0), ("flat", 0.02)])
def test_the_rows_asked_for_are_enough(rng, probs, ece):
    prob_N = PROBS[probs](rng, 1000)
    (num_rows,) = rows_needed(0.05, prob_N[:, None], np.ones((1000, 1)), assumed=ece)
    prob_ND = np.repeat(rng.choice(prob_N, num_rows)[:, None], NUM_DRAWS, axis=1)
    target_ND = rng.random(prob_ND.shape) < prob_ND + ece
    assert (ece_upper_bound(prob_ND, target_ND, np.ones(prob_ND.shape))[1] <= 0.05).mean() >= 0.7
    half_ND = prob_ND[: num_rows // 2]
    assert (ece_upper_bound(half_ND, rng.random(half_ND.shape) < half_ND + ece, np.ones(half_ND.shape))[1] <= 0.05).mean() < 0.5


def test_a_limit_just_above_the_assumed_error_takes_many_rows():
    prob_NK, mask_NK = np.full((9, 1), 0.3), np.ones((9, 1))
    assert rows_needed(0.05, prob_NK, mask_NK, assumed=0.0499)[0] > 10**6
    assert rows_needed(0.05, prob_NK, mask_NK, power=0.2)[0] < rows_needed(0.05, prob_NK, mask_NK, power=0.9)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0.0}, r"the limit of a calibration error is 0.0; expected above 0 and at most 1"),
        (
            {"limit": 0.05, "assumed": 0.05},
            r"the assumed calibration error is 0.05; expected at least 0 and below the limit of 0.05",
        ),
        ({"limit": 0.05, "power": 1.0}, r"power is 1.0; expected a number above 0 and below 1"),
        ({"limit": 0.05, "confidence": 1.0}, r"confidence is 1.0; expected a number above 0 and below 1"),
        ({"limit": 0.05, "num_bins": 0}, r"num_bins is 0; expected at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        rows_needed(prob_NK=[[0.5]], mask_NK=[[1]], **settings)


def test_a_bound_takes_probabilities_and_a_confidence():
    with pytest.raises(ConfigError, match=r"confidence is 0; expected a number above 0 and below 1"):
        ece_upper_bound([[0.5]], [[1]], [[1]], confidence=0)
    with pytest.raises(ConfigError, match=r"confidence is 1.5; expected a number above 0 and below 1"):
        ece_interval(bin_sums([[0.5]], [[1]], [[1]]), confidence=1.5)
    with pytest.raises(DataError, match=r"probability of row 0, head column 0 is 2.0; expected 0 to 1"):
        ece_upper_bound([[2.0]], [[1]], [[1]])
