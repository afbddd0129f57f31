"""Probabilities from logits, against exact arithmetic."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from ovr.calibrator.apply import calibrated_logit, calibrated_prob, scale_and_bias
from ovr.core.artifact import Calibration
from ovr.core.calibrations import Calibrations
from ovr.errors import ArtifactError, DataError

BETA = Calibration("beta", 0.5, -0.25, scale_negative=2.0)
ISOTONIC = Calibration("isotonic", knot_logits=(-2.5, -1.0, -0.984375, 0.25, 7.0), knot_probs=(0.01, 0.01, 0.4, 0.41, 0.99))


def affine(scale_K, bias_K):
    return [Calibration("platt", scale, bias) for scale, bias in zip(scale_K, bias_K, strict=True)]


def exact_sigmoid(value: float) -> float:
    with localcontext() as context:
        context.prec = 60
        return float(1 / (1 + (-Decimal(value)).exp()))


def test_every_logit_gives_its_probability_to_the_last_digits():
    logits = [-700.0, -300.0, -40.0, -1.0, -1e-9, 0.0, 1e-300, 0.3, 17.0, 36.0, 800.0]
    got = calibrated_prob(np.array(logits)[:, None], [Calibration()])[:, 0]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [exact_sigmoid(z) for z in logits], rtol=4e-16)


def test_scale_and_bias_belong_to_their_head():
    got = calibrated_prob(np.array([[2.0, -3.0]], dtype=np.float32), affine([0.5, 2.0], [0.25, -1.0]))
    np.testing.assert_allclose(got, [[exact_sigmoid(1.25), exact_sigmoid(-7.0)]], rtol=4e-16)


def test_extreme_logits_and_scales_saturate_without_a_warning():
    got = calibrated_prob([[1e308, -1e308, 3e38, -3e38]], affine([100.0] * 4, [0.0] * 4))
    np.testing.assert_array_equal(got, [[1.0, 0.0, 1.0, 0.0]])


@pytest.mark.parametrize("calibration", [Calibration("platt", 1.3, 0.1), BETA, ISOTONIC])
def test_a_higher_logit_never_has_a_lower_probability(calibration):
    logit_N = np.sort(np.random.default_rng(0).normal(size=5000) * 30)
    assert np.all(np.diff(calibrated_prob(logit_N[:, None], [calibration])[:, 0]) >= 0)


def test_one_calibration_a_head_becomes_two_arrays():
    scale_K, bias_K = scale_and_bias([Calibration(scale=0.5), Calibration(scale=2.0, bias=-1.0)])
    np.testing.assert_array_equal(scale_K, [0.5, 2.0])
    np.testing.assert_array_equal(bias_K, [0.0, -1.0])


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="logit of row 0, head column 1 is nan"):
        calibrated_prob([[1.0, np.nan]], affine([1.0, 1.0], [0.0, 0.0]))


def test_one_finite_calibration_a_head_is_demanded():
    with pytest.raises(DataError, match="1 calibrations for 2 heads; expected one a head"):
        calibrated_prob([[1.0, 2.0]], [Calibration()])
    with pytest.raises(DataError, match="bias of head column 1 is not finite"):
        calibrated_prob([[1.0, 2.0]], affine([1.0, 1.0], [0.0, np.inf]))
    with pytest.raises(DataError, match="scale_negative of head column 0 is not finite"):
        calibrated_logit([[1.0]], [Calibration("beta", scale_negative=np.nan)])


def test_beta_is_the_formula_of_its_paper():
    logits = [-300.0, -40.0, -1.0, 0.0, 0.3, 17.0, 36.0]
    got = calibrated_prob(np.array(logits)[:, None], [BETA])[:, 0]

    def exact(value):
        with localcontext() as context:
            context.prec = 200
            p = 1 / (1 + (-Decimal(value)).exp())
            odds = p ** Decimal("0.5") / (1 - p) ** Decimal("2.0") * Decimal("-0.25").exp()
            return float(odds / (1 + odds))

    np.testing.assert_allclose(got, [exact(z) for z in logits], rtol=1e-13)


def test_beta_with_equal_scales_is_platt():
    logit_NK = np.random.default_rng(0).normal(size=(500, 1)) * 20
    beta = calibrated_logit(logit_NK, [Calibration("beta", 0.7, -1.1, scale_negative=0.7)])
    np.testing.assert_allclose(beta, calibrated_logit(logit_NK, affine([0.7], [-1.1])), rtol=1e-12, atol=1e-12)


def test_isotonic_is_straight_between_its_knots_and_constant_outside():
    logit_N = np.concatenate([np.random.default_rng(0).normal(size=500) * 3, ISOTONIC.knot_logits, [-1e308, 1e308]])
    got = calibrated_prob(logit_N[:, None], [ISOTONIC])[:, 0]
    np.testing.assert_allclose(got, np.interp(logit_N, ISOTONIC.knot_logits, ISOTONIC.knot_probs), rtol=1e-12)
    np.testing.assert_array_equal(got[500:], [*ISOTONIC.knot_probs, ISOTONIC.knot_probs[0], ISOTONIC.knot_probs[-1]])
    one = Calibration("isotonic", knot_logits=(3.0,), knot_probs=(0.25,))
    np.testing.assert_array_equal(calibrated_prob([[-9.0], [3.0], [9.0]], [one]), [[0.25]] * 3)


def test_heads_of_all_kinds_side_by_side_are_each_as_alone():
    calibrations = [ISOTONIC, Calibration(scale=0.5), BETA, Calibration("identity"), Calibration("platt", 2.0, -1.0), ISOTONIC]
    logit_NK = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) * 4
    for function in (calibrated_prob, calibrated_logit):
        together = function(logit_NK, calibrations)
        np.testing.assert_array_equal(function(logit_NK, Calibrations.of(calibrations)), together)
        for k in range(6):
            np.testing.assert_array_equal(function(logit_NK[:, k : k + 1], calibrations[k : k + 1])[:, 0], together[:, k])


def test_log_odds_are_those_of_the_probabilities_and_stay_finite():
    calibrations = [ISOTONIC, BETA, Calibration(scale=2.0)]
    logit_NK = np.repeat(np.linspace(-20, 15, 50)[:, None], 3, axis=1)
    prob_NK = calibrated_prob(logit_NK, calibrations)
    np.testing.assert_allclose(calibrated_logit(logit_NK, calibrations), np.log(prob_NK / (1 - prob_NK)), rtol=1e-3)
    steep = [ISOTONIC, Calibration("beta", 9.0, scale_negative=9.0), Calibration(scale=9.0)]
    extreme_NK = calibrated_logit([[1e308] * 3, [-1e308] * 3], steep)
    assert np.isfinite(extreme_NK).all()


def test_what_takes_a_scale_and_a_bias_refuses_others():
    with pytest.raises(ArtifactError, match="calibrations only; that of head column 1 is beta"):
        scale_and_bias([Calibration(), BETA])
