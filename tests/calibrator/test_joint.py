"""Joint calibration, against scipy's optimum of the same likelihood, and what it is for: heads that rank against each other."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from ovr.calibrator.apply import calibrated_logit
from ovr.calibrator.joint import Joint, fit_joint
from ovr.core.targets import check_targets
from ovr.errors import ConfigError, DataError


def rows(num_rows, num_heads, *, seed=0, distorted=0.0):
    """Return logits (N, K) that are calibrated but for a scale and a shift a head, and the classes of the rows."""
    rng = np.random.default_rng(seed)
    class_N = rng.integers(0, num_heads, size=num_rows)
    target_NK = np.eye(num_heads, dtype=bool)[class_N]
    logit_NK = rng.normal(size=(num_rows, num_heads)) * 1.5 + 4.0 * target_NK - 3.0
    heads = np.random.default_rng(99)
    return logit_NK * np.exp(distorted * heads.normal(size=num_heads)) + 2 * distorted * heads.normal(size=num_heads), target_NK


def accuracy(logit_NK, target_NK):
    return (logit_NK.argmax(axis=1) == target_NK.argmax(axis=1)).mean()


def test_the_ratios_of_the_heads_are_the_optimum_that_scipy_finds():
    logit_NK, target_NK = rows(200, 4, distorted=0.5)
    scale_K, bias_K = fit_joint(logit_NK, target_NK, np.ones_like(target_NK), strength=3.0)
    z, y = logit_NK.ravel(), target_NK.ravel()

    def all_sigmoids(theta, u=z):
        return np.logaddexp(0, (theta[0] * u + theta[1]) * np.where(y, -1, 1)).sum()

    shared = minimize(all_sigmoids, [1.0, 0.0], tol=1e-12).x[0]
    start = np.concatenate([np.full(4, np.log(shared)), np.zeros(4)])

    def objective(theta):
        log_prob_NK = log_softmax(logit_NK * np.exp(theta[:4]) + theta[4:], axis=1)
        return -log_prob_NK[target_NK].sum() + 1.5 * ((theta - start) ** 2).sum()

    best = minimize(objective, start, method="BFGS", options={"gtol": 1e-7}).x
    u = (logit_NK * np.exp(best[:4]) + best[4:]).ravel()
    level, shift = minimize(all_sigmoids, [1.0, 0.0], args=(u,), tol=1e-12).x
    np.testing.assert_allclose(scale_K, level * np.exp(best[:4]), rtol=1e-4)
    np.testing.assert_allclose(bias_K, level * best[4:] + shift, atol=1e-3)


def test_heads_that_do_not_rank_against_each_other_are_made_to():
    fit, fresh = rows(1500, 12, distorted=1.0), rows(4000, 12, seed=1, distorted=1.0)
    found = Joint(strength=1.0).fit(*fit, np.ones_like(fit[1]))
    before, after = accuracy(*fresh), accuracy(calibrated_logit(fresh[0], found), fresh[1])
    undistorted = accuracy(*rows(4000, 12, seed=1))
    assert before < 0.7 < undistorted - 0.05
    assert after > undistorted - 0.02
    assert {(one.kind, one.status, one.num_rows) for one in found} == {("joint", "ok", 1500)}


def test_rows_without_a_class_or_with_unknown_labels_count_for_the_level_alone():
    logit_NK, target_NK = rows(300, 3)
    mask_NK = np.ones_like(target_NK)
    target_NK[:100] = False
    mask_NK[100:150, 0] = False
    scale_K, bias_K = fit_joint(logit_NK, target_NK, mask_NK, strength=1e6)
    assert np.ptp(scale_K) < 1e-3  # held so near what is shared that only the level is left
    every = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
    u, y = logit_NK[every[2]], target_NK[every[2]]
    best = minimize(lambda t: np.logaddexp(0, (t[0] * u + t[1]) * np.where(y, -1, 1)).sum(), [1.0, 0.0], tol=1e-12).x
    np.testing.assert_allclose([scale_K[0], bias_K[0]], best, rtol=2e-3)


def test_heads_with_labels_of_one_kind_say_so():
    logit_NK, target_NK = rows(100, 4)
    mask_NK = np.ones_like(target_NK)
    logit_NK = np.concatenate([logit_NK, np.full((100, 2), -4.0)], axis=1)
    target_NK, mask_NK = (
        np.concatenate([a, b], axis=1) for a, b in ((target_NK, np.zeros((100, 2), bool)), (mask_NK, np.ones((100, 2), bool)))
    )
    found = Joint().fit(logit_NK, target_NK, mask_NK)
    assert [one.status for one in found] == ["ok"] * 4 + ["one_class"] * 2
    assert all(one.scale > 0 for one in found)


def test_separable_rows_and_huge_logits_stay_finite():
    target_NK = np.eye(3, dtype=bool)[np.arange(60) % 3]
    logit_NK = np.where(target_NK, 800.0, -800.0)
    for one in Joint().fit(logit_NK, target_NK, np.ones_like(target_NK)):
        assert np.isfinite([one.scale, one.bias]).all()
        assert one.scale > 0


def test_rows_of_several_classes_are_refused_by_name():
    target_NK = np.array([[1, 0], [1, 1]], bool)
    with pytest.raises(DataError, match=r"rows of one class each; calibration row 1 has 2 \(1 of 2 rows have several\)"):
        Joint().fit(np.zeros((2, 2)), target_NK, np.ones_like(target_NK))


def test_rows_of_one_known_class_are_needed():
    with pytest.raises(DataError, match="needs calibration rows of one class each whose labels are all known"):
        Joint().fit(np.zeros((2, 2)), np.zeros((2, 2)), np.ones((2, 2)))


@pytest.mark.parametrize("wrong", [0, -1.0, np.inf, "much"])
def test_a_strength_is_above_0(wrong):
    with pytest.raises(ConfigError, match=r"strength is .*; expected a number above 0"):
        Joint(strength=wrong)
    with pytest.raises(ConfigError, match="strength is"):
        fit_joint([[0.0]], [[1]], [[1]], strength=wrong)
