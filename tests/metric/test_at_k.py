"""P@k and PSP@k against one row at a time, and against values worked out by hand."""

import math

import numpy as np
import pytest

from ovr.core.artifact import DecisionPolicy
from ovr.decision.decide import decide
from ovr.errors import ConfigError, DataError
from ovr.metric.at_k import PrecisionAt, Propensity


def measured(prob_NK, target_NK, mask_NK=None, *, propensity_K=None, most=5, block=4):
    num_rows, num_heads = np.shape(prob_NK)
    at = PrecisionAt(num_rows, np.ones(num_heads) if propensity_K is None else propensity_K, most=most)
    mask_NK = np.ones((num_rows, num_heads), bool) if mask_NK is None else mask_NK
    for start in range(0, num_heads, block):
        columns = slice(start, start + block)
        at.update(prob_NK[:, columns], target_NK[:, columns], mask_NK[:, columns], first_column=start)
    return at


def brute_force(prob_NK, target_NK, mask_NK, propensity_K, k):
    """Return P@k and PSP@k, one row and one class at a time."""
    hits = gained = ideal = rows = 0.0
    for prob_K, target_K, mask_K in zip(prob_NK, target_NK, mask_NK, strict=True):
        known = [column for column in range(len(prob_K)) if mask_K[column]]
        if not known:
            continue
        rows += 1
        ranked = sorted(known, key=lambda column: (-np.float32(prob_K[column]), column))
        right = [column for column in ranked[:k] if target_K[column]]
        hits += len(right) / k
        gained += sum(1 / propensity_K[column] for column in right)
        ideal += sum(sorted((1 / propensity_K[column] for column in known if target_K[column]), reverse=True)[:k])
    return hits / rows, gained / ideal


@pytest.mark.parametrize("num_levels", [2, 7, 10**6])
@pytest.mark.parametrize("known", [1.0, 0.5, 0.05])
@pytest.mark.parametrize("block", [1, 4, 23])
def test_figures_are_those_of_one_row_at_a_time_ties_and_unknown_labels_included(rng, num_levels, known, block):
    prob_NK = rng.integers(0, num_levels + 1, size=(80, 23)) / num_levels
    target_NK, mask_NK = rng.random((80, 23)) < 0.2, rng.random((80, 23)) < known
    propensity_K = rng.uniform(0.05, 1, size=23)
    at = measured(prob_NK, target_NK, mask_NK, propensity_K=propensity_K, block=block)
    for k in (1, 3, 5):
        expected = brute_force(prob_NK, target_NK, mask_NK, propensity_K, k)
        assert (at.precision(k), at.ps_precision(k)) == pytest.approx(expected, rel=1e-12)


def test_the_top_classes_are_those_of_the_decision(rng):
    prob_NK = rng.integers(0, 4, size=(100, 12)).astype(np.float32) / 4
    top_NM = decide(prob_NK, threshold_K=np.full(12, 0.5), policy=DecisionPolicy(mode="multilabel", top_k=3)).top_BM
    target_NK = rng.random((100, 12)) < 0.3
    at = measured(prob_NK, target_NK)
    for k in (1, 3):
        assert at.precision(k) == pytest.approx(np.take_along_axis(target_NK, top_NM[:, :k], axis=1).mean(), rel=1e-12)


def test_a_case_by_hand():
    prob_NK = np.array([[0.9, 0.8, 0.1, 0.0], [0.2, 0.3, 0.4, 0.5], [0.9, 0.1, 0.1, 0.1]])
    target_NK = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    at = measured(prob_NK, target_NK, propensity_K=[0.5, 0.5, 0.25, 0.2])
    assert at.precision(1) == pytest.approx(2 / 3)
    assert at.precision(3) == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    # Row 0 could gain 1 / 0.25 and gains 1 / 0.5; row 1 gains all of 1 / 0.2; row 2 has nothing to gain.
    assert at.ps_precision(1) == pytest.approx((2 + 5) / (4 + 5))
    assert at.ps_precision(3) == pytest.approx((2 + 4 + 5) / (2 + 4 + 5))


def test_with_propensities_of_one_a_perfect_order_has_a_psp_of_one(rng):
    target_NK = rng.random((50, 9)) < 0.3
    at = measured(np.where(target_NK, 0.9, 0.1), target_NK)
    assert at.ps_precision(5) == 1.0
    assert at.precision(1) == pytest.approx(target_NK.any(axis=1).mean())


def test_figures_that_are_not_defined_are_nan():
    at = measured(np.full((2, 3), 0.5), np.zeros((2, 3)), most=5)
    assert math.isnan(at.precision(5))
    assert at.precision(3) == 0.0
    assert math.isnan(at.ps_precision(3))
    unknown = measured(np.full((2, 3), 0.5), np.zeros((2, 3)), np.zeros((2, 3), bool))
    assert math.isnan(unknown.precision(1))


def test_propensities_are_those_of_the_paper():
    """Section 5.2: p_l = 1 / (1 + C e^(-A log(N_l + B))), C = (log N - 1) (B + 1)^A."""
    counts_K = np.array([0, 1, 5, 100, 10_000])
    expected = [1 / (1 + (math.log(50_000) - 1) * 2.5**0.55 * math.exp(-0.55 * math.log(n + 1.5))) for n in counts_K]
    np.testing.assert_allclose(Propensity(0.55, 1.5).of(counts_K, num_rows=50_000), expected, rtol=1e-12)
    assert (np.diff(expected) > 0).all()
    # A class with one positive among e^11 rows: 1 / (1 + 10 (B + 1)^A (1 + B)^-A) = 1 / 11.
    assert Propensity(0.5, 0.4).of(np.array([1]), num_rows=round(math.exp(11)))[0] == pytest.approx(1 / 11, rel=1e-6)
    np.testing.assert_array_equal(Propensity(0.55, 1.5).of(np.array([0, 1, 2]), num_rows=2), 1)


@pytest.mark.parametrize("settings", [(0, 1.5), (-1, 1.5), (0.5, -1), ("a", 1), (True, 1), (math.nan, 1), (0.5, math.inf)])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=r"propensity\.[AB] must be a finite number"):
        Propensity(*settings)


def test_more_heads_than_a_key_tells_apart_are_refused(monkeypatch):
    monkeypatch.setattr("ovr.metric.at_k.MAX_COLUMNS", 4)
    with pytest.raises(DataError, match="the top classes of 4 heads are not found; expected less than 4"):
        PrecisionAt(3, np.ones(4), most=5)


def test_propensities_out_of_range_are_refused():
    for propensity_K in ([0.0, 1.0], [1.5, 1.0], [[1.0]], [np.nan]):
        with pytest.raises(DataError, match="propensities must be one number a head"):
            PrecisionAt(3, propensity_K, most=5)
    with pytest.raises(DataError, match=r"probability of row 0, head column 1 is 1\.5"):
        measured(np.array([[0.5, 1.5]]), np.zeros((1, 2)))
