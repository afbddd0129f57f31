"""Thresholds with their statuses."""

import numpy as np

from ovr.core.thresholds import Thresholds


def test_numbers_alone_have_nothing_against_them():
    found = Thresholds.of(np.array([0.1, 0.2]))
    assert found.status_K == ("ok", "ok")
    assert Thresholds.of(found) is found


def test_parts_are_joined_in_order():
    parts = [Thresholds(np.array([0.1]), ("ok",)), Thresholds(np.array([0.2, 1.0]), ("no_positive", "cannot_be_promised: n = 1"))]
    joined = Thresholds.joined(parts)
    np.testing.assert_array_equal(joined.threshold_K, [0.1, 0.2, 1.0])
    assert joined.columns_without_promise() == [2]
    assert len(joined) == 3
