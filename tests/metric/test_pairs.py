"""Confused pairs, against scikit-learn's confusion matrix and brute force."""

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from ovr.errors import DataError
from ovr.metric.pairs import MAX_WRONG, ConfusedPairs, confused_pairs


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def counted(pairs):
    return {(t, d): c for t, d, c in zip(pairs.true_P.tolist(), pairs.decided_P.tolist(), pairs.count_P.tolist(), strict=True)}


def test_with_one_class_a_row_the_pairs_are_the_confusion_matrix(rng):
    true_N, decided_N = rng.integers(0, 7, 500), rng.integers(0, 7, 500)
    got = confused_pairs(np.eye(7)[decided_N], np.eye(7)[true_N], np.ones((500, 7)))
    matrix = confusion_matrix(true_N, decided_N)
    np.fill_diagonal(matrix, 0)
    assert counted(got.instead) == {(t, d): matrix[t, d] for t, d in np.argwhere(matrix).tolist()}
    assert (np.diff(got.instead.count_P) <= 0).all()
    assert len(got.beside) == 0
    assert (got.nothing_K == 0).all()
    assert counted(got.instead.top(3)) == dict(list(counted(got.instead).items())[:3])


def test_several_classes_a_row_pair_as_defined_whatever_the_blocks(rng):
    target_NK, label_NK, mask_NK = (rng.random((200, 9)) < rate for rate in (0.2, 0.25, 0.9))
    instead, beside, nothing = Counter(), Counter(), Counter()
    for target_K, label_K, mask_K in zip(target_NK, label_NK, mask_NK, strict=True):
        wrong = np.flatnonzero(label_K & ~target_K & mask_K).tolist()
        for k in np.flatnonzero(target_K & mask_K).tolist():
            (beside if label_K[k] else instead).update((k, other) for other in wrong)
            nothing[k] += not label_K[k] and not wrong
    blocks = ConfusedPairs(200)
    for columns in (slice(0, 4), slice(4, 9)):
        blocks.update(label_NK[:, columns], target_NK[:, columns], mask_NK[:, columns])
    for got in (confused_pairs(label_NK, target_NK, mask_NK), blocks.result()):
        assert counted(got.instead) == instead
        assert counted(got.beside) == beside
        assert got.nothing_K.tolist() == [nothing[k] for k in range(9)]
        assert got.num_left_out == 0


def test_rows_on_which_nearly_every_class_is_wrong_are_counted_apart():
    num_heads = MAX_WRONG + 2
    label_NK, target_NK = np.ones((2, num_heads)), np.zeros((2, num_heads))
    label_NK[1, 2:] = 0
    target_NK[:, 0] = 1
    got = confused_pairs(label_NK, target_NK, np.ones((2, num_heads)))
    assert got.num_left_out == 1
    assert counted(got.beside) == {(0, 1): 1}


def test_ten_thousand_classes_take_little_time_and_no_matrix(rng):
    pairs = ConfusedPairs(300)
    true_N, decided_N = rng.integers(0, 10_000, 300), rng.integers(0, 10_000, 300)
    for start in range(0, 10_000, 2500):
        columns = np.arange(start, start + 2500)
        pairs.update(decided_N[:, None] == columns, true_N[:, None] == columns, np.ones((300, 2500), dtype=bool))
    assert len(pairs.result().instead) == (true_N != decided_N).sum()


def test_without_a_row_there_is_no_pair_and_other_values_are_refused():
    got = confused_pairs(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)))
    assert (len(got.instead), got.nothing_K.tolist()) == (0, [0, 0, 0])
    with pytest.raises(DataError, match="decision of row 0, head column 0 is 2"):
        confused_pairs([[2]], [[1]], [[1]])
