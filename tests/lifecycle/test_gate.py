import numpy as np
import pytest

from ovr.core.taxonomy import ClassSpec
from ovr.errors import ConfigError, GateError
from ovr.lifecycle.gate import Check, Gate, Judged, check_passed

SPEC, CRITICAL = ClassSpec("a"), ClassSpec("b", critical=True)


def rows(num_rows=2000, sharpness=2.0, seed=0):
    """Probabilities that are right, and labels drawn by them."""
    rng = np.random.default_rng(seed)
    prob_N = 1 / (1 + np.exp(-sharpness * rng.normal(size=num_rows)))
    return prob_N, rng.random(num_rows) < prob_N, np.ones(num_rows, np.bool_)


def judged(gate, spec, prob_N, target_N, mask_N, replaced=None):
    found = gate.judge(spec, prob_N, target_N, mask_N, threshold=0.5, replaced=replaced)
    return {check.name: check.passed for check in found.checks}, found


def test_a_calibrated_head_passes_and_one_that_is_not_is_told_by_its_error():
    prob_N, target_N, mask_N = rows()
    passed, found = judged(Gate(), SPEC, prob_N, target_N, mask_N)
    assert passed == {"counts": True, "calibration": True}
    assert found.passed
    passed, found = judged(Gate(), SPEC, prob_N**3, target_N, mask_N)
    assert passed == {"counts": True, "calibration": False}
    assert "fail (ECE 0." in str(found)
    assert not found.passed


def test_too_few_rows_are_too_few():
    prob_N, target_N, mask_N = rows(40)
    mask_N = ~target_N | (np.cumsum(target_N) <= 4)
    passed, found = judged(Gate(), SPEC, prob_N, target_N, mask_N)
    assert passed["counts"] is False
    assert "4 rows of the class and" in str(found)
    assert judged(Gate(min_positives=4), SPEC, prob_N, target_N, mask_N)[0]["counts"] is True


def test_rows_that_cannot_decide_pass_a_plain_class_and_fail_a_critical_one():
    prob_N, target_N, mask_N = rows(60)
    critical = {"undecided": "fail"}
    assert judged(Gate(), SPEC, prob_N, target_N, mask_N)[0]["calibration"] is True
    assert judged(Gate(critical=critical), SPEC, prob_N, target_N, mask_N)[0]["calibration"] is True
    assert judged(Gate(critical=critical), CRITICAL, prob_N, target_N, mask_N)[0]["calibration"] is False


def test_a_head_that_is_shown_to_be_worse_fails_and_one_that_may_be_fails_a_critical_class():
    prob_N, target_N, mask_N = rows(600)
    worse_N = 1 / (1 + np.exp(-np.random.default_rng(1).normal(size=600)))
    gate = Gate(max_ece=1.0, critical={"worse": "excluded"})
    old = (prob_N, mask_N, 0.5)
    assert judged(gate, SPEC, worse_N, target_N, mask_N, old)[0]["not worse"] is False
    assert judged(gate, SPEC, prob_N, target_N, mask_N, (worse_N, mask_N, 0.5))[0]["not worse"] is True
    few = slice(0, 40)  # too few to show anything
    nearly_N = np.clip(prob_N + np.random.default_rng(2).normal(size=600) * 0.1, 0.001, 0.999)
    pair = (nearly_N[few], target_N[few], mask_N[few], (prob_N[few], mask_N[few], 0.5))
    assert judged(gate, SPEC, *pair)[0]["not worse"] is True
    assert judged(gate, CRITICAL, *pair)[0]["not worse"] is False
    assert judged(gate, CRITICAL, prob_N, target_N, mask_N, old)[0]["not worse"] is True  # the same, exactly


def test_only_rows_that_the_version_before_did_not_see_count():
    prob_N, target_N, mask_N = rows(600)
    cheat_N = np.where(target_N, 0.999, 0.001)
    gate = Gate(critical={"worse": "excluded"})
    assert judged(gate, SPEC, prob_N, target_N, mask_N, (cheat_N, mask_N, 0.5))[0]["not worse"] is False
    passed, found = judged(gate, SPEC, prob_N, target_N, mask_N, (cheat_N, ~mask_N, 0.5))
    assert passed["not worse"] is True
    assert "cannot be compared" in found.checks[-1].said
    assert judged(gate, CRITICAL, prob_N, target_N, mask_N, (cheat_N, ~mask_N, 0.5))[0]["not worse"] is False


def test_refused_heads_are_named_and_force_lets_them_in():
    bad, good = Judged("a", (Check("counts", False, "3 rows"),)), Judged("b", (Check("counts", True, "30 rows"),))
    with pytest.raises(GateError, match=r"refuses 1 of 2 heads: 'a': counts: 3 rows. force=true"):
        check_passed([bad, good], force=False)
    assert check_passed([bad, good], force=True) == ["a"]
    assert check_passed([good], force=False) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"undecided": "maybe"}, "undecided is 'maybe'"),
        ({"worse": "no"}, "worse is 'no'"),
        ({"min_positives": -1}, "min_positives is -1"),
        ({"max_ece": 0}, "max_ece is 0"),
        ({"margin": 2}, "margin is 2"),
        ({"critical": {"confidence": 0}}, "confidence is 0"),
        ({"other": 1}, "policy cannot be used: .*other"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Gate(**settings)
