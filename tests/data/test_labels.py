import numpy as np
import pytest

from ovr.data.labels import Labels
from ovr.errors import DataError


def test_dense_labels_come_back_as_they_were_given(rng):
    target_NK, mask_NK = rng.random((40, 7)) < 0.3, rng.random((40, 7)) < 0.8
    rows_B = rng.integers(40, size=15)
    target_BK, got_mask_BK = Labels.from_dense(target_NK, mask_NK).dense(rows_B)
    np.testing.assert_array_equal(got_mask_BK, mask_NK[rows_B])
    np.testing.assert_array_equal(target_BK, (target_NK & mask_NK)[rows_B])


def test_multi_class_labels_are_one_hot_with_a_full_mask(rng):
    column_N = rng.integers(5, size=30)
    target_NK, mask_NK = Labels.from_columns(column_N, num_heads=5).dense()
    np.testing.assert_array_equal(target_NK, np.eye(5, dtype=bool)[column_N])
    assert mask_NK.all()


def test_take_and_counts_agree_with_dense(rng):
    target_NK, mask_NK = rng.random((20, 4)) < 0.5, rng.random((20, 4)) < 0.5
    labels = Labels.from_dense(target_NK, mask_NK)
    rows_B = np.array([3, 3, 19, 0])
    for got, expected in zip(labels.take(rows_B).dense(), labels.dense(rows_B), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(labels.num_positives_K(), (target_NK & mask_NK).sum(axis=0))


def test_a_column_outside_the_heads_is_refused():
    with pytest.raises(DataError, match="row 1 has label column 3; expected 0 to 2"):
        Labels.from_columns(np.array([0, 3]), num_heads=3)


def test_counts_leave_out_what_is_unknown(rng):
    target_NK, mask_NK = rng.random((40, 3)) < 0.3, rng.random((40, 3)) < 0.8
    for mask in (None, mask_NK):
        known_NK = np.ones_like(target_NK) if mask is None else mask
        counts = Labels.from_dense(target_NK, mask).counts()
        np.testing.assert_array_equal(counts.num_positives_K, (target_NK & known_NK).sum(axis=0))
        np.testing.assert_array_equal(counts.num_negatives_K, (~target_NK & known_NK).sum(axis=0))


@pytest.mark.parametrize("share_known", [0.7, 1.0])
def test_columns_and_sparse_entries_agree_with_dense(rng, share_known):
    target_NK, mask_NK = rng.random((20, 9)) < 0.3, rng.random((20, 9)) < share_known
    labels = Labels.from_dense(target_NK, mask_NK)
    target_NK &= mask_NK
    for columns in (slice(0, 9), slice(2, 5), slice(8, 9), slice(None)):
        for got, expected in zip(labels.columns(columns), (target_NK[:, columns], mask_NK[:, columns]), strict=True):
            np.testing.assert_array_equal(got, expected)
    for column_C in (np.array([0, 3, 4, 8]), np.array([7]), np.arange(9), np.zeros(0, dtype=int)):
        for got, expected in zip(labels.some_columns(column_C), (target_NK[:, column_C], mask_NK[:, column_C]), strict=True):
            np.testing.assert_array_equal(got, expected)
    rows_B = np.array([7, 0, 7, 19])
    row_P, column_P, row_U, column_U = labels.sparse(rows_B)
    for row, column, flag_BK in ((row_P, column_P, target_NK[rows_B]), (row_U, column_U, ~mask_NK[rows_B])):
        assert row.dtype == column.dtype == np.int64
        expected_column, expected_row = np.nonzero(flag_BK.T)
        np.testing.assert_array_equal(column, expected_column)
        np.testing.assert_array_equal(row, expected_row)


def test_labels_of_a_million_heads_take_no_matrix():
    rows = np.arange(0, 1_000_000, 2000)
    labels = Labels.from_columns(rows, num_heads=1_000_000)
    target_NC, mask_NC = labels.columns(slice(998_000, 1_000_000))
    assert (target_NC.shape, target_NC.sum(), mask_NC.all()) == ((500, 2000), 1, True)
    assert labels.take(np.array([3, 4])).sparse(np.array([1, 0]))[1].tolist() == [6000, 8000]
    assert labels.counts().num_positives_K.sum() == 500


def test_the_labels_of_the_first_heads_are_those_columns(rng):
    target_NK, mask_NK = rng.random((30, 7)) < 0.4, rng.random((30, 7)) < 0.8
    labels = Labels.from_dense(target_NK, mask_NK)
    for num_heads in (0, 1, 4, 7):
        target, mask = labels.first_heads(num_heads).dense()
        np.testing.assert_array_equal(target, (target_NK & mask_NK)[:, :num_heads])
        np.testing.assert_array_equal(mask, mask_NK[:, :num_heads])
