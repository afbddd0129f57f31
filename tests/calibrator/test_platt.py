"""Platt's and beta calibration, against scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy.optimize import minimize

from ovr.calibrator import logistic
from ovr.calibrator.apply import calibrated_prob, sigmoid
from ovr.calibrator.beta import Beta
from ovr.calibrator.families import BETA, PLATT, smoothed
from ovr.calibrator.logistic import Prior, fit_logistic
from ovr.calibrator.platt import Platt
from tests.calibrator.sample import heads


def loss(theta, features, target_N, prior=None):
    eta = sum(t * x for t, x in zip(theta, features, strict=False)) + theta[-1]
    off = 0.0 if prior is None else theta - prior.mean_P
    penalty = 0.0 if prior is None else 0.5 * off @ prior.precision_PP @ off
    return np.sum(np.logaddexp(0.0, eta) - target_N * eta) + penalty


def best(features, target_N, family, prior=None):
    bounds = list(zip(family.lower_P, family.upper_P, strict=True))
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000}
    return minimize(loss, family.identity_P, (features, target_N, prior), "L-BFGS-B", bounds=bounds, options=options)


def test_platt_is_scikit_learns():
    sigmoids = pytest.importorskip("sklearn.calibration")
    logit_NK, target_NK, mask_NK = heads()
    logit_NK[:, 1] *= 100
    for k, ours in enumerate(Platt().fit(logit_NK, target_NK, mask_NK)):
        known = mask_NK[:, k]
        theirs = sigmoids._SigmoidCalibration().fit(logit_NK[known, k].astype(np.float64), target_NK[known, k])
        if k != 1:  # their scale is far below our bound there
            assert (ours.scale, ours.bias) == (pytest.approx(-theirs.a_, rel=1e-5), pytest.approx(-theirs.b_, rel=1e-5))
        assert ours.status == ("at_bound" if k == 1 else "ok")


@pytest.mark.parametrize(("calibrator", "family"), [(Platt(), PLATT), (Beta(), BETA)])
@pytest.mark.parametrize("scale", [0.5, 0.01, 30.0])
def test_no_other_parameters_are_likelier(calibrator, family, scale):
    logit_NK, target_NK, mask_NK = heads(num_rows=300, num_heads=2, scale=scale, known=1.0)
    for k, ours in enumerate(calibrator.fit(logit_NK, target_NK, mask_NK)):
        features = [x[0] for x in family.features(logit_NK[:, k][None])]
        target_N = smoothed(target_NK[:, k][None], np.array([300]), np.array([target_NK[:, k].sum()]))[0]
        theta = [ours.scale, *([] if family is PLATT else [ours.scale_negative]), ours.bias]
        assert loss(np.array(theta), features, target_N) <= best(features, target_N, family).fun + 1e-6


def test_beta_has_two_scales_where_two_are_true():
    rng = np.random.default_rng(0)
    logit_N = rng.normal(0, 3, 200_000)
    true_N = sigmoid(0.4 - 0.5 * np.logaddexp(0, -logit_N) + 1.5 * np.logaddexp(0, logit_N))
    (ours,) = Beta().fit(logit_N[:, None], (rng.random(200_000) < true_N)[:, None], np.ones((200_000, 1)))
    assert (ours.scale, ours.scale_negative, ours.bias) == pytest.approx((0.5, 1.5, 0.4), abs=0.05)
    assert np.abs(calibrated_prob(logit_N[:, None], [ours])[:, 0] - true_N).max() < 0.02


def test_smoothed_targets_are_those_of_the_paper():
    got = smoothed(np.array([[True, False, False]]), np.array([3]), np.array([1]))
    np.testing.assert_allclose(got, [[2 / 3, 1 / 4, 1 / 4]])


def test_a_prior_counts_as_written():
    rng = np.random.default_rng(3)
    logit_CN = rng.normal(size=(3, 50)) * np.array([[1.0], [5.0], [40.0]])
    target_CN = (rng.random(logit_CN.shape) < sigmoid(2 * logit_CN)).astype(np.float64)
    prior = Prior(np.array([0.7, -1.0]), np.array([[4.0, 1.0], [1.0, 2.0]]))
    start = np.array([[20.0, 50.0], [0.05, -50.0], [1.0, 0.0]])  # far off: steps must be halved
    arguments = {"lower_P": PLATT.lower_P, "upper_P": PLATT.upper_P, "prior": prior}
    fit = fit_logistic([logit_CN], target_CN, np.ones_like(logit_CN), start_CP=start, **arguments)
    for c in range(3):
        theirs = best([logit_CN[c]], target_CN[c], PLATT, prior)
        np.testing.assert_allclose(fit.theta_CP[c], theirs.x, rtol=1e-4, atol=1e-4)
        assert loss(fit.theta_CP[c], [logit_CN[c]], target_CN[c], prior) <= theirs.fun + 1e-9


def test_the_size_of_a_block_does_not_matter(monkeypatch):
    arrays = heads(num_heads=5)
    whole = Beta().fit(*arrays)
    monkeypatch.setattr(logistic, "BLOCK_VALUES", 1)
    assert Beta().fit(*arrays) == whole
