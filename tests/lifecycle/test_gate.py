from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf
from sklearn.metrics import average_precision_score

from ovr.cli.conf import conf_dir
from ovr.core.taxonomy import ClassSpec
from ovr.errors import ConfigError, GateError
from ovr.lifecycle.gate import Check, Gate, Judged, Needed, check_passed, distinct
from ovr.lifecycle.gate_policy import CRITICAL as CRITICAL_POLICY
from ovr.lifecycle.gate_policy import DEFAULT

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
    assert "4 different rows of the class and" in str(found)
    assert judged(Gate(min_positives=4), SPEC, prob_N, target_N, mask_N)[0]["counts"] is True


def test_rows_that_cannot_decide_pass_a_plain_class_and_fail_a_critical_one():
    prob_N, target_N, mask_N = rows(60)
    critical = {"undecided": "fail"}
    assert judged(Gate(), SPEC, prob_N, target_N, mask_N)[0]["calibration"] is True
    assert judged(Gate(critical=critical), SPEC, prob_N, target_N, mask_N)[0]["calibration"] is True
    assert judged(Gate(critical=critical), CRITICAL, prob_N, target_N, mask_N)[0]["calibration"] is False


def noisy(prob_N, size, seed=4):
    """The same probabilities less well known."""
    logit_N = np.log(prob_N) - np.log1p(-prob_N)
    return 1 / (1 + np.exp(-logit_N - size * np.random.default_rng(seed).normal(size=len(prob_N))))


def test_a_head_that_is_shown_to_be_worse_fails_and_one_that_is_shown_not_to_be_passes():
    prob_N, target_N, mask_N = rows(600)
    worse_N = 1 / (1 + np.exp(-np.random.default_rng(1).normal(size=600)))
    gate = Gate(max_ece=1.0, worse="not_shown", critical={"worse": "excluded"})
    for spec in (SPEC, CRITICAL):
        passed, found = judged(gate, spec, worse_N, target_N, mask_N, (prob_N, mask_N, 0.5))
        assert passed["not worse"] is False
        assert found.checks[-1].said.startswith("worse than the version before on ")
        passed, found = judged(gate, spec, prob_N, target_N, mask_N, (prob_N, mask_N, 0.5))
        assert passed["not worse"] is True
        assert found.checks[-1].said.startswith("at most 0.02 worse than")
        assert judged(gate, spec, prob_N, target_N, mask_N, (worse_N, mask_N, 0.5))[0]["not worse"] is True


def test_the_policy_says_what_happens_where_rows_do_not_decide():
    prob_N, target_N, mask_N = (value[:40] for value in rows(600))
    nearly_N = noisy(prob_N, 1.0)
    assert average_precision_score(target_N, nearly_N) < average_precision_score(target_N, prob_N) - 0.02
    found = {}
    for worse in ("excluded", "estimate", "not_shown"):
        gate = Gate(max_ece=1.0, worse=worse)
        for name, new_N, old_N in (("less", nearly_N, prob_N), ("more", prob_N, nearly_N)):
            passed, said = judged(gate, SPEC, new_N, target_N, mask_N, (old_N, mask_N, 0.5))
            found[worse, name] = passed["not worse"]
            assert said.to_json()["undecided"] == ["not worse"]
        assert (
            "undecided whether at most 0.02 worse than"
            in judged(gate, SPEC, nearly_N, target_N, mask_N, (prob_N, mask_N, 0.5))[1].checks[-1].said
        )
    assert found == {
        ("excluded", "less"): False,
        ("excluded", "more"): False,
        ("estimate", "less"): False,
        ("estimate", "more"): True,
        ("not_shown", "less"): True,
        ("not_shown", "more"): True,
    }


def test_only_rows_that_neither_version_saw_are_compared_and_few_of_them_decide_nothing():
    prob_N, target_N, mask_N = rows(600)
    cheat_N = np.where(target_N, 0.999, 0.001)
    gate = Gate(critical={"worse": "excluded"})
    assert judged(gate, SPEC, prob_N, target_N, mask_N, (cheat_N, mask_N, 0.5))[0]["not worse"] is False
    for num_positives in (0, 1, 9):
        fair_N = ~target_N | (np.cumsum(target_N) <= num_positives)
        for old_N in (cheat_N, prob_N):  # one positive row, on which the heads agree, would show nothing
            for spec in (SPEC, CRITICAL):
                passed, found = judged(gate, spec, prob_N, target_N, mask_N, (old_N, fair_N, 0.5))
                assert passed == {"counts": True, "calibration": True, "not worse": False}
                assert f"there are {num_positives} rows of the class and" in found.checks[-1].said
        assert judged(Gate(worse="not_shown"), SPEC, prob_N, target_N, mask_N, (cheat_N, fair_N, 0.5))[0]["not worse"] is True


def test_rows_of_others_that_the_version_before_has_seen_count_where_others_are_too_few_and_never_for_critical_classes():
    prob_N, target_N, mask_N = rows(600)
    worse_N = noisy(prob_N, 1.0)
    gate = Gate(max_ece=1.0, critical={"worse": "excluded"})
    num_seen = int((~target_N).sum())
    for fair_N, of in (
        (target_N, f"0 of others that neither version has seen, and {num_seen} of others that the version before has seen"),
        (mask_N, f"{num_seen} of others that neither version has seen: "),
    ):
        passed, found = judged(gate, SPEC, prob_N, target_N, mask_N, (worse_N, fair_N, 0.5))
        assert passed["not worse"] is True
        assert of in found.checks[-1].said
    passed, found = judged(gate, SPEC, worse_N, target_N, mask_N, (prob_N, target_N, 0.5))
    assert passed["not worse"] is False
    passed, found = judged(gate, CRITICAL, prob_N, target_N, mask_N, (worse_N, target_N, 0.5))
    assert passed["not worse"] is False
    assert "0 of others that neither version has seen; to compare" in found.checks[-1].said
    assert found.checks[-1].needed == Needed(10, 10)
    passed, found = judged(gate, SPEC, prob_N, target_N, mask_N, (worse_N, ~target_N, 0.5))  # rows of the class never
    assert passed["not worse"] is False
    assert "there are 0 rows of the class" in found.checks[-1].said


def test_copies_of_rows_are_told_and_the_first_of_each_counts():
    group_N = np.array([7, 7, 7, 8, 8, 9, 7])
    target_N = np.array([1, 1, 1, 0, 0, 0, 0], np.bool_)
    mask_N = np.array([0, 1, 1, 1, 1, 1, 1], np.bool_)
    np.testing.assert_array_equal(distinct(group_N, target_N, mask_N), [0, 1, 0, 1, 0, 1, 1])


def test_a_verdict_tells_the_policy_and_where_it_asks_less_than_the_default():
    prob_N, target_N, mask_N = rows(200)
    said = Gate(min_positives=1, worse="not_shown", confidence=0.5, min_negatives=30).judge(
        SPEC, prob_N, target_N, mask_N, threshold=0.5
    )
    assert said.to_json()["policy"] | {"min_positives": 1, "worse": "not_shown", "confidence": 0.5} == said.to_json()["policy"]
    assert set(said.to_json()["looser_than_default"]) == {"min_positives", "worse", "confidence"}
    shipped = OmegaConf.to_container(OmegaConf.load(conf_dir() / "gate/default.yaml"))
    gate = Gate(**{name: value for name, value in shipped.items() if name != "_target_"})
    assert (gate.policy, gate.critical) == (DEFAULT, CRITICAL_POLICY)
    own = replace(CRITICAL, max_ece=0.5)
    assert gate.judge(own, prob_N, target_N, mask_N, threshold=0.5).looser == ("max_ece",)
    assert Gate().judge(CRITICAL, prob_N, target_N, mask_N, threshold=0.5).looser != ()


def test_refused_heads_are_named_and_force_lets_them_in():
    bad, good = Judged("a", (Check("counts", False, "3 rows"),)), Judged("b", (Check("counts", True, "30 rows"),))
    with pytest.raises(GateError, match=r"refuses 1 of 2 heads: 'a': counts: 3 rows. force=true"):
        check_passed([bad, good], force=False, more_rows="")
    assert check_passed([bad, good], force=True, more_rows="") == ["a"]
    assert check_passed([good], force=False, more_rows="") == []
    checks = Check("counts", False, "3 rows", needed=Needed(5, 70)), Check("not worse", False, "?", True, Needed(10, 10))
    with pytest.raises(GateError, match=r"no version has seen, about 10 of the class and 70 of others, by data=... force=true"):
        check_passed([Judged("a", checks), good], force=False, more_rows=", by data=..")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"undecided": "maybe"}, "undecided is 'maybe'"),
        ({"worse": "no"}, "worse is 'no'"),
        ({"min_positives": -1}, "min_positives is -1"),
        ({"max_ece": 0}, "max_ece is 0"),
        ({"margin": 2}, "margin is 2"),
        ({"critical": {"confidence": 0}}, "confidence is 0"),
        ({"confidence": 1.0}, "confidence is 1.0; expected a number above 0 and below 1"),
        ({"max_ece": "low"}, "max_ece is 'low'; expected a number above 0 and at most 1"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"margin": None}, "margin is None; expected a number"),
        ({"min_positives": "many"}, "min_positives is 'many'; expected a whole number of at least 0"),
        ({"min_negatives": 2.5}, "min_negatives is 2.5"),
        ({"min_compared": True}, "min_compared is True; expected a whole number of at least 1"),
        ({"undecided": ["pass"]}, r"undecided is \['pass'\]; expected fail or pass"),
        ({"critical": 5}, "critical is 5; expected settings"),
        ({"min_positive": 1}, "no 'min_positive'; nearest: min_positives"),
        ({"critical": {"qqq": 1}}, "no 'qqq'; expected some of min_positives"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Gate(**settings)
