import numpy as np

from ovr.data.entries import Entries


def test_rows_and_columns_are_those_of_the_matrix(rng):
    flag_NK = rng.random((30, 9)) < 0.2
    entries = Entries.of(flag_NK)
    rows_B = rng.integers(30, size=12)
    for got, expected in zip(entries.of_rows(rows_B), np.nonzero(flag_NK[rows_B]), strict=True):
        np.testing.assert_array_equal(got, expected)
    column, row = np.nonzero(flag_NK[:, 3:7].T)
    for got, expected in zip(entries.of_columns(3, 7), (row, column + 3), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(entries.row_P, np.nonzero(flag_NK)[0])


def test_a_matrix_without_entries_has_none():
    entries = Entries.none(4)
    assert len(entries) == 4
    assert all(array.size == 0 for array in (*entries.of_rows(np.arange(4)), *entries.of_columns(0, 9), entries.row_P))
