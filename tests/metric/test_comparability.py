"""Figures of all heads together, against scipy on whole arrays."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from ovr.metric.calibration import ece_equal_mass
from ovr.metric.comparability import Comparability


@pytest.mark.parametrize("blocks", [[(0, 7)], [(0, 1), (1, 4), (4, 7)]])
def test_figures_are_those_of_whole_arrays(blocks):
    rng = np.random.default_rng(0)
    logit_NK = rng.normal(size=(300, 7)) * 2
    num_classes_N = rng.integers(0, 3, size=300)
    target_NK = np.array([np.isin(np.arange(7), rng.permutation(7)[:n]) for n in num_classes_N])
    mask_NK = np.ones((300, 7), np.bool_)
    mask_NK[:40, 2] = False
    figures = Comparability(300)
    for start, stop in blocks:
        here = slice(start, stop)
        figures.update(logit_NK[:, here], target_NK[:, here], mask_NK[:, here], first_column=start)
    one_N = (target_NK.sum(axis=1) == 1) & mask_NK.all(axis=1)
    class_n, logit_nK = target_NK[one_N].argmax(axis=1), logit_NK[one_N]
    right_n = logit_nK.argmax(axis=1) == class_n
    found = figures.result()
    assert found["argmax_accuracy"] == pytest.approx(right_n.mean())
    assert found["normalized_nll"] == pytest.approx(-log_softmax(logit_nK, axis=1)[np.arange(len(class_n)), class_n].mean())
    highest_n1 = softmax(logit_nK, axis=1).max(axis=1, keepdims=True)
    expected = ece_equal_mass(highest_n1, right_n[:, None], np.ones_like(right_n[:, None]))[0]
    assert found["normalized_top_label_ece"] == pytest.approx(expected)
    assert found["mean_prob_none"] == pytest.approx(np.prod(1 / (1 + np.exp(logit_NK)), axis=1).mean())


def test_without_rows_of_one_class_there_is_nothing_to_tell():
    figures = Comparability(2)
    figures.update(np.zeros((2, 3)), np.ones((2, 3)), np.ones((2, 3)), first_column=0)
    found = figures.result()
    assert np.isnan(found["argmax_accuracy"])
    assert np.isnan(found["normalized_nll"])
    assert np.isnan(found["normalized_top_label_ece"])
