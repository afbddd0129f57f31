"""Average precision and ROC AUC, their intervals and derivatives, against scikit-learn and simulation."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from ovr.core import ranking
from ovr.errors import ConfigError, DataError
from ovr.metric.intervals import wilson
from ovr.metric.ranking import average_precision_influence, rank_figures, rank_figures_with_slopes


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def sample(rng, num_rows=150, num_heads=4, num_levels=10):
    score_NK = np.round(rng.normal(size=(num_rows, num_heads)) * num_levels) / num_levels
    return score_NK, rng.random(score_NK.shape) < 0.3, rng.random(score_NK.shape) < 0.8


@pytest.mark.parametrize("num_levels", [1, 10, 10**6])
def test_figures_are_those_of_scikit_learn(rng, monkeypatch, num_levels):
    score_NK, target_NK, mask_NK = sample(rng, num_levels=num_levels)
    monkeypatch.setattr(ranking, "BLOCK_VALUES", 300)
    got = rank_figures(score_NK, target_NK, mask_NK)
    for k in range(4):
        target_n, score_n = target_NK[mask_NK[:, k], k], score_NK[mask_NK[:, k], k]
        assert got.average_precision_K[k] == pytest.approx(average_precision_score(target_n, score_n), rel=1e-12)
        assert got.roc_auc_K[k] == pytest.approx(roc_auc_score(target_n, score_n), rel=1e-12)
        assert (got.num_positives_K[k], got.num_negatives_K[k]) == (target_n.sum(), (~target_n).sum())


@pytest.mark.parametrize("num_levels", [1, 10**6])
def test_the_influence_of_a_row_is_the_derivative_by_its_weight(rng, num_levels):
    score_NK, target_NK, mask_NK = sample(rng, num_rows=40, num_heads=2, num_levels=num_levels)
    got_NK = average_precision_influence(score_NK, target_NK, mask_NK)
    assert (got_NK[~mask_NK] == 0).all()
    np.testing.assert_allclose(got_NK.sum(axis=0), 0, atol=1e-12)
    for k in range(2):
        rows = np.flatnonzero(mask_NK[:, k])
        for i, row in enumerate(rows):
            ap = []
            for step in (-1e-4, 1e-4):
                weight_n = np.ones(len(rows))
                weight_n[i] += step
                ap.append(average_precision_score(target_NK[rows, k], score_NK[rows, k], sample_weight=weight_n))
            assert got_NK[row, k] == pytest.approx((ap[1] - ap[0]) / 2e-4, abs=1e-6)


@pytest.mark.parametrize("num_levels", [1, 10, 10**6])
def test_slopes_are_the_derivatives_of_sums_over_heads(rng, monkeypatch, num_levels):
    score_NK, target_NK, mask_NK = sample(rng, num_rows=40, num_levels=num_levels)
    mask_NK[:, 3] = target_NK[:, 3]  # a head without a negative, of which the area is not defined
    monkeypatch.setattr(ranking, "BLOCK_VALUES", 90)
    figures, slopes = rank_figures_with_slopes(score_NK, target_NK, mask_NK)
    np.testing.assert_array_equal(figures.roc_auc_K, rank_figures(score_NK, target_NK, mask_NK).roc_auc_K)
    influence_NK = average_precision_influence(score_NK, target_NK, mask_NK)
    np.testing.assert_allclose(slopes.average_precision_N, influence_NK.sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(slopes.weighted_average_precision_N, influence_NK @ figures.num_positives_K, atol=1e-12)
    np.testing.assert_allclose(slopes.roc_auc_N.sum(), 0, atol=1e-12)
    for row in range(0, 40, 3):
        area = []
        for step in (-1e-4, 1e-4):
            weight_N = np.where(np.arange(40) == row, 1 + step, 1.0)
            known = (np.flatnonzero(mask_NK[:, k]) for k in range(3))
            area.append(sum(roc_auc_score(target_NK[n, k], score_NK[n, k], sample_weight=weight_N[n]) for k, n in enumerate(known)))
        assert slopes.roc_auc_N[row] == pytest.approx((area[1] - area[0]) / 2e-4, abs=1e-6)


def test_figures_that_the_rows_do_not_define_are_nan():
    got = rank_figures([[0.1, 0.2, 0.3], [0.2, 0.1, 0.4]], [[1, 0, 0], [1, 0, 1]], [[1, 1, 0], [1, 1, 0]])
    assert np.isnan(got.average_precision_K).tolist() == [False, True, True]
    assert np.isnan(got.roc_auc_K).all()
    for ends in (*got.roc_auc_interval(), got.average_precision_interval()[0][1:]):
        assert np.isnan(ends).all()
    assert (average_precision_influence([[0.1], [0.2]], [[0], [0]], [[1], [1]]) == 0).all()
    with pytest.raises(DataError, match="score of row 0, head column 0 is nan"):
        rank_figures([[np.nan]], [[1]], [[1]])
    with pytest.raises(DataError, match="score of row 0, head column 0 is nan"):
        average_precision_influence([[np.nan]], [[1]], [[1]])
    for interval in (got.roc_auc_interval, got.average_precision_interval):
        with pytest.raises(ConfigError, match=r"confidence is 2; expected a number above 0 and below 1"):
            interval(confidence=2)


@pytest.mark.parametrize(("num_positives", "shift"), [(3, 1.5), (5, 3.0), (30, 0.5), (100, 2.0)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(rng, num_positives, shift):
    num_draws, num_rows = 400, 1000
    target_ND = np.repeat(np.arange(num_rows)[:, None] < num_positives, num_draws, axis=1)
    got = rank_figures(rng.normal(size=target_ND.shape) + shift * target_ND, target_ND, np.ones(target_ND.shape))
    many_N = np.arange(200_000) < 200_000 * num_positives // num_rows
    score_N = rng.normal(size=200_000) + shift * many_N
    low_D, high_D = got.roc_auc_interval()
    auc = roc_auc_score(many_N, score_N)
    assert ((low_D <= auc) & (auc <= high_D)).mean() >= 0.93
    assert (low_D <= got.roc_auc_K).all()
    assert (got.roc_auc_K <= high_D).all()
    low_D, high_D = got.average_precision_interval()
    ap = average_precision_score(many_N, score_N)
    assert ((low_D <= ap) & (ap <= high_D)).mean() >= 0.8


def test_the_interval_of_an_area_holds_where_positives_spread_wider(rng):
    num_draws, num_pos, num_neg = 300, 20, 400
    target_ND = np.repeat(np.arange(num_pos + num_neg)[:, None] < num_pos, num_draws, axis=1)
    score_ND = rng.normal(size=target_ND.shape) * np.where(target_ND, 3, 1) + 4 * target_ND
    got, _ = rank_figures_with_slopes(score_ND, target_ND, np.ones(target_ND.shape))
    auc = norm.cdf(4 / np.hypot(3, 1))
    plain, wider = (
        ((low_D <= auc) & (auc <= high_D)).mean()
        for low_D, high_D in (replace(got, roc_auc_variance_K=None).roc_auc_interval(), got.roc_auc_interval())
    )
    assert plain < 0.86
    assert wider > 0.9  # the variance too is estimated, from 20 positives
    below_P = [(score_ND[num_pos:, 0] < positive).mean() for positive in score_ND[:num_pos, 0]]
    above_N = [(score_ND[:num_pos, 0] > negative).mean() for negative in score_ND[num_pos:, 0]]
    delong = np.var(below_P, ddof=1) / num_pos + np.var(above_N, ddof=1) / num_neg
    assert got.roc_auc_variance_K[0] == pytest.approx(delong)


def test_an_interval_of_average_precision_counts_positives_as_trials():
    got = rank_figures([[0.9], [0.8], [0.1]], [[1], [1], [0]], [[1], [1], [1]])
    low_K, high_K = got.average_precision_interval(confidence=0.9)
    assert (low_K[0], high_K[0]) == tuple(map(float, wilson(2, 2, confidence=0.9)))
