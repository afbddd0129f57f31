"""Conformal thresholds of each class, against MAPIE's split conformal classifier on that class's rows alone."""

import numpy as np
import pytest

from ovr.threshold.conformal import Conformal


@pytest.mark.filterwarnings(
    "ignore"
)  # MAPIE warns of a calibration set with one class, which is meant here, and of its own imports
@pytest.mark.parametrize("num_positives", [12, 101])
def test_sets_are_those_of_mapie(num_positives):
    mapie = pytest.importorskip("mapie.classification")
    sklearn_base = pytest.importorskip("sklearn.base")

    class Given(sklearn_base.ClassifierMixin, sklearn_base.BaseEstimator):
        classes_ = np.array([0, 1])

        def fit(self, x, y):
            return self

        def predict_proba(self, x):
            return np.concatenate([1 - x, x], axis=1)

        def predict(self, x):
            return (x[:, 0] >= 0.5).astype(int)

        def __sklearn_is_fitted__(self):
            return True

    rng = np.random.default_rng(num_positives)
    prob_N1, target_N1 = rng.random((300, 1)), np.arange(300)[:, None] < num_positives
    conformal = mapie.SplitConformalClassifier(Given(), confidence_level=0.9, conformity_score="lac", prefit=True)
    conformal.conformalize(prob_N1[target_N1[:, 0]], np.ones(num_positives, dtype=int))
    _, sets_N21 = conformal.predict_set(prob_N1)
    threshold = Conformal(coverage=0.9).fit(prob_N1, target_N1, np.ones((300, 1))).threshold_K[0]
    np.testing.assert_array_equal(prob_N1[:, 0] >= threshold, sets_N21[:, 1, 0])
