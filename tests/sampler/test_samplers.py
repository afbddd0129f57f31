import numpy as np
import pytest

from ovr.data.labels import Labels
from ovr.errors import ConfigError
from ovr.sampler.class_balanced import ClassBalanced
from ovr.sampler.shuffled import Shuffled

SIZES = (600, 60, 6)


def multi_class():
    return Labels.from_columns(np.repeat(np.arange(3), SIZES), num_heads=3)


def test_a_shuffled_epoch_has_every_row_once_and_leaves_the_odds(rng):
    sampler = Shuffled(multi_class())
    np.testing.assert_array_equal(np.sort(sampler.epoch_rows(rng)), np.arange(666))
    np.testing.assert_array_equal(sampler.log_odds_shift_K, np.zeros(3))


@pytest.mark.parametrize(
    ("power", "max_repeat", "rates"),
    [(1.0, 1e6, (1, 10, 100)), (0.5, 1e6, (1, 10**0.5, 10)), (1.0, 20.0, (1, 10, 20)), (0.0, 20.0, (1, 1, 1))],
)
def test_classes_are_drawn_at_their_rates(rng, power, max_repeat, rates):
    sampler = ClassBalanced(multi_class(), power=power, max_repeat=max_repeat)
    rows = sampler.epoch_rows(rng)
    assert len(rows) == 666
    share = np.array(SIZES) * rates / np.dot(SIZES, rates)
    drawn = np.bincount(np.repeat(np.arange(3), SIZES)[rows], minlength=3)
    # Systematic sampling: a class's number is its expectation but for the rounding of each row.
    np.testing.assert_allclose(drawn / 666, share, atol=0.02)
    repeats = np.bincount(rows, minlength=666)
    expected = 666 * sampler.rate_N / sampler.rate_N.sum()
    assert (np.abs(repeats - expected) < 1).all()


def test_the_order_is_random_and_given_by_the_generator():
    sampler = ClassBalanced(multi_class(), power=1.0, max_repeat=20.0)
    a, b, c = (sampler.epoch_rows(np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert (np.diff(a) < 0).mean() > 0.3, "rows of one class do not come together"


def test_a_row_of_several_classes_has_the_rate_of_its_rarest_and_one_of_none_has_rate_one():
    target_NK = np.zeros((12, 2), dtype=bool)
    target_NK[:8, 0] = True
    target_NK[7:9, 1] = True
    sampler = ClassBalanced(Labels.from_dense(target_NK), power=1.0, max_repeat=20.0)
    np.testing.assert_array_equal(sampler.rate_N, [1] * 7 + [4, 4] + [1] * 3)


def test_the_shift_is_that_of_the_drawn_base_rates(rng):
    target_NK, mask_NK = rng.random((500, 4)) < (0.5, 0.1, 0.05, 0.01), rng.random((500, 4)) < 0.9
    for mask in (None, mask_NK):
        labels = Labels.from_dense(target_NK, mask)
        sampler = ClassBalanced(labels, power=1.0, max_repeat=10.0)
        known_NK = np.ones_like(target_NK) if mask is None else mask
        positive_NK, negative_NK = target_NK & known_NK, ~target_NK & known_NK
        drawn = np.log(sampler.rate_N @ positive_NK) - np.log(sampler.rate_N @ negative_NK)
        before = np.log(positive_NK.sum(axis=0)) - np.log(negative_NK.sum(axis=0))
        np.testing.assert_allclose(sampler.log_odds_shift_K, drawn - before)


def test_with_two_classes_the_shift_is_the_log_of_the_rates_exactly():
    labels = Labels.from_columns(np.repeat(np.arange(2), (90, 10)), num_heads=2)
    shift_K = ClassBalanced(labels, power=1.0, max_repeat=20.0).log_odds_shift_K
    np.testing.assert_allclose(shift_K, [-np.log(9), np.log(9)])


def test_a_head_without_positives_or_negatives_is_not_shifted(rng):
    labels = Labels.from_dense(np.array([[True, False, True]] * 5 + [[True, False, False]] * 20))
    sampler = ClassBalanced(labels, power=1.0, max_repeat=20.0)
    np.testing.assert_array_equal(sampler.log_odds_shift_K[:2], [0, 0])
    assert len(sampler.epoch_rows(rng)) == 25


@pytest.mark.parametrize(
    ("power", "max_repeat", "message"),
    [(1.5, 20.0, "power must be from 0 to 1, got 1.5"), (-0.1, 20.0, "power"), (1.0, 0.5, "max_repeat must be .* 1, got 0.5")],
)
def test_bad_settings_are_named(power, max_repeat, message):
    with pytest.raises(ConfigError, match=message):
        ClassBalanced(multi_class(), power=power, max_repeat=max_repeat)
