import numpy as np
import pytest
from scipy.optimize import minimize

from ovr.calibrator.apply import calibrated_prob
from ovr.calibrator.cohort import CohortCalibrator, cohort_prob, fit_cohorts
from ovr.core.artifact import Calibration
from ovr.core.calibrations import cohort_calibrations
from ovr.errors import ArtifactError, ConfigError, DataError

POOLED = [Calibration("temperature", 0.8), Calibration("platt", 1.5, 0.3)]


def rows_of(rng, num_rows, *, scale=(1.0, 1.0), bias=(0.0, 0.0)):
    """Return logits of two heads and labels whose calibrated log odds are scale * x + bias, x the pooled ones."""
    z_NK = rng.normal(-1, 2, size=(num_rows, 2))
    x_NK = z_NK * [c.scale for c in POOLED] + [c.bias for c in POOLED]
    return z_NK, rng.random((num_rows, 2)) < 1 / (1 + np.exp(-(np.array(scale) * x_NK + np.array(bias))))


@pytest.fixture
def sample(rng):
    """A large cohort that is off, a small one that is off, one too small, and rows without a cohort."""
    parts = [
        rows_of(rng, 3000, scale=(0.5, 2.0), bias=(1.0, -0.7)),
        rows_of(rng, 120, scale=(0.5, 2.0), bias=(1.0, -0.7)),
        rows_of(rng, 12),
        rows_of(rng, 50),
    ]
    logit_NK, target_NK = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    cohort_N = np.repeat(["large", "small", "tiny", ""], [len(z) for z, _ in parts])
    mask_NK = rng.random(target_NK.shape) < 0.9
    return logit_NK, target_NK, mask_NK, cohort_N


@pytest.mark.parametrize("strength", [0.5, 5.0, 200.0])
def test_each_cohort_is_at_the_optimum_of_its_own_rows_and_the_prior(sample, strength):
    logit_NK, target_NK, mask_NK, cohort_N = sample
    fit = fit_cohorts(*sample, POOLED, min_positives=10, prior_strength=strength)
    assert fit.names == ("large", "small", "tiny")
    for c, name in enumerate(("large", "small")):
        for k, pooled in enumerate(POOLED):
            rows = (cohort_N == name) & mask_NK[:, k]
            x, y = pooled.scale * logit_NK[rows, k] + pooled.bias, target_NK[rows, k]

            def loss(parameters, x=x, y=y):
                log_a, d = parameters
                nll = np.logaddexp(0, np.where(y, -1, 1) * (np.exp(log_a) * x + d)).sum()
                return nll + strength * (np.exp(log_a) - 1 - log_a + d**2 / 2)

            best = minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-6})
            a, d = np.exp(best.x[0]), best.x[1]
            np.testing.assert_allclose(fit.scale_CK[c, k], a * pooled.scale, rtol=1e-4)
            np.testing.assert_allclose(fit.bias_CK[c, k], a * pooled.bias + d, atol=1e-4)
            assert fit.num_rows_CK[c, k] == rows.sum()
            assert fit.num_positives_CK[c, k] == y.sum()
            assert loss([np.log(a), d]) <= loss([0.0, 0.0])


def test_a_large_cohort_finds_its_truth_and_a_small_one_is_shrunk(sample):
    fit = fit_cohorts(*sample, POOLED)
    true_K = np.array([0.5, 2.0])
    np.testing.assert_allclose(fit.scale_CK[0], true_K * [c.scale for c in POOLED], rtol=0.12)
    heavy = fit_cohorts(*sample, POOLED, prior_strength=1e9)
    np.testing.assert_allclose(heavy.scale_CK, np.tile([c.scale for c in POOLED], (3, 1)), rtol=1e-5)
    np.testing.assert_allclose(heavy.bias_CK, np.tile([c.bias for c in POOLED], (3, 1)), atol=1e-5)


def test_below_the_least_positives_or_negatives_the_pooled_calibration_stands(sample):
    fit = fit_cohorts(*sample, POOLED, min_positives=20)
    assert fit.fitted_CK.tolist() == [[True, True], [True, True], [False, False]]
    assert fit.scale_CK[2].tolist() == [c.scale for c in POOLED]
    assert fit.bias_CK[2].tolist() == [c.bias for c in POOLED]
    cohorts = CohortCalibrator(column="shop", min_positives=20).joined([fit])
    assert cohorts.names == ("large", "small")
    assert cohorts.status == (("ok", "ok"), ("ok", "ok"))


def test_a_head_does_not_depend_on_the_heads_beside_it(sample):
    logit_NK, target_NK, mask_NK, cohort_N = sample
    both = fit_cohorts(*sample, POOLED)
    for k in (0, 1):
        alone = fit_cohorts(logit_NK[:, [k]], target_NK[:, [k]], mask_NK[:, [k]], cohort_N, [POOLED[k]])
        np.testing.assert_allclose(alone.scale_CK[:, 0], both.scale_CK[:, k], rtol=1e-6)
        np.testing.assert_allclose(alone.bias_CK[:, 0], both.bias_CK[:, k], atol=1e-6)


def test_large_logits_and_separable_cohorts_end_somewhere_finite(rng):
    z_N1 = rng.normal(size=(400, 1)) * 1e4
    fit = fit_cohorts(z_N1, z_N1 > 0, np.ones((400, 1), bool), np.repeat(["a", "b"], 200), POOLED[:1])
    assert fit.fitted_CK.all()
    assert np.isfinite(fit.scale_CK).all()
    assert (fit.scale_CK > 0).all()


def test_blocks_of_heads_are_joined_and_applied_row_by_row(sample):
    logit_NK, target_NK, mask_NK, cohort_N = sample
    calibrator = CohortCalibrator(column="shop")
    blocks = [slice(0, 1), slice(1, 2)]
    parts = [calibrator.fit(logit_NK[:, b], target_NK[:, b], mask_NK[:, b], cohort_N, POOLED[b]) for b in blocks]
    cohorts = calibrator.joined(parts)
    number_N = cohorts.numbers(cohort_N)
    prob_NK = cohort_prob(logit_NK, POOLED, cohorts, number_N)
    for number in (1, 2):
        own = cohort_calibrations(cohorts, number - 1)
        rows = number_N == number
        assert (prob_NK[rows] == calibrated_prob(logit_NK[rows], own)).all()
        assert (cohort_prob(logit_NK[:, 1:], POOLED[1:], cohorts, number_N, columns=blocks[1]) == prob_NK[:, 1:]).all()
    assert (prob_NK[number_N == 0] == calibrated_prob(logit_NK[number_N == 0], POOLED)).all()
    assert (cohort_prob(logit_NK, POOLED, None, None) == calibrated_prob(logit_NK, POOLED)).all()


def test_what_cannot_be_fitted_is_refused(sample):
    with pytest.raises(DataError, match=r"got cohorts \(3,\) for 3182 rows; expected one a row"):
        fit_cohorts(*sample[:3], sample[3][:3], POOLED)
    isotonic = Calibration("isotonic", knot_logits=(0.0, 1.0), knot_probs=(0.2, 0.8))
    with pytest.raises(
        ArtifactError, match=r"cohorts are fitted beside an affine calibration: .*isotonic.*choose another calibrator"
    ):
        fit_cohorts(*sample, [POOLED[0], isotonic])
    calibrator = CohortCalibrator(column="shop", min_positives=9999)
    fit = calibrator.fit(*sample, POOLED)
    with pytest.raises(DataError, match="none of the 3 cohorts of column 'shop' has 9999 positive and as many negative"):
        calibrator.joined([fit])
    for settings, message in (
        ({"column": 3}, r"cohort\.column is 3"),
        ({"column": "a", "min_positives": 0}, r"cohort\.min_positives is 0"),
        ({"column": "a", "prior_strength": 0.0}, r"cohort\.prior_strength is 0\.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            CohortCalibrator(**settings)
