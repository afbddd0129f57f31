"""Probabilities from logits, against exact arithmetic."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from ovr.calibrator.apply import calibrated_prob, scale_and_bias
from ovr.core.artifact import Calibration
from ovr.errors import DataError


def exact_sigmoid(value: float) -> float:
    with localcontext() as context:
        context.prec = 60
        return float(1 / (1 + (-Decimal(value)).exp()))


def test_every_logit_gives_its_probability_to_the_last_digits():
    logits = [-700.0, -300.0, -40.0, -1.0, -1e-9, 0.0, 1e-300, 0.3, 17.0, 36.0, 800.0]
    got = calibrated_prob(np.array(logits)[:, None], [1.0], [0.0])[:, 0]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [exact_sigmoid(z) for z in logits], rtol=4e-16)


def test_scale_and_bias_belong_to_their_head():
    got = calibrated_prob(np.array([[2.0, -3.0]], dtype=np.float32), [0.5, 2.0], [0.25, -1.0])
    np.testing.assert_allclose(got, [[exact_sigmoid(1.25), exact_sigmoid(-7.0)]], rtol=4e-16)


def test_extreme_logits_and_scales_saturate_without_a_warning():
    got = calibrated_prob([[1e308, -1e308, 3e38, -3e38]], [100.0] * 4, [0.0] * 4)
    np.testing.assert_array_equal(got, [[1.0, 0.0, 1.0, 0.0]])


def test_a_higher_logit_never_has_a_lower_probability():
    logit_N = np.sort(np.random.default_rng(0).normal(size=5000) * 30)
    assert np.all(np.diff(calibrated_prob(logit_N[:, None], [1.3], [0.1])[:, 0]) >= 0)


def test_one_calibration_a_head_becomes_two_arrays():
    scale_K, bias_K = scale_and_bias([Calibration(scale=0.5), Calibration(scale=2.0, bias=-1.0)])
    np.testing.assert_array_equal(scale_K, [0.5, 2.0])
    np.testing.assert_array_equal(bias_K, [0.0, -1.0])


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="logit of row 0, head column 1 is nan"):
        calibrated_prob([[1.0, np.nan]], [1.0, 1.0], [0.0, 0.0])


def test_one_scale_and_bias_a_head_is_demanded():
    with pytest.raises(DataError, match=r"scale has shape \(1,\); expected \(2,\), one a head"):
        calibrated_prob([[1.0, 2.0]], [1.0], [0.0, 0.0])
    with pytest.raises(DataError, match="bias of head column 1 is not finite"):
        calibrated_prob([[1.0, 2.0]], [1.0, 1.0], [0.0, np.inf])
