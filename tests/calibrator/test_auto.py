"""The choice of a calibration a head: the truth is found where there are rows for it, and thin heads keep to what all say."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from ovr.calibrator import auto, pooling
from ovr.calibrator.apply import calibrated_logit, interpolated, sigmoid, softplus
from ovr.calibrator.auto import Auto
from ovr.calibrator.beta import Beta
from ovr.calibrator.families import Family
from ovr.calibrator.isotonic import Isotonic
from ovr.calibrator.platt import Platt
from ovr.calibrator.temperature import Temperature
from ovr.metric.calibration import nll
from tests.calibrator.sample import heads


def truth(shape, num_rows, num_heads, seed=0):
    """Return logits and targets of heads whose true probabilities are of one kind."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1.0, 2.5, (num_rows, num_heads))
    return z, rng.random(z.shape) < shape(z)


SHAPES = {
    "temperature": lambda z: sigmoid(0.5 * z),
    "platt": lambda z: sigmoid(0.8 * z - 1.5),
    "beta": lambda z: sigmoid(1.0 - 0.3 * np.logaddexp(0, -z) + 2.5 * np.logaddexp(0, z)),
    "isotonic": lambda z: np.where(z < -1, 0.05, np.where(z < 2, 0.5, 0.9)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_many_rows_find_the_kind_that_is_true(kind):
    z, target = truth(SHAPES[kind], 5000, 6)
    calibrations = Auto().fit(z, target, np.ones_like(target))
    assert [c.kind for c in calibrations].count(kind) >= 5
    assert {c.status for c in calibrations} == {"ok"}
    for c in calibrations:
        assert set(c.details["cv_nll"]) == set(auto.KINDS)
        assert c.details["cv_nll"][kind] <= min(c.details["cv_nll"].values()) + 0.002


def test_unseen_rows_are_likelier_than_with_any_one_kind():
    rng = np.random.default_rng(0)
    scale_K, bias_K = np.exp(rng.normal(-0.4, 0.2, 40)), rng.normal(-1.0, 0.4, 40)
    parts = []
    for num_rows, seed in ((300, 1), (5000, 2)):
        draws = np.random.default_rng(seed)
        z = draws.normal(-2.5, 2.0, (num_rows, 40))
        parts.append((z, draws.random(z.shape) < sigmoid(scale_K * z + bias_K), np.ones(z.shape, dtype=bool)))
    seen, unseen = parts
    found = {
        type(c).__name__: nll(calibrated_logit(unseen[0], c.fit(*seen)), *unseen[1:]).mean()
        for c in (Auto(), Temperature(), Platt(), Beta(), Isotonic())
    }
    assert min(found, key=found.get) == "Auto"


def test_heads_with_few_positives_are_drawn_to_the_pooled_calibration_and_say_so():
    z, target = truth(lambda z: sigmoid(0.5 * z - 1.0), 2000, 12)
    mask = np.ones_like(target)
    mask[15:, 10:] = False  # two heads of 15 rows
    mask[:, 11] = False
    calibrations = Auto().fit(z, target, mask)
    thin, none = calibrations[10], calibrations[11]
    assert {c.status for c in calibrations[:10]} == {"ok"}
    assert (thin.status, none.status) == ("shrunk", "no_rows")
    assert thin.details["own_share"] < 0.5 < min(c.details["own_share"] for c in calibrations[:10])
    assert none.details["own_share"] == pytest.approx(0.0, abs=1e-12)
    assert [none.scale, none.bias] == pytest.approx(none.details["pooled"], abs=1e-6)
    assert [thin.scale, thin.bias] == pytest.approx(none.details["pooled"], abs=0.25)
    assert thin.kind == none.kind == none.details["pooled_kind"] == "platt"


def test_a_head_goes_its_own_share_of_the_way_from_the_pooled_temperature_to_its_own():
    z, target = truth(lambda z: sigmoid(0.5 * z), 40, 100)  # some 14 positives a head
    calibrations = Auto(kinds=["temperature"]).fit(z, target, np.ones_like(target))
    prior = auto._prior(auto.TEMPERATURE, z.T, target.T, np.ones_like(target).T)
    (mean,), precision = prior.mean_P, float(prior.precision_PP[0, 0])
    scale_K = np.array([c.scale for c in calibrations])
    np.testing.assert_allclose(
        (scale_K.sum() + pooling.PRIOR_HEADS) / (100 + pooling.PRIOR_HEADS), mean, atol=0.02
    )  # but for the last rounds
    moved, shares = [], []
    for k, calibration in enumerate(calibrations):

        def loss(scale, k=k):
            return np.logaddexp(0, np.where(target[:, k], -scale, scale) * z[:, k]).sum()

        held = minimize_scalar(lambda s: loss(s) + precision * (s - mean) ** 2 / 2, bounds=(0, 5), method="bounded").x
        assert calibration.scale == pytest.approx(held, abs=1e-4)
        bend = np.gradient(np.gradient([loss(held + d) for d in (-2e-3, -1e-3, 0, 1e-3, 2e-3)], 1e-3), 1e-3)[2]
        assert calibration.details["own_share"] == pytest.approx(bend / (bend + precision), abs=1e-3)
        alone = minimize_scalar(loss, bounds=(0, 5), method="bounded").x
        moved.append((calibration.scale - mean) / (alone - mean))
        shares.append(calibration.details["own_share"])
    assert np.median(moved) == pytest.approx(np.median(shares), abs=0.05)
    assert {c.status for c in calibrations} == {"ok", "shrunk"}


def test_the_pooled_spread_is_that_of_the_heads():
    rng = np.random.default_rng(0)
    scale_K, bias_K = 0.8 + 0.15 * rng.normal(size=100), -1.0 + 0.5 * rng.normal(size=100)
    z = rng.normal(-1.0, 2.0, (1500, 100))
    target = rng.random(z.shape) < sigmoid(scale_K * z + bias_K)
    prior = auto._pooled(["platt"], z, target, np.ones_like(target))["platt"][1]
    np.testing.assert_allclose(prior.mean_P, [0.8, -1.0], atol=0.12)
    np.testing.assert_allclose(np.sqrt(np.diag(np.linalg.inv(prior.precision_PP))), [0.15, 0.5], rtol=0.35)


def test_a_bend_that_all_heads_share_is_found_with_few_rows_of_each():
    def bent(z):
        return sigmoid(np.interp(z, [-20.0, -3.0, 1.0, 20.0], [-7.0, -3.6, 1.2, 3.1]))

    z, target = truth(bent, 400, 40)
    known = np.ones_like(target)
    calibrations = Auto().fit(z, target, known)
    assert [c.details["choice"] for c in calibrations].count("spline") >= 35
    unseen = np.random.default_rng(9).normal(-1.0, 2.5, (2000, 40))
    truly = bent(unseen)
    lost = {
        name: np.mean(softplus(odds) - truly * odds)
        for name, odds in (
            ("auto", calibrated_logit(unseen, calibrations)),
            ("beta", calibrated_logit(unseen, Auto(kinds=["beta"]).fit(z, target, known))),
            ("truth", np.log(truly) - np.log1p(-truly)),
        )
    }
    assert lost["auto"] - lost["truth"] < 0.5 * (lost["beta"] - lost["truth"])


def test_a_spline_is_drawn_by_knots_and_with_one_slope_is_platts():
    spline = Family("spline", 4, intercept=True, cuts=(-4.0, -0.5, 3.0))
    z = np.linspace(-30.0, 30.0, 4001)
    np.testing.assert_allclose(spline.probs(z, np.array([0.7, 0.7, 0.7, 0.7, -1.0])), sigmoid(0.7 * z - 1.0), rtol=1e-12)
    theta = np.array([0.3, 2.0, 0.8, 0.4, -1.5])
    knots, probs = auto._drawn(spline, theta)
    inside = (z > knots[0]) & (z < knots[-1])
    assert len(knots) <= auto.CURVE_KNOTS + 3
    np.testing.assert_allclose(interpolated(z[inside], knots, probs), spline.probs(z[inside], theta), rtol=0.02)
    assert probs[0] < 1e-7
    assert probs[-1] > 1 - 1e-7


def test_only_the_kinds_asked_for_are_taken():
    assert Auto(kinds=["spline", "platt"]).kinds == ("platt", "isotonic")
    z, target = truth(SHAPES["isotonic"], 2000, 3)
    for kinds in (["temperature"], ["platt", "isotonic"], ["beta", "temperature"]):
        calibrations = Auto(kinds=kinds).fit(z, target, np.ones_like(target))
        assert {c.kind for c in calibrations} <= set(kinds) == set(Auto(kinds=kinds).kinds)
        assert all(set(c.details["cv_nll"]) <= set(kinds) for c in calibrations)


def test_isotonic_needs_rows_of_each_class():
    z, target = truth(SHAPES["isotonic"], 3000, 3)
    calibrations = Auto(min_isotonic_rows=2000).fit(z, target, np.ones_like(target))
    assert "isotonic" not in {c.details["choice"] for c in calibrations}
    assert all("isotonic" not in c.details["cv_nll"] for c in calibrations)


def test_the_same_rows_give_the_same_and_blocks_do_not_matter(monkeypatch):
    arrays = heads(num_rows=300, num_heads=7)
    one = Auto().fit(*arrays)
    assert Auto().fit(*arrays) == one
    monkeypatch.setattr(auto, "BLOCK_VALUES", 1)
    # NumPy's loops over a column alone may end in other instructions than those over several: not always the same last bit.
    for mine, whole in zip(Auto().fit(*arrays), one, strict=True):
        assert (mine.kind, mine.status, mine.knot_logits) == (whole.kind, whole.status, whole.knot_logits)
        assert mine.details.keys() == whole.details.keys()
        assert mine.details["cv_nll"] == pytest.approx(whole.details["cv_nll"], rel=1e-12)
        for got, expected in ((mine.scale, whole.scale), (mine.bias, whole.bias), (mine.knot_probs, whole.knot_probs)):
            assert got == pytest.approx(expected, rel=1e-10)


def test_a_prior_from_no_head_is_the_start():
    prior = auto._pooled(["beta"], np.zeros((3, 2)), np.zeros((3, 2), bool), np.zeros((3, 2), bool))["beta"][1]
    np.testing.assert_allclose(prior.mean_P, [1.0, 1.0, 0.0])
    assert prior.precision_PP == pytest.approx(np.eye(3) / pooling.PRIOR_SD**2)
