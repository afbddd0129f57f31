"""Counts and figures a class, against scikit-learn and the definitions."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    multilabel_confusion_matrix,
    precision_score,
    recall_score,
)

from ovr.core import ranking
from ovr.errors import DataError
from ovr.metric.classification import accuracy, average_precision, confusion, mean_defined


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_precision_recall_and_f1_are_those_of_scikit_learn(rng):
    label_NK, target_NK = rng.random((200, 6)) < 0.4, rng.random((200, 6)) < 0.3
    counts = confusion(label_NK, target_NK, np.ones_like(label_NK))
    for figure_K, reference in ((counts.precision_K, precision_score), (counts.recall_K, recall_score), (counts.f1_K, f1_score)):
        np.testing.assert_allclose(figure_K, reference(target_NK, label_NK, average=None), rtol=1e-15)
    assert mean_defined(counts.f1_K) == pytest.approx(f1_score(target_NK, label_NK, average="macro"), rel=1e-15)


def test_unknown_rows_count_for_nothing(rng):
    label_NK, target_NK, mask_NK = (rng.random((100, 4)) < p for p in (0.4, 0.3, 0.5))
    counts = confusion(label_NK, np.where(mask_NK, target_NK, np.nan), mask_NK)
    for k in range(4):
        known = mask_NK[:, k]
        alone = confusion(label_NK[known, k : k + 1], target_NK[known, k : k + 1], np.ones((known.sum(), 1)))
        assert counts.num_rows_K[k] == known.sum()
        assert counts.f1_K[k] == alone.f1_K[0]
        assert counts.true_positives_K[k] == (label_NK & target_NK)[known, k].sum()


def test_figures_that_the_rows_do_not_define_are_nan_and_others_are_zero():
    #                        nothing at all | nothing decided | nothing positive | never right
    label_NK = np.array([[0, 0, 1, 1], [0, 0, 0, 0]])
    target_NK = np.array([[0, 1, 0, 0], [0, 1, 0, 1]])
    counts = confusion(label_NK, target_NK, np.ones((2, 4)))
    np.testing.assert_array_equal(counts.precision_K, [np.nan, np.nan, 0.0, 0.0])
    np.testing.assert_array_equal(counts.recall_K, [np.nan, 0.0, np.nan, 0.0])
    np.testing.assert_array_equal(counts.f1_K, [np.nan, 0.0, 0.0, 0.0])
    assert mean_defined(counts.recall_K) == 0.0
    assert np.isnan(mean_defined([np.nan, np.nan]))


@pytest.mark.parametrize("num_levels", [3, 50, 10**9])
@pytest.mark.parametrize("block_values", [100, 1 << 20])
def test_average_precision_is_that_of_scikit_learn_ties_included(rng, monkeypatch, num_levels, block_values):
    monkeypatch.setattr(ranking, "BLOCK_VALUES", block_values)
    score_NK = rng.integers(0, num_levels, size=(300, 9)) / num_levels
    target_NK, mask_NK = rng.random((300, 9)) < np.linspace(0.01, 0.9, 9), rng.random((300, 9)) < np.linspace(0.1, 1.0, 9)
    target_NK[0], mask_NK[0] = True, True
    got_K = average_precision(score_NK, target_NK, mask_NK)
    for k in range(9):
        known = mask_NK[:, k]
        assert got_K[k] == pytest.approx(average_precision_score(target_NK[known, k], score_NK[known, k]), rel=1e-13)


def test_average_precision_depends_on_the_order_of_scores_alone(rng):
    score_NK = rng.normal(size=(100, 3)).astype(np.float32)
    target_NK, mask_NK = rng.random((100, 3)) < 0.3, np.ones((100, 3))
    np.testing.assert_array_equal(
        average_precision(score_NK, target_NK, mask_NK), average_precision(np.exp(score_NK.astype(float)), target_NK, mask_NK)
    )


def test_average_precision_without_a_positive_is_nan_and_of_one_row_is_one():
    np.testing.assert_array_equal(average_precision([[0.3, 0.3, 0.3]], [[1, 0, 1]], [[1, 1, 0]]), [1.0, np.nan, np.nan])
    assert np.isnan(average_precision(np.zeros((0, 1)), np.zeros((0, 1)), np.zeros((0, 1)))[0])


def test_accuracy_is_that_of_scikit_learn_on_rows_known_whole(rng):
    label_NK, target_NK = rng.random((200, 3)) < 0.4, rng.random((200, 3)) < 0.4
    mask_NK = rng.random((200, 3)) < 0.9
    whole = mask_NK.all(axis=1)
    assert accuracy(label_NK, target_NK, mask_NK) == accuracy_score(target_NK[whole], label_NK[whole])
    assert np.isnan(accuracy([[1]], [[1]], [[0]]))


def test_an_abstained_row_that_has_a_class_is_wrong():
    assert accuracy([[0, 0], [0, 1]], [[1, 0], [0, 1]], np.ones((2, 2))) == 0.5


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(DataError, match=r"decisions have shape \(2,\); expected \(rows, heads\)"):
        confusion([1, 0], [1, 0], [1, 1])
    with pytest.raises(DataError, match="decision of row 0, head column 0 is 3; expected 0 or 1"):
        accuracy([[3]], [[1]], [[1]])
    with pytest.raises(DataError, match=r"target has shape \(1, 2\); expected \(1, 1\)"):
        confusion([[1]], [[1, 0]], [[1]])
    with pytest.raises(DataError, match="score of row 0, head column 0 is nan"):
        average_precision([[np.nan]], [[1]], [[1]])


def test_rates_of_wrong_decisions_are_those_of_the_confusion_matrix(rng):
    label_NK, target_NK = rng.random((200, 6)) < 0.4, rng.random((200, 6)) < 0.3
    counts = confusion(label_NK, target_NK, np.ones_like(label_NK))
    (tn_K, fp_K), (fn_K, tp_K) = multilabel_confusion_matrix(target_NK, label_NK).transpose(1, 2, 0)
    np.testing.assert_array_equal(counts.false_positive_rate_K, fp_K / (fp_K + tn_K))
    np.testing.assert_array_equal(counts.false_negative_rate_K, fn_K / (fn_K + tp_K))
    for name, (successes_K, trials_K) in counts.proportions().items():
        np.testing.assert_array_equal(successes_K / trials_K, getattr(counts, f"{name}_K"))
