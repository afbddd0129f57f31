"""The check of scores, targets and mask: what it lets through, and what it says."""

import numpy as np
import pytest

from ovr.core.targets import check_flags, check_probs, check_scores, check_targets
from ovr.errors import DataError


def test_scores_keep_their_precision_and_integers_become_float64():
    assert check_scores(np.zeros((2, 1), np.float32), score_name="logit").dtype == np.float32
    assert check_scores(np.zeros((2, 1), np.float64), score_name="logit").dtype == np.float64
    assert check_scores(np.zeros((2, 1), np.float16), score_name="logit").dtype == np.float32
    assert check_scores([[1], [2]], score_name="logit").dtype == np.float64


def test_flags_may_be_bool_or_zero_and_one():
    for dtype in (bool, int, np.uint8, np.float32):
        got = check_flags(np.array([[1, 0]], dtype=dtype), name="mask", shape_NK=(1, 2))
        assert got.dtype == np.bool_
        np.testing.assert_array_equal(got, [[True, False]])


def test_an_unknown_target_may_hold_anything():
    _, target_NK, _ = check_targets([[1.0, 2.0]], [[np.nan, 1.0]], [[0, 1]], score_name="logit")
    np.testing.assert_array_equal(target_NK, [[False, True]])


@pytest.mark.parametrize("shape", [(3,), (3, 0), (1, 2, 3), ()])
def test_scores_are_rows_by_heads(shape):
    with pytest.raises(DataError, match=r"logit has shape .*expected \(rows, heads\) with at least one head"):
        check_scores(np.zeros(shape), score_name="logit")


def test_scores_are_numbers():
    with pytest.raises(DataError, match="logit must be numbers, got dtype <U1"):
        check_scores([["a"]], score_name="logit")
    with pytest.raises(DataError, match="logit must be numbers, got dtype bool"):
        check_scores([[True]], score_name="logit")


def test_a_score_that_is_not_finite_is_refused_even_where_the_label_is_unknown():
    with pytest.raises(DataError, match=r"logit of row 1, head column 0 is nan; every one must be finite \(2 of 4 are not\)"):
        check_targets([[0.0, 1.0], [np.nan, np.inf]], np.zeros((2, 2)), np.zeros((2, 2)), score_name="logit")


def test_shapes_must_be_those_of_the_scores():
    with pytest.raises(DataError, match=r"mask has shape \(1, 2\); expected \(2, 1\)"):
        check_targets(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((1, 2)), score_name="logit")
    with pytest.raises(DataError, match=r"target has shape \(2,\); expected \(2, 1\)"):
        check_targets(np.zeros((2, 1)), np.zeros(2), np.zeros((2, 1)), score_name="logit")


def test_known_targets_and_masks_are_zero_or_one():
    with pytest.raises(DataError, match=r"target of row 0, head column 1 is 2.*expected 0 or 1"):
        check_targets(np.zeros((1, 2)), [[1, 2]], [[1, 1]], score_name="logit")
    with pytest.raises(DataError, match="mask of row 0, head column 0 is nan"):
        check_targets(np.zeros((1, 2)), [[1, 1]], [[np.nan, 1]], score_name="logit")
    with pytest.raises(DataError, match="target must be bool or 0 and 1, got dtype <U3"):
        check_targets(np.zeros((1, 1)), [["yes"]], [[1]], score_name="logit")


@pytest.mark.parametrize("wrong", [-1e-9, 1.0000001, 4.0])
def test_probabilities_lie_from_zero_to_one(wrong):
    with pytest.raises(DataError, match=r"probability of row 1, head column 0 is .*expected 0 to 1"):
        check_probs([[0.0], [wrong]], [[0], [0]], [[1], [1]])
