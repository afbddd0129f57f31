"""Rules that ask for the classes, and rules that do not."""

import numpy as np

from ovr.core.taxonomy import Taxonomy
from ovr.threshold.fit import fit_thresholds, rule_for


class Half:
    def fit(self, prob_NK, target_NK, mask_NK):
        return np.full(prob_NK.shape[1], 0.5)


def test_a_rule_that_asks_for_no_classes_is_taken_as_it_is():
    rule, taxonomy = Half(), Taxonomy.from_ids("ab")
    assert rule_for(rule, taxonomy, slice(0, 1)) is rule
    found = fit_thresholds(rule, np.zeros((1, 2)), np.zeros((1, 2)), np.ones((1, 2)), taxonomy=taxonomy, columns=slice(0, 2))
    assert (found.threshold_K.tolist(), found.status_K) == ([0.5, 0.5], ("ok", "ok"))
