"""What every calibrator promises, whatever heads it is given."""

import numpy as np
import pytest

from ovr.calibrator.apply import calibrated_logit, calibrated_prob
from ovr.calibrator.auto import Auto
from ovr.calibrator.beta import Beta
from ovr.calibrator.identity import Identity
from ovr.calibrator.isotonic import Isotonic
from ovr.calibrator.platt import Platt
from ovr.calibrator.temperature import Temperature
from ovr.core.artifact import Calibration
from ovr.errors import ConfigError, DataError
from tests.calibrator.sample import heads, odd_heads

ALL = [Identity(), Temperature(), Platt(), Beta(), Isotonic(), Auto()]
ALONE = ALL[:-1]  # auto pools heads
named = pytest.mark.parametrize("calibrator", ALL, ids=lambda c: type(c).__name__)


@named
def test_odd_heads_get_a_status_and_a_rising_map_of_finite_likelihood(calibrator):
    names, arrays = odd_heads()
    calibrations = dict(zip(names, calibrator.fit(*arrays), strict=True))
    assert [calibrations[name].status for name in ("no_rows", "one_class", "all_positive", "one_row")] == [
        "no_rows", "one_class", "one_class", "one_class",
    ]  # fmt: skip
    if not isinstance(calibrator, Identity | Temperature):
        assert calibrations["separable"].status == "separable"
        assert calibrations["falling"].status == "not_increasing"
        assert calibrations["constant"].status == "not_increasing"
    assert [(c.num_rows, c.num_positives) for c in calibrations.values()] == [
        (int(mask.sum()), int((target & mask).sum())) for target, mask in zip(arrays[1].T, arrays[2].T, strict=True)
    ]
    assert {c.kind for c in calibrations.values()} <= set(calibrator.kinds)
    z_NK = np.repeat(np.sort(np.append(np.linspace(-30, 30, 500), [-3e38, 3e38]))[:, None], len(names), axis=1)
    assert np.diff(calibrated_prob(z_NK, list(calibrations.values())), axis=0).min() >= 0
    assert np.isfinite(calibrated_logit(z_NK, list(calibrations.values()))).all()


@pytest.mark.parametrize("calibrator", ALONE, ids=lambda c: type(c).__name__)
def test_a_head_ignores_the_other_heads(calibrator):
    arrays = heads(num_heads=3)
    together = calibrator.fit(*arrays)
    assert [calibrator.fit(*(a[:, k : k + 1] for a in arrays))[0] for k in range(3)] == together


@named
def test_what_is_not_known_is_not_looked_at(calibrator):
    logit_NK, target_NK, mask_NK = heads()
    moved_NK = np.where(mask_NK, logit_NK, 7.0)
    assert calibrator.fit(moved_NK, target_NK ^ ~mask_NK, mask_NK) == calibrator.fit(logit_NK, target_NK, mask_NK)


@named
def test_the_order_of_blocks_and_of_memory_does_not_matter(calibrator):
    arrays = heads(num_rows=50, num_heads=6)
    assert calibrator.fit(*(np.asfortranarray(a) for a in arrays)) == calibrator.fit(*arrays)


@named
def test_no_rows_at_all_are_no_error(calibrator):
    calibrations = calibrator.fit(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2)))
    assert [c.status for c in calibrations] == ["no_rows"] * 2
    assert np.allclose(calibrated_prob([[0.3, -2.0]], calibrations), calibrated_prob([[0.3, -2.0]], [Calibration()] * 2))


@named
def test_logits_that_are_not_finite_are_refused(calibrator):
    with pytest.raises(DataError, match="logit of row 0, head column 1 is nan"):
        calibrator.fit([[0.0, np.nan]], [[0, 1]], [[1, 1]])


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Platt(min_scale=0.0), "scale bounds are 0.0 and 20.0; expected 0 < min_scale <= 1"),
    (lambda: Beta(max_scale=0.5), "scale bounds are 0.05 and 0.5"),
    (lambda: Isotonic(boundary_rows=0.0), "boundary_rows is 0.0; expected a number above 0"),
    (lambda: Auto(boundary_rows=-1.0), "boundary_rows is -1.0; expected a number above 0"),
    (lambda: Auto(folds=1), "folds is 1; expected 2 or more"),
    (lambda: Auto(standard_errors=-0.5), "standard_errors is -0.5; expected 0 or more"),
    (lambda: Auto(seed=-1), "seed is -1; expected 0 or more"),
    (lambda: Auto(kinds=["isotonic"]), r"kinds are \['isotonic'\]; expected some of temperature, platt"),
    (lambda: Auto(kinds=["platt", "tree"]), "kinds are .*tree.*; expected some of"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
