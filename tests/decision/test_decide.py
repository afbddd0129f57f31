"""The decision, against its definition row by row."""

import numpy as np
import pytest

from ovr.core.artifact import DecisionPolicy
from ovr.decision.decide import decide
from ovr.errors import ArtifactError, InputError


def by_hand(prob_K, threshold_K, policy):
    """Return labels, abstained and top columns of one row, by the definition."""
    ranked = sorted(range(len(prob_K)), key=lambda k: (-prob_K[k], k))
    abstained = bool(max(prob_K) < np.float32(policy.abstain_below))
    if abstained:
        labels = []
    elif policy.mode == "argmax":
        labels = [ranked[0]]
    else:
        labels = [k for k in range(len(prob_K)) if prob_K[k] >= np.float32(threshold_K[k])]
    return labels, abstained, ranked[: policy.top_k]


@pytest.mark.parametrize("mode", ["argmax", "multilabel"])
@pytest.mark.parametrize("top_k", [1, 3, 7, 50])
@pytest.mark.parametrize("num_heads", [1, 2, 7, 40])
@pytest.mark.parametrize("num_levels", [3, 10**6])
def test_every_row_is_decided_as_the_policy_says(mode, top_k, num_heads, num_levels):
    rng = np.random.default_rng(num_heads * top_k)
    prob_BK = (rng.integers(0, num_levels + 1, size=(60, num_heads)) / num_levels).astype(np.float32)
    threshold_K = rng.random(num_heads)
    policy = DecisionPolicy(mode, 0.6, top_k)
    decision = decide(prob_BK, threshold_K=threshold_K, policy=policy)
    assert decision.top_BM.shape == (60, min(top_k, num_heads))
    for b in range(60):
        labels, abstained, top = by_hand(prob_BK[b], threshold_K, policy)
        assert np.flatnonzero(decision.label_BK[b]).tolist() == labels
        assert decision.abstained_B[b] == abstained
        assert decision.top_BM[b].tolist() == top


@pytest.mark.parametrize("mode", ["argmax", "multilabel"])
def test_a_row_is_decided_alike_in_every_batch(mode):
    rng = np.random.default_rng(0)
    prob_BK = rng.choice(np.linspace(0, 1, 5, dtype=np.float32), size=(97, 20))
    arguments = {"threshold_K": rng.random(20), "policy": DecisionPolicy(mode, 0.9, 4)}
    every = decide(prob_BK, **arguments)
    for size in (1, 2, 13, 64):
        for start in range(0, 97, size):
            part = decide(prob_BK[start : start + size], **arguments)
            np.testing.assert_array_equal(part.label_BK, every.label_BK[start : start + size])
            np.testing.assert_array_equal(part.top_BM, every.top_BM[start : start + size])
            np.testing.assert_array_equal(part.abstained_B, every.abstained_B[start : start + size])


def test_of_equal_probabilities_the_lower_column_wins():
    decision = decide([[0.2, 0.7, 0.7], [0.0, -0.0, 0.0]], threshold_K=[0.5] * 3, policy=DecisionPolicy("argmax", 0.0, 3))
    np.testing.assert_array_equal(decision.top_BM, [[1, 2, 0], [0, 1, 2]])
    np.testing.assert_array_equal(decision.label_BK, [[False, True, False], [True, False, False]])


def test_thresholds_and_limits_are_compared_as_float32():
    prob_BK = np.array([[0.7]], dtype=np.float32)  # below 0.7 in float64
    assert decide(prob_BK, threshold_K=[0.7], policy=DecisionPolicy("multilabel", 0.7, 1)).label_BK.all()
    assert decide(prob_BK.astype(np.float64), threshold_K=[0.7], policy=DecisionPolicy("multilabel")).label_BK.all()


def test_float64_probabilities_are_decided_as_the_float32_ones_served():
    prob_BK = np.array([[0.3, np.nextafter(0.3, 1)]])  # equal as float32
    assert decide(prob_BK, threshold_K=[1, 1], policy=DecisionPolicy("argmax")).top_BM.tolist() == [[0, 1]]


def test_multilabel_may_find_nothing_without_abstaining():
    decision = decide([[0.1, 0.2]], threshold_K=[0.5, 0.5], policy=DecisionPolicy("multilabel"))
    assert not decision.label_BK.any()
    assert not decision.abstained_B.any()


def test_argmax_looks_at_no_threshold():
    assert decide([[0.1, 0.2]], threshold_K=[0.0, 0.9], policy=DecisionPolicy("argmax")).label_BK.tolist() == [[False, True]]


def test_an_abstained_row_still_has_its_top_columns():
    decision = decide([[0.1, 0.2]], threshold_K=[0.0, 0.0], policy=DecisionPolicy("multilabel", 0.5, 2))
    assert decision.abstained_B.tolist() == [True]
    assert not decision.label_BK.any()
    assert decision.top_BM.tolist() == [[1, 0]]


def test_no_rows_give_an_empty_decision():
    decision = decide(np.zeros((0, 3), np.float32), threshold_K=[0.5] * 3, policy=DecisionPolicy(top_k=2))
    assert decision.label_BK.shape == (0, 3)
    assert decision.top_BM.shape == (0, 2)
    assert decision.abstained_B.shape == (0,)


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.01, np.inf])
def test_values_that_are_no_probabilities_are_refused(wrong):
    with pytest.raises(InputError, match=r"probability of row 1, head column 0 is .*expected 0 to 1"):
        decide([[0.5, 0.5], [wrong, 0.5]], threshold_K=[0.5, 0.5], policy=DecisionPolicy())


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((2, 0)), np.array([["a"]])])
def test_probabilities_are_rows_by_heads(wrong):
    with pytest.raises(InputError, match=r"probabilities have shape .*expected numbers \(rows, heads\)"):
        decide(wrong, threshold_K=[0.5], policy=DecisionPolicy())


@pytest.mark.parametrize("wrong", [[0.5], [0.5, np.nan], 0.5])
def test_one_threshold_a_head_is_demanded(wrong):
    with pytest.raises(ArtifactError, match="expected 2 numbers, one a head"):
        decide([[0.5, 0.5]], threshold_K=wrong, policy=DecisionPolicy())


@pytest.mark.parametrize("mode", ["argmax", "multilabel"])
@pytest.mark.parametrize("top_k", [1, 3, 50])
def test_classes_that_are_not_available_are_decided_as_if_there_were_none(mode, top_k):
    rng = np.random.default_rng(top_k)
    prob_BK = rng.integers(0, 5, size=(80, 7)) / 4
    available_BK = rng.random(prob_BK.shape) < 0.5
    available_BK[:3] = [[False] * 7, [True] * 7, [True] + [False] * 6]
    given_BK = np.where(available_BK, prob_BK, np.nan)
    threshold_K = rng.integers(0, 5, size=7) / 4
    policy = DecisionPolicy(mode, 0.3, top_k)
    decision = decide(given_BK, threshold_K=threshold_K, policy=policy, available_BK=available_BK)
    for b in range(len(prob_BK)):
        columns = np.flatnonzero(available_BK[b])
        if not len(columns):
            assert decision.abstained_B[b]
            assert not decision.label_BK[b].any()
            assert (decision.top_BM[b] == -1).all()
            continue
        labels, abstained, top = by_hand(prob_BK[b, columns], threshold_K[columns], policy)
        assert np.flatnonzero(decision.label_BK[b]).tolist() == columns[labels].tolist()
        assert decision.abstained_B[b] == abstained
        assert decision.top_BM[b].tolist() == columns[top].tolist() + [-1] * (min(top_k, 7) - len(top))
