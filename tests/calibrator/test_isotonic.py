"""Isotonic calibration, against scikit-learn's on rounded logits."""

import numpy as np
import pytest

from ovr.calibrator import pav
from ovr.calibrator.apply import calibrated_prob
from ovr.calibrator.isotonic import Isotonic, rounded
from ovr.calibrator.pav import pooled
from ovr.core.artifact import MAX_KNOT, MIN_KNOT_STEP
from tests.calibrator.sample import heads


@pytest.mark.parametrize("boundary_rows", [1.0, 0.5])
@pytest.mark.parametrize("arrays", [heads(), heads(num_rows=3000, scale=3.0), heads(num_rows=12, num_heads=30, bias=0.5)])
def test_it_is_scikit_learns_with_the_two_made_up_rows(arrays, boundary_rows):
    regression = pytest.importorskip("sklearn.isotonic").IsotonicRegression
    logit_NK, target_NK, mask_NK = arrays
    asked_N = np.random.default_rng(0).normal(size=500) * 4
    for k, ours in enumerate(Isotonic(boundary_rows=boundary_rows).fit(*arrays)):
        known = mask_NK[:, k]
        if ours.kind == "identity":
            assert ours.status == "one_class"
            continue
        z = np.rint(logit_NK[known, k].astype(np.float64) / MIN_KNOT_STEP) * MIN_KNOT_STEP
        weights = np.append(np.ones(known.sum()), [boundary_rows] * 2)
        theirs = regression(out_of_bounds="clip").fit(
            np.append(z, [z.min(), z.max()]), np.append(target_NK[known, k], [1, 0]), weights
        )
        np.testing.assert_allclose(calibrated_prob(asked_N[:, None], [ours])[:, 0], theirs.predict(asked_N), atol=1e-7)


def test_the_lowest_rows_without_a_positive_get_what_the_boundary_rule_says():
    logit_NK = np.arange(10.0)[:, None]
    (ours,) = Isotonic().fit(logit_NK, logit_NK > 6, np.ones_like(logit_NK))
    assert ours.status == "separable"
    np.testing.assert_allclose(ours.knot_probs, np.float32([1 / 8, 1 / 8, 3 / 4, 3 / 4]))
    assert ours.knot_logits == (0.0, 6.0, 7.0, 9.0)


def test_logits_are_rounded_to_what_float32_tells_apart():
    z = np.array([0.0, 0.007, 0.0079, 1e300, -1e300, MAX_KNOT, MAX_KNOT - MIN_KNOT_STEP])
    assert rounded(z).tolist() == [0, 0, 1, 1 << 23, -(1 << 23), 1 << 23, (1 << 23) - 1]


def test_a_boundary_that_hardly_counts_still_keeps_0_and_1_out():
    logit_NK = np.arange(4.0)[:, None]
    (ours,) = Isotonic(boundary_rows=1e-60).fit(logit_NK, logit_NK > 1, np.ones_like(logit_NK))
    assert 0 < ours.knot_probs[0] < 1e-30
    assert 1 - 1e-7 < np.float32(ours.knot_probs[-1]) < 1


def test_a_flat_map_is_not_increasing():
    logit_NK = np.arange(40.0)[:, None]
    target_NK = (np.arange(40) % 4 == 0)[:, None]
    target_NK[0] = target_NK[-1] = False
    target_NK[1] = target_NK[20] = True
    (ours,) = Isotonic().fit(logit_NK, np.flip(np.sort(target_NK, axis=0)), np.ones_like(logit_NK))
    assert ours.status == "not_increasing"
    assert len(set(ours.knot_probs)) == 1


@pytest.mark.parametrize("passes", [0, 1, 64])
def test_pooling_is_scikit_learns_in_whatever_order(passes, monkeypatch):
    regression = pytest.importorskip("sklearn.isotonic").IsotonicRegression
    monkeypatch.setattr(pav, "MAX_PASSES", passes)
    rng = np.random.default_rng(0)
    head_G = np.sort(rng.integers(0, 7, 300))
    rows_G = rng.integers(1, 9, 300).astype(np.float64)
    positives_G = np.floor(rows_G * np.clip(rng.random(300) * (np.arange(300) % 50) / 40, 0, 1))
    first_J, mean_J = pooled(head_G, positives_G, rows_G)
    got_G = np.repeat(mean_J, np.diff(np.append(first_J, 300)))
    for head in range(7):
        here = head_G == head
        theirs = regression().fit(np.arange(here.sum()), (positives_G / rows_G)[here], rows_G[here]).predict(np.arange(here.sum()))
        np.testing.assert_allclose(got_G[here], theirs, atol=1e-12)


def test_rows_made_to_need_a_pass_each_take_no_time():
    num_groups = 20_000
    positives_G = np.append(np.arange(1.0, num_groups), 0.0)
    rows_G = np.append(np.full(num_groups - 1, float(num_groups)), 1e6)
    first_J, mean_J = pooled(np.zeros(num_groups, dtype=np.int64), positives_G, rows_G)
    assert np.all(np.diff(mean_J) > 0)
    assert len(first_J) < num_groups
