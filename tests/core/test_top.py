import numpy as np

from ovr.core.top import RunningTop


def test_the_running_top_is_that_of_all_columns_and_ties_go_to_the_lower_one(rng):
    score_NK = rng.integers(4, size=(200, 11)).astype(np.float32)
    top = RunningTop(200)
    for start in range(0, 11, 3):
        top.update(score_NK[:, start : start + 3], first_column=start)
    np.testing.assert_array_equal(top.column_N, score_NK.argmax(axis=1))
    np.testing.assert_array_equal(top.score_N, score_NK.max(axis=1))
    assert top.score_N.dtype == np.float32
