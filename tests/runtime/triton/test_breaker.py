"""The breaker, by a clock that the test sets."""

import pytest

from ovr.core.faults import Faults
from ovr.runtime.triton.breaker import Breaker


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def breaker(clock, **faults):
    return Breaker(Faults(**{"breaker_failures": 3, "breaker_window": 10, "breaker_pause_s": 5.0, **faults}), clock=clock)


def test_it_opens_after_failures_on_end_and_not_before(clock):
    own = breaker(clock)
    assert [own.record(failed=failed) for failed in (True, True, False, True, True)] == [False] * 5
    assert own.allows()
    assert own.record(failed=True)
    assert own.state == "open"
    assert not own.allows()


def test_it_opens_at_a_rate_of_failures_that_never_come_on_end(clock):
    own = breaker(clock, breaker_error_rate=0.4)
    for number in range(9):
        assert not own.record(failed=number % 3 == 0)
    assert own.record(failed=True)  # 4 of 10
    assert not own.allows()


def test_one_trial_after_the_pause_closes_it_or_opens_it_again(clock):
    own = breaker(clock, breaker_failures=1)
    own.record(failed=True)
    clock.now_s += 4.9
    assert not own.allows()
    clock.now_s += 0.1
    assert own.allows()
    assert own.state == "half_open"
    assert own.record(failed=True)
    assert not own.allows()
    clock.now_s += 5
    assert own.allows()
    assert own.record(failed=False)
    assert own.state == "closed"


def test_what_failed_before_is_forgotten_once_it_has_closed(clock):
    own = breaker(clock, breaker_failures=4, breaker_window=4, breaker_error_rate=0.5)
    for failed in (True, False, False, True):
        own.record(failed=failed)
    assert own.state == "open"
    clock.now_s += 5
    assert own.allows()
    own.record(failed=False)
    assert [own.record(failed=True), own.state] == [False, "closed"]


def test_a_trial_of_which_nothing_is_known_is_repeated(clock):
    own = breaker(clock, breaker_failures=1)
    own.record(failed=True)
    clock.now_s += 5
    assert own.allows()
    assert own.allows()
