"""Ranking of many heads at once, against sorting each alone."""

import numpy as np
import pytest

from ovr.core import ranking
from ovr.core.ranking import ranked_blocks


@pytest.mark.parametrize("block_values", [1, 50, 1 << 20])
def test_each_head_is_ranked_as_if_alone(monkeypatch, block_values):
    monkeypatch.setattr(ranking, "BLOCK_VALUES", block_values)
    rng = np.random.default_rng(3)
    score_NK = rng.integers(-3, 4, size=(40, 7)).astype(np.float32)
    target_NK, mask_NK = rng.random((40, 7)) < 0.3, rng.random((40, 7)) < np.linspace(0, 1, 7)
    seen = []
    for block in ranked_blocks(score_NK, target_NK, mask_NK):
        assert block.score_CN.dtype == np.float32
        for c, k in enumerate(range(block.columns.start, block.columns.stop)):
            seen.append(k)
            known = mask_NK[:, k]
            num_known = known.sum()
            score_n = np.sort(score_NK[known, k])[::-1]
            np.testing.assert_array_equal(block.score_CN[c, :num_known], score_n)
            assert block.num_known_C[c] == num_known
            assert block.num_positives_C[c] == (target_NK[:, k] & known).sum() == block.target_CN[c].sum()
            assert not block.target_CN[c, num_known:].any()
            ends = [i for i in range(num_known) if i + 1 == num_known or score_n[i] != score_n[i + 1]]
            np.testing.assert_array_equal(np.flatnonzero(block.tie_end_CN[c]), ends)
            for end in ends:  # the positives of a run of ties are in the run, in whatever order
                above = known & (score_NK[:, k] >= score_n[end])
                assert block.target_CN[c, : end + 1].sum() == (target_NK[:, k] & above).sum()
    assert seen == list(range(7))


def test_zero_and_minus_zero_are_equal_scores():
    (block,) = ranked_blocks(np.array([[0.0], [-0.0]]), np.array([[True], [False]]), np.ones((2, 1), bool))
    np.testing.assert_array_equal(block.tie_end_CN, [[False, True]])


def test_no_rows_give_empty_ranks():
    (block,) = ranked_blocks(np.zeros((0, 2)), np.zeros((0, 2), bool), np.zeros((0, 2), bool))
    assert block.score_CN.shape == (2, 0)
    np.testing.assert_array_equal(block.num_known_C, [0, 0])
