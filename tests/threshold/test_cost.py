"""Thresholds of least cost, against trying every cut and against the cost under the true probabilities."""

import numpy as np
import pytest

from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.errors import ConfigError, DataError
from ovr.threshold.cost import Cost, bayes_thresholds
from ovr.threshold.fit import rule_for

IDS = Taxonomy.from_ids(["ham", "spam", "fraud"])


def cost_of(taken, target, false_positive, false_negative):
    return (taken & ~target).sum() * false_positive + (~taken & target).sum() * false_negative


def test_the_bayes_threshold_is_where_both_mistakes_cost_the_same():
    false_positive_K, false_negative_K = np.array([1.0, 5.0, 1.0, 0.0]), np.array([1.0, 1.0, 49.0, 2.0])
    threshold_K = bayes_thresholds(false_positive_K, false_negative_K)
    np.testing.assert_allclose((1 - threshold_K) * false_positive_K, threshold_K * false_negative_K, rtol=1e-6, atol=1e-9)


def test_the_bayes_threshold_costs_least_where_probabilities_are_right():
    rng = np.random.default_rng(0)
    prob_N = rng.random(200_000)
    target_N = rng.random(200_000) < prob_N
    threshold = Cost(false_negative=4.0).fit(prob_N[:, None], target_N[:, None], np.ones((200_000, 1))).threshold_K[0]
    assert threshold == pytest.approx(0.2)
    costs = {t: cost_of(prob_N >= t, target_N, 1.0, 4.0) for t in (0.1, 0.15, threshold, 0.25, 0.3, 0.5)}
    assert min(costs, key=costs.get) == threshold


@pytest.mark.parametrize("num_levels", [3, 10**6])
def test_no_threshold_costs_less_on_the_rows(num_levels):
    rng = np.random.default_rng(1)
    prob_NK = rng.integers(1, num_levels, size=(60, 9)) / num_levels
    target_NK, mask_NK = rng.random((60, 9)) < prob_NK, rng.random((60, 9)) < 0.8
    price = [0.0, 1.0, 20.0]
    costs = {str(k): {"false_positive": price[k % 3], "false_negative": price[k // 3] or 0.1} for k in range(9)}
    rule = rule_for(Cost(costs=costs, method="empirical"), Taxonomy.from_ids(map(str, range(9))))
    found = rule.fit(prob_NK, target_NK, mask_NK)
    for k in range(9):
        prob_n, target_n = prob_NK[mask_NK[:, k], k].astype(np.float32), target_NK[mask_NK[:, k], k]
        every = [cost_of(prob_n >= t, target_n, **costs[str(k)]) for t in [*np.unique(prob_n), 2.0]]
        assert cost_of(prob_n >= np.float32(found.threshold_K[k]), target_n, **costs[str(k)]) == pytest.approx(min(every))
        assert found.status_K[k] == "ok"


def test_the_cheapest_may_be_to_take_no_row():
    rule = Cost(false_positive=100.0, method="empirical")
    found = rule.fit([[0.9, 1.0], [0.8, 0.5]], [[0, 0], [1, 1]], np.ones((2, 2)))
    assert found.threshold_K[0] == pytest.approx(0.95)
    assert found.threshold_K[1] == pytest.approx(0.25)  # the row at 1.0 cannot be left out, so the other costs nothing more


def test_a_class_without_positives_has_the_threshold_of_its_prices():
    found = Cost(false_negative=3.0, method="empirical").fit([[0.9]], [[0]], [[1]])
    assert (found.threshold_K.tolist(), found.status_K) == ([0.25], ("no_positive",))


def test_prices_are_by_class_id_and_block():
    rule = Cost(false_negative=3.0, costs={"fraud": {"false_negative": 99.0}, "ham": {"false_positive": 3.0}})
    every = rule_for(rule, IDS).fit(np.zeros((1, 3)), np.zeros((1, 3)), np.ones((1, 3)))
    np.testing.assert_allclose(every.threshold_K, [0.5, 0.25, 0.01], rtol=1e-6)
    some = rule_for(rule, IDS, slice(1, 3)).fit(np.zeros((1, 2)), np.zeros((1, 2)), np.ones((1, 2)))
    np.testing.assert_array_equal(some.threshold_K, every.threshold_K[1:])


def test_prices_of_the_taxonomy_stand_between_those_of_a_class_and_those_of_all():
    taxonomy = Taxonomy([ClassSpec("ham"), ClassSpec("spam", false_positive=9.0), ClassSpec("fraud", false_negative=49)])
    rule = Cost(false_negative=3.0, costs={"fraud": {"false_positive": 7.0}, "spam": {"false_positive": 1.0}})
    for given, expected in ((Cost(), [0.5, 0.9, 0.02]), (rule, [0.25, 0.25, 0.125])):
        found = rule_for(given, taxonomy).fit(np.zeros((1, 3)), np.zeros((1, 3)), np.ones((1, 3)))
        np.testing.assert_allclose(found.threshold_K, expected, rtol=1e-6)
    free = Taxonomy([ClassSpec("spam", false_positive=0.0)])
    with pytest.raises(ConfigError, match="both costs of class 'spam' are 0"):
        rule_for(Cost(costs={"spam": {"false_negative": 0}}), free)


def test_a_class_that_is_not_there_is_named_with_those_that_are_near():
    rule = Cost(costs={"frod": {"false_negative": 2.0}, "zzzz": {"false_negative": 2.0}})
    with pytest.raises(ConfigError, match=r"model of 3 classes does not have: 'frod' \(nearest: fraud\), 'zzzz'$"):
        rule_for(rule, IDS)


def test_priced_classes_must_be_known():
    with pytest.raises(ConfigError, match="call of_classes"):
        Cost(costs={"fraud": {"false_negative": 2.0}}).fit([[0.5]], [[1]], [[1]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "guess"}, "method is 'guess'; expected 'bayes' .* or 'empirical'"),
        ({"false_positive": -1}, "cost of a false_positive of every class is -1; expected a number of at least 0"),
        ({"false_negative": float("nan")}, "cost of a false_negative of every class is nan"),
        ({"false_positive": 0, "false_negative": 0}, "both costs of every class are 0"),
        ({"costs": {"a": {"false_negativ": 2}}}, "costs of class 'a' are .*expected {false_positive"),
        ({"costs": {"a": 3}}, "costs of class 'a' are 3; expected"),
    ],
)
def test_prices_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Cost(**settings)


@pytest.mark.parametrize("method", ["bayes", "empirical"])
def test_values_that_are_no_probabilities_are_refused(method):
    with pytest.raises(DataError, match="expected 0 to 1"):
        Cost(method=method).fit([[2.0]], [[1]], [[1]])
