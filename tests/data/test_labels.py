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
