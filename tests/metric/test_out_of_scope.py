"""Scores of rows that are of none of the classes."""

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from ovr.errors import DataError
from ovr.metric.out_of_scope import SCORES, auroc


def test_scores_are_their_definitions_and_fall_out_of_scope():
    prob_BK = np.random.default_rng(0).random((40, 6)) ** 3
    logit_BK = np.log(prob_BK / (1 - prob_BK))
    expected = {
        "max": prob_BK.max(axis=1),
        "sum": prob_BK.sum(axis=1),
        "entropy": -entropy(softmax(logit_BK, axis=1), axis=1),
        "max_normalized": softmax(logit_BK, axis=1).max(axis=1),
        "odds": logsumexp(logit_BK, axis=1),
    }
    assert expected.keys() == SCORES.keys()
    for name, score in SCORES.items():
        np.testing.assert_allclose(score(prob_BK), expected[name], rtol=1e-9)
        inside, outside = score(np.array([[0.9, 0.01, 0.01], [0.1, 0.1, 0.1]]))
        assert inside > outside


def test_auroc_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(1)
    inside, outside = rng.integers(0, 9, size=50) / 9, rng.integers(0, 7, size=30) / 9
    expected = roc_auc_score(np.repeat([1, 0], [50, 30]), np.concatenate([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected, rel=1e-12)


def test_auroc_needs_rows_of_either_kind():
    with pytest.raises(DataError, match="1 rows in scope and 0 out of scope"):
        auroc([0.5], [])
    with pytest.raises(DataError, match="score of row 0, head column 0 is nan"):
        auroc([np.nan], [0.5])
