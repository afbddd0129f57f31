"""Figures of cohorts and their gaps, against fairlearn and plain counting."""

import numpy as np
import pytest

from ovr.errors import ConfigError, DataError
from ovr.metric.classification import Counts, confusion
from ovr.metric.intervals import wilson
from ovr.metric.slices import Slices, gap_intervals, gaps, joined, slices


@pytest.fixture
def case():
    rng = np.random.default_rng(5)
    prob_NK = rng.random((400, 3))
    cohort_N = rng.choice(["", "Black", "White"], 400, p=[0.1, 0.3, 0.6])
    target_NK = rng.random(prob_NK.shape) < prob_NK * np.where(cohort_N == "Black", 0.6, 1.0)[:, None]
    return prob_NK >= 0.6, prob_NK, target_NK, rng.random(prob_NK.shape) < 0.9, cohort_N


def test_each_cohort_has_the_figures_of_its_rows(case):
    label_NK, prob_NK, target_NK, mask_NK, cohort_N = case
    got = slices(label_NK, prob_NK, target_NK, mask_NK, cohort_N=cohort_N)
    assert got.names == ("", "Black", "White")
    for a, name in enumerate(got.names):
        rows = cohort_N == name
        counts = confusion(label_NK[rows], target_NK[rows], mask_NK[rows])
        for figure in ("num_rows_K", "num_positives_K", "num_decided_K", "true_positives_K", "f1_K"):
            np.testing.assert_array_equal(getattr(got.counts, figure)[a], getattr(counts, figure))
        value_AK, low_AK, high_AK = got.shares()["recall"]
        np.testing.assert_array_equal(value_AK[a], counts.recall_K)
        np.testing.assert_array_equal([low_AK[a], high_AK[a]], wilson(counts.true_positives_K, counts.num_positives_K))
        mean_K = [prob_NK[rows & mask_NK[:, k], k].mean() for k in range(3)]
        np.testing.assert_allclose(got.mean_prob_AK[a], mean_K)
        np.testing.assert_allclose(got.share_AK[a], [target_NK[rows & mask_NK[:, k], k].mean() for k in range(3)])
    halves = [
        slices(label_NK[:, c], prob_NK[:, c], target_NK[:, c], mask_NK[:, c], cohort_N=cohort_N) for c in (slice(0, 2), slice(2, 3))
    ]
    np.testing.assert_array_equal(joined(halves).mean_prob_AK, got.mean_prob_AK)
    np.testing.assert_array_equal(joined(halves).counts.f1_K, got.counts.f1_K)


def test_gaps_are_those_of_fairlearn(case):
    fairlearn = pytest.importorskip("fairlearn.metrics")
    label_NK, prob_NK, target_NK, mask_NK, cohort_N = case
    found = slices(label_NK, prob_NK, target_NK, mask_NK, cohort_N=cohort_N)
    got = gaps(found)
    for k in range(3):
        known = mask_NK[:, k]
        given = {"y_true": target_NK[known, k], "y_pred": label_NK[known, k], "sensitive_features": cohort_N[known]}
        for name in (
            "demographic_parity_difference",
            "demographic_parity_ratio",
            "equalized_odds_difference",
            "equalized_odds_ratio",
        ):
            assert getattr(got, f"{name}_K")[k] == pytest.approx(getattr(fairlearn, name)(**given), rel=1e-12)
        rates = {name: getattr(fairlearn, name) for name in ("true_positive_rate", "false_positive_rate", "selection_rate")}
        frame = fairlearn.MetricFrame(metrics=rates, **given).by_group
        for theirs, ours in zip(rates, ("recall", "false_positive_rate", "decided_rate"), strict=True):
            np.testing.assert_allclose(found.shares()[ours][0][:, k], frame[theirs].loc[list(found.names)], rtol=1e-12)
        assert got.recall_difference_K[k] == pytest.approx(frame["true_positive_rate"].max() - frame["true_positive_rate"].min())


def test_the_interval_of_two_cohorts_is_newcombes():
    counts = Counts(*(np.array([[n], [m]]) for n, m in ((70, 80), (70, 80), (56, 48), (56, 48))))
    low_K, high_K = gap_intervals(Slices(("a", "b"), counts, np.zeros((2, 1))))["recall_difference"]
    assert (low_K[0], high_K[0]) == pytest.approx((0.0524, 0.3339), abs=5e-5)  # the paper's first example
    with pytest.raises(ConfigError, match=r"confidence is 2.0; expected a number above 0 and below 1"):
        gap_intervals(Slices(("a", "b"), counts, np.zeros((2, 1))), confidence=2)


@pytest.mark.parametrize("rates", [(0.3, 0.3, 0.3, 0.3), (0.1, 0.2, 0.9, 0.5)])
def test_intervals_of_gaps_hold_the_truth_as_often_as_they_say(rates):
    rng, num_A1 = np.random.default_rng(5), np.array([[20], [300], [40], [1000]])
    hits_AD = rng.binomial(num_A1, np.array(rates)[:, None], (4, 1000))
    num_AD = np.broadcast_to(num_A1, hits_AD.shape)
    found = Slices(("a", "b", "c", "d"), Counts(num_AD, num_AD, hits_AD, hits_AD), hits_AD * 0.0)
    low_D, high_D = gap_intervals(found)["recall_difference"]
    gap = max(rates) - min(rates)
    assert ((low_D <= gap) & (gap <= high_D)).mean() >= 0.95
    value_D = gaps(found).recall_difference_K
    assert ((low_D <= value_D) & (value_D <= high_D)).all()
    assert np.isnan(gap_intervals(found)["false_positive_rate_difference"]).all()


def test_cohorts_without_a_rate_are_left_out_of_its_gap():
    label_NK, target_NK = np.array([[1], [0], [0], [0], [1]]), np.array([[1], [1], [1], [0], [0]])
    got = gaps(slices(label_NK, label_NK * 0.5, target_NK, np.ones((5, 1)), cohort_N=["a", "a", "b", "c", "c"]))
    assert got.recall_difference_K[0] == 0.5
    assert np.isnan(got.false_positive_rate_difference_K[0])
    assert (got.equalized_odds_difference_K[0], got.equalized_odds_ratio_K[0]) == (0.5, 0.0)
    alone = gaps(slices(label_NK, label_NK * 0.5, target_NK, np.ones((5, 1)), cohort_N=["a"] * 5))
    assert np.isnan(alone.demographic_parity_difference_K[0])
    none = gaps(slices(np.zeros((2, 1)), np.zeros((2, 1)), [[1], [1]], np.ones((2, 1)), cohort_N=["a", "b"]))
    assert (none.demographic_parity_difference_K[0], none.demographic_parity_ratio_K[0]) == (0, 1)


def test_no_row_has_no_cohort_and_a_cohort_is_one_a_row():
    assert slices(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2)), cohort_N=[]).names == ()
    with pytest.raises(DataError, match=r"cohorts have shape \(1,\); expected \(2,\), one a row"):
        slices(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((2, 1)), np.ones((2, 1)), cohort_N=["a"])
