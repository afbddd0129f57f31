import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ovr.errors import DataError
from ovr.metric.label_errors import each_class_errors, one_class_errors


def drawn(rng, num_rows=2000, num_classes=6, noise=0.1):
    """Probabilities, labels of which some are wrong, and which ones."""
    true_N = rng.integers(num_classes, size=num_rows)
    logit_NK = rng.normal(size=(num_rows, num_classes))
    logit_NK[np.arange(num_rows), true_N] += 3
    wrong_N = rng.random(num_rows) < noise
    given_N = np.where(wrong_N, (true_N + rng.integers(1, num_classes, size=num_rows)) % num_classes, true_N)
    prob_NK = np.exp(logit_NK) / np.exp(logit_NK).sum(axis=1, keepdims=True)
    return prob_NK, given_N, wrong_N


def cleanlab_mask(prob_NK, column_N):
    find_label_issues = pytest.importorskip("cleanlab.filter").find_label_issues
    return find_label_issues(column_N, prob_NK, filter_by="confident_learning", n_jobs=1)


@pytest.mark.parametrize("num_classes", [2, 6, 30])
def test_the_errors_are_those_of_cleanlab_in_its_order(rng, num_classes):
    prob_NK, given_N, _ = drawn(rng, num_classes=num_classes)
    expected_N = cleanlab_mask(prob_NK, given_N)
    errors = one_class_errors(prob_NK, given_N)
    assert len(errors) > 20
    np.testing.assert_array_equal(np.sort(errors.row_I), np.flatnonzero(expected_N))
    order = pytest.importorskip("cleanlab.rank").order_label_issues
    np.testing.assert_array_equal(errors.row_I, order(expected_N, given_N, prob_NK, rank_by="self_confidence"))


def test_each_class_on_its_own_gives_what_cleanlab_gives_of_two_classes(rng):
    target_NC = rng.random((1500, 5)) < 0.2
    prob_NC = 1 / (1 + np.exp(-(np.where(target_NC, 2, -2) + rng.normal(size=target_NC.shape))))
    given_NC, mask_NC = target_NC ^ (rng.random(target_NC.shape) < 0.05), rng.random(target_NC.shape) < 0.9
    for column, errors in enumerate(each_class_errors(prob_NC, given_NC, mask_NC)):
        known_R = np.flatnonzero(mask_NC[:, column])
        prob_R2 = np.stack([1 - prob_NC[known_R, column], prob_NC[known_R, column]], axis=1)
        expected_R = cleanlab_mask(prob_R2, given_NC[known_R, column].astype(int))
        np.testing.assert_array_equal(np.sort(errors.row_I), known_R[expected_R])
        np.testing.assert_array_equal(errors.given_I, given_NC[errors.row_I, column])
        np.testing.assert_array_equal(errors.suggested_I, 1 - errors.given_I)


def test_planted_errors_are_found(rng):
    prob_NK, given_N, wrong_N = drawn(rng)
    errors = one_class_errors(prob_NK, given_N)
    hits = wrong_N[errors.row_I]
    assert hits.mean() > 0.9  # 0.98 of 133; 0.92 to 0.96 with other seeds
    assert hits.sum() / wrong_N.sum() > 0.6  # 0.66; 0.68 to 0.72
    assert hits[:50].all()  # the surest come first


def test_labels_that_the_probabilities_agree_with_are_no_errors():
    prob_NK = np.full((6, 3), 0.1)
    column_N = np.arange(6) % 3
    prob_NK[np.arange(6), column_N] = 0.8
    assert len(one_class_errors(prob_NK, column_N)) == 0
    assert len(one_class_errors(np.full((4, 2), 0.5), np.array([0, 1, 0, 1]))) == 0


@given(hnp.arrays(np.float64, (30, 4), elements=st.floats(0.01, 1)), hnp.arrays(np.int64, 30, elements=st.integers(0, 3)))
def test_no_error_is_suggested_the_class_that_it_was_given(weight_NK, column_N):
    errors = one_class_errors(weight_NK / weight_NK.sum(axis=1, keepdims=True), column_N)
    assert (errors.suggested_I != errors.given_I).all()
    assert (np.diff(errors.prob_I) >= 0).all()
    np.testing.assert_array_equal(errors.given_I, column_N[errors.row_I])


def test_a_class_that_is_always_or_never_given_has_no_errors():
    prob_NC = np.full((5, 2), 0.6)
    target_NC = np.zeros((5, 2), bool)
    target_NC[:, 0] = True
    assert [len(errors) for errors in each_class_errors(prob_NC, target_NC, np.ones((5, 2), bool))] == [0, 0]


@pytest.mark.parametrize(
    ("prob_NK", "column_N", "message"),
    [
        (np.ones((3, 2)), np.zeros(4, int), r"probabilities \(3, 2\) and labels \(4,\); expected"),
        (np.ones((3, 2)), np.zeros(3, int), "must be at least 0 and sum to 1"),
        (np.full((3, 2), np.nan), np.zeros(3, int), "must be at least 0 and sum to 1"),
        (np.full((3, 2), 0.5), np.full(3, 2), "a label is outside columns 0 to 1"),
    ],
)
def test_what_is_no_probability_or_label_is_refused(prob_NK, column_N, message):
    with pytest.raises(DataError, match=message):
        one_class_errors(prob_NK, column_N)


def test_probabilities_of_classes_above_1_are_refused():
    with pytest.raises(DataError, match="probabilities must be from 0 to 1"):
        each_class_errors(np.full((2, 2), 1.5), np.zeros((2, 2), bool), np.ones((2, 2), bool))
