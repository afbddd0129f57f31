"""The risk-coverage curve, against its definition row by row and over all orders of ties."""

from itertools import pairwise, permutations

import numpy as np
import pytest

from ovr.errors import DataError
from ovr.metric.risk_coverage import risk_coverage


@pytest.mark.parametrize("num_levels", [3, 10**9])
def test_every_point_is_what_rows_at_or_above_it_give(num_levels):
    rng = np.random.default_rng(num_levels)
    confidence_N = rng.integers(0, num_levels, size=80) / num_levels
    right_N, known_N = rng.random(80) < 0.7, rng.random(80) < 0.8
    curve = risk_coverage(confidence_N, right_N, known_N)
    levels = np.unique(confidence_N[known_N])[::-1]
    np.testing.assert_array_equal(curve.confidence_P, levels)
    for point, level in enumerate(levels):
        taken_N = known_N & (confidence_N >= level)
        assert curve.coverage_P[point] == taken_N.sum() / known_N.sum()
        assert curve.risk_P[point] == pytest.approx((~right_N[taken_N]).mean(), rel=1e-12, abs=1e-15)
    wanted = curve.coverage_P[len(levels) // 2]
    assert curve.risk_at(wanted) == curve.risk_P[len(levels) // 2]


def test_the_area_is_the_mean_over_all_orders_of_rows_of_equal_confidence():
    confidence = [0.9, 0.5, 0.5, 0.5, 0.5, 0.1, 0.1]
    right = [1, 0, 1, 1, 0, 0, 1]
    areas = []
    for order in permutations(range(7)):
        if all(confidence[a] >= confidence[b] for a, b in pairwise(order)):
            wrong = np.cumsum([1 - right[i] for i in order])
            areas.append((wrong / np.arange(1, 8)).mean())
    assert risk_coverage(confidence, right, [1] * 7).aurc == pytest.approx(np.mean(areas), rel=1e-12)


def test_no_known_row_has_no_curve():
    curve = risk_coverage([0.5], [1], [0])
    assert len(curve.risk_P) == 0
    assert np.isnan(curve.aurc)
    assert np.isnan(curve.risk_at(0.5))


def test_confidences_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="confidence of row 0, head column 0 is nan"):
        risk_coverage([np.nan], [1], [1])
