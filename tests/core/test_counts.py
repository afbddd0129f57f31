import numpy as np
import pytest

from ovr.core.counts import ClassCounts
from ovr.errors import DataError


def test_rates_ratios_and_log_odds_are_of_the_known_rows():
    counts = ClassCounts(np.array([1, 0, 5, 0]), np.array([3, 4, 0, 0]))
    np.testing.assert_array_equal(counts.base_rate_K(), [0.25, 0, 1, 0.5])
    np.testing.assert_array_equal(counts.negatives_per_positive_K(), [3, np.inf, 0, 1])
    np.testing.assert_allclose(counts.base_logit_K(), np.log([1.5 / 3.5, 0.5 / 4.5, 5.5 / 0.5, 1]))


@pytest.mark.parametrize(
    ("positives", "negatives", "message"),
    [([1], [1, 2], r"positives \(1,\) and of negatives \(2,\)"), ([[1]], [[1]], "expected"), ([-1], [1], "below 0")],
)
def test_counts_that_are_none_are_refused(positives, negatives, message):
    with pytest.raises(DataError, match=message):
        ClassCounts(np.array(positives), np.array(negatives))
