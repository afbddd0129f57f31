"""When a model is started again, how long is waited, and when it is given up."""

import dataclasses

import pytest

from ovr.errors import ConfigError
from ovr.serving.probe import Answer
from ovr.serving.watched import Patience, Restarts, Watched

OK, FAILED, DEAD, SLOW, BUSY, GONE = (Answer(outcome, 0.1) for outcome in ("ok", "failed", "dead", "slow", "busy", "gone"))


def watched(*answers, **settings):
    model = Watched("ovr", (1,), Restarts(Patience(**settings)))
    for answer in answers:
        model.saw(answer, 0.0)
    return model


@pytest.mark.parametrize(
    ("answers", "faulty"),
    [
        ([], False),
        ([OK], False),
        ([DEAD], True),
        ([OK, GONE], True),
        ([OK, FAILED], False),  # bad luck
        ([OK, FAILED, OK, FAILED], False),
        ([OK, FAILED, FAILED], True),
        ([FAILED, FAILED, FAILED], False),  # it is at work; our row may be none for it
        ([OK, SLOW, SLOW], False),
        ([OK, SLOW, SLOW, SLOW], True),
        ([OK, SLOW, SLOW, OK, SLOW], False),
        ([OK, *[BUSY] * 9], False),
    ],
)
def test_what_calls_for_a_restart(answers, faulty):
    assert watched(*answers, slow_probes=3).is_faulty is faulty


def test_an_answer_from_before_a_restart_does_not_call_for_another():
    model = watched(OK, DEAD)
    model.forget_answer()
    assert not model.is_faulty
    assert model.state == "failed"
    model.saw(FAILED, 0.0)
    assert not model.is_faulty


def test_a_state_has_the_time_since_when_it_is_so(monkeypatch):
    times = iter(["a", "b", "c", "d"])
    monkeypatch.setattr("ovr.serving.watched.utc_now", lambda: next(times))
    model = watched(OK, OK)
    assert (model.state, model.since) == ("ok", "a")
    model.saw(DEAD, 0.0)
    model.saw(DEAD, 0.0)
    assert (model.state, model.since) == ("failed", "b")
    model.be("given up")
    model.saw(DEAD, 0.0)
    assert (model.state, model.is_faulty) == ("given up", False)
    model.saw(OK, 0.0)
    assert (model.state, model.since) == ("ok", "d")


def test_the_first_restart_is_at_once_and_the_next_wait_twice_as_long_each():
    restarts = Restarts(Patience(backoff_s=0.5, max_backoff_s=3.0, max_restarts=5))
    waits = []
    for _ in range(5):
        waits.append(restarts.wait_s(100.0))
        assert not restarts.exhausted
        restarts.count(100.0)
    assert waits == [0.0, 0.5, 1.0, 2.0, 3.0]
    assert restarts.wait_s(101.0) == 2.0
    assert restarts.exhausted


def test_restarts_are_forgotten_after_long_health_only():
    restarts = Restarts(Patience(forget_after_s=60.0, max_restarts=1))
    restarts.count(100.0)
    for now in (150.0, 209.0):  # it took 50 s to start
        restarts.healthy(now)
        assert restarts.exhausted
    restarts.healthy(210.0)
    assert (restarts.exhausted, restarts.total) == (False, 1)


def lives(model, *, restarted, well_from, until):
    """Have a model start again, answer every second, and be killed; return whether it was given up instead."""
    if model.restarts.exhausted:
        return True
    model.restarts.count(restarted)
    model.forget_answer()
    for now in range(well_from, until):
        model.saw(OK, float(now))
    model.saw(DEAD, float(until))
    return False


@pytest.mark.parametrize("takes_s", [1, 15, 25])
def test_a_model_that_is_killed_each_minute_is_never_given_up(takes_s):
    model = watched(OK, DEAD)
    for kill in range(0, 60 * 60, 60):
        assert not lives(model, restarted=kill, well_from=kill + takes_s, until=kill + 60)
    assert model.restarts.total == 60


@pytest.mark.parametrize(("takes_s", "lives_s"), [(1, 0), (1, 20), (300, 20)])
def test_a_model_that_dies_soon_after_each_restart_is_given_up(takes_s, lives_s):
    model, period = watched(OK, DEAD), takes_s + lives_s
    given_up = [lives(model, restarted=n * period, well_from=n * period + takes_s, until=(n + 1) * period) for n in range(7)]
    assert given_up == [False] * 5 + [True] * 2


def test_what_does_not_answer_is_not_well_and_a_full_queue_says_nothing():
    def left(between):
        model = watched(OK, DEAD, forget_after_s=10.0)
        model.restarts.count(0.0)
        for now, answer in enumerate([OK, *[OK] * 5, between, *[OK] * 4], start=1):
            model.saw(answer, float(now))
        return model.restarts.in_a_row

    assert (left(OK), left(BUSY), left(SLOW), left(FAILED)) == (0, 0, 1, 1)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Patience)])
def test_settings_of_the_wrong_kind_are_named(field):
    for value in (-1, "x", True, None):
        with pytest.raises(ConfigError, match=f"{field} is {value!r}; expected a"):
            Patience(**{field: value})
