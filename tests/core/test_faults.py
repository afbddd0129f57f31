"""Settings of what is done about heads that do not answer."""

import json

import pytest

from ovr.core.faults import Faults, HeadPlan
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ConfigError


def test_a_plan_comes_back_from_json():
    plan = HeadPlan(Faults(fallback_of={"a": "prior"}), {"a": 0.25}, {"b": 3}, {"b": (1, 3)}, backbone_version=2)
    written = json.loads(json.dumps(plan.to_json()))
    assert HeadPlan.from_json(written) == plan
    assert written.pop("max_text_chars") == HeadPlan.from_json(written).max_text_chars == 1_000_000  # not in earlier ovr
    del written["before"]  # as earlier ovr wrote it
    assert HeadPlan.from_json(written).before == {"b": (3,)}


def test_each_class_has_its_own_fallback_or_that_of_all():
    faults = Faults(fallback="fail", fallback_of={"b": "prior"})
    assert faults.fallbacks(Taxonomy.from_ids(["a", "b", "c"])) == ("fail", "prior", "fail")


def test_a_class_that_there_is_not_is_told():
    with pytest.raises(ConfigError, match=r"fallback_of names what is no class of this bundle: 'frod' \(nearest: fraud\)"):
        Faults(fallback_of={"frod": "prior"}).fallbacks(Taxonomy.from_ids(["fraud"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_timeout_ms": 0}, "head_timeout_ms is 0; expected a number above 0"),
        ({"breaker_pause_s": float("inf")}, "breaker_pause_s is inf; expected a number above 0"),
        ({"breaker_failures": 1.0}, "breaker_failures is 1.0; expected a whole number of at least 1"),
        ({"breaker_window": True}, "breaker_window is True; expected a whole number"),
        ({"breaker_error_rate": 1.5}, "breaker_error_rate is 1.5; expected a share above 0, of at most 1"),
        ({"fallback": "zero"}, "fallback is 'zero'; expected one of unavailable, prior, last_good, fail"),
        ({"fallback_of": {"a": None}}, "fallback_of 'a' is None; expected one of"),
        ({"fallback_of": ["a"]}, r"fallback_of is \['a'\]; expected \{CLASS: FALLBACK\}"),
        ({"breaker_window": 0, "fallback": ""}, "breaker_window is 0.*; fallback is ''"),
    ],
)
def test_what_cannot_be_used_is_said(settings, message):
    with pytest.raises(ConfigError, match=message):
        Faults(**settings)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many"])
def test_a_limit_of_characters_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match=f"max_text_chars is {value!r}; expected a whole number of at least 1"):
        HeadPlan(max_text_chars=value)
