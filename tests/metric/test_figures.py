"""Figures of blocks of heads, their means and intervals, against scikit-learn and the functions that they come from."""

from collections import defaultdict

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support, roc_auc_score

from ovr.metric.classification import confusion, f1_interval
from ovr.metric.figures import HeadFigures

N, K = 400, 5
CELLS = {"ece_debiased_squared", "brier_resolution", "brier_uncertainty"}


@pytest.fixture
def case():
    rng = np.random.default_rng(5)
    logit_NK = rng.normal(size=(N, K)) * 2 - 1
    prob_NK = 1 / (1 + np.exp(-logit_NK))
    target_NK = rng.random((N, K)) < prob_NK * np.linspace(0.3, 1, K)
    return logit_NK, prob_NK, prob_NK >= 0.5, target_NK, rng.random((N, K)) < 0.9


def figures(case, columns=(slice(0, K),), **settings):
    logit_NK, prob_NK, label_NK, target_NK, mask_NK = case
    heads, blocks = HeadFigures(N, **{"detailed": True, **settings}), []
    for c in columns:
        blocks.append(
            heads.update(
                logit_NC=logit_NK[:, c],
                calibrated_NC=logit_NK[:, c],
                before_NC=prob_NK[:, c],
                prob_NC=prob_NK[:, c],
                label_NC=label_NK[:, c],
                target_NC=target_NK[:, c],
                mask_NC=mask_NK[:, c],
            )
        )
    figures_K = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return figures_K, heads.summary(figures_K)


def test_means_are_those_of_scikit_learn(case):
    case = (*case[:4], np.ones((N, K), dtype=bool))
    _, _, label_NK, target_NK, _ = case
    figures_K, got = figures(case)
    for average in ("macro", "micro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(target_NK, label_NK, average=average)
        assert [got[f"{average}_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx([precision, recall, f1])
    assert got["macro_roc_auc"] == pytest.approx(roc_auc_score(target_NK, case[0]))
    np.testing.assert_allclose(figures_K["f1"], f1_score(target_NK, label_NK, average=None))


def test_every_interval_holds_its_figure(case):
    figures_K, summary = figures(case)
    names = {name.removesuffix("_low") for name in figures_K if name.endswith("_low")}
    shares = {"precision", "recall", "false_positive_rate", "false_negative_rate", "f1", "average_precision", "roc_auc"}
    assert names == shares | {"ece_after", "ece_equal_width", "ece_adaptive", "ece_debiased", "nll_after", "brier_after"} | CELLS
    for name in names:
        assert (figures_K[f"{name}_low"] < figures_K[name]).all()
        assert (figures_K[name] < figures_K[f"{name}_high"]).all()
    shared = ("precision", "recall", "f1")
    means = {*(f"{mean}_{name}" for mean in ("macro", "micro", "weighted") for name in shared)}
    means |= {"macro_average_precision", "macro_roc_auc", "weighted_average_precision"}
    assert means | {"nll_after", "brier_after"} == {name.removesuffix("_low") for name in summary if name.endswith("_low")}
    for name in means:
        assert summary[f"{name}_low"] < summary[name] < summary[f"{name}_high"] < summary[f"{name}_low"] + 0.15
    for name in ("nll_after", "brier_after"):
        assert summary[f"{name}_low"] < figures_K[name].mean() < summary[f"{name}_high"]
    brier = figures_K["brier_reliability"] - figures_K["brier_resolution"] + figures_K["brier_uncertainty"]
    brier += figures_K["brier_within_variance"] - figures_K["brier_within_covariance"]
    np.testing.assert_allclose(brier, figures_K["brier_after"], atol=1e-12)


def test_means_are_drawn_as_a_bootstrap_of_rows_draws_them(case):
    case = (*case[:4], np.ones((N, K), dtype=bool))
    logit_NK, _, label_NK, target_NK, _ = case
    _, got = figures(case)
    rng, drawn = np.random.default_rng(1), defaultdict(list)
    for _ in range(60):
        rows = rng.integers(0, N, N)
        for average in ("macro", "weighted"):
            precision, recall, _, _ = precision_recall_fscore_support(target_NK[rows], label_NK[rows], average=average)
            drawn[f"{average}_precision"].append(precision)
            drawn[f"{average}_recall"].append(recall)
            drawn[f"{average}_average_precision"].append(average_precision_score(target_NK[rows], logit_NK[rows], average=average))
        drawn["macro_roc_auc"].append(roc_auc_score(target_NK[rows], logit_NK[rows]))
    for name, value_R in drawn.items():
        assert got[f"{name}_high"] - got[f"{name}_low"] == pytest.approx(2 * 1.96 * np.std(value_R), rel=0.25)


def test_blocks_change_nothing_and_a_seed_changes_draws_only(case):
    figures_K, summary = figures(case)
    in_blocks_K, in_blocks = figures(case, (slice(0, 2), slice(2, K)))
    for name, value_K in figures_K.items():
        np.testing.assert_allclose(in_blocks_K[name], value_K, atol=1e-6)
    assert in_blocks == pytest.approx(summary, abs=1e-6)
    other_K, other = figures(case, seed=1)
    changed = {name for name in figures_K if not np.array_equal(figures_K[name], other_K[name])}
    assert changed == {f"{name}_{end}" for name in ("nll_after", "brier_after", *CELLS) for end in ("low", "high")}
    assert other["macro_f1"] == summary["macro_f1"]
    assert other["macro_f1_low"] != summary["macro_f1_low"]


def test_very_many_heads_have_the_figures_alone(case):
    figures_K, summary = figures(case, detailed=False)
    full_K, full = figures(case)
    assert not [name for name in (*figures_K, *summary) if name.endswith(("_low", "_high"))]
    for name, value_K in figures_K.items():
        np.testing.assert_array_equal(value_K, full_K[name])
    for name, value in summary.items():
        assert value == full[name]


def test_heads_and_rows_without_anything_have_nan(case):
    logit_NK, prob_NK, label_NK, target_NK, mask_NK = case
    mask_NK[:, 1] = False
    figures_K, summary = figures(case)
    assert all(np.isnan(value_K[1]) for value_K in figures_K.values() if value_K.dtype.kind == "f")
    assert not np.isnan(list(summary.values())).any()
    nothing_K, nothing = figures((logit_NK, prob_NK, label_NK, target_NK, np.zeros_like(mask_NK)))
    assert np.isnan(list(nothing.values())).all()
    assert (nothing_K["rows"] == 0).all()


@pytest.mark.parametrize("found", [3, 9, 10])
def test_the_interval_of_f1_is_that_of_the_share_that_is_right(found):
    label_N1, target_N1 = np.arange(20)[:, None] < found, np.arange(20)[:, None] < 10
    counts = confusion(label_N1, target_N1, np.ones((20, 1)))
    low_K, high_K = f1_interval(counts)
    assert low_K[0] < counts.f1_K[0] <= high_K[0]
    assert (high_K[0] == 1) == (found == 10)
    # At the low end as many right ones, or more, are about as rare as the interval says.
    share = low_K[0] / (2 - low_K[0])
    assert 0.01 < binom.sf(found - 1, 10, share) < 0.1
