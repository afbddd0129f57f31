"""Calls that hang are given up, with functions in place of models. With a server: tests/triton/test_partial_answers.py."""

import threading
import time

import pytest

from ovr.runtime.triton.needed import Needed, NotScored, reason_of


def test_what_a_call_returns_or_raises_comes_back():
    needed = Needed("scores", 10.0, lambda a, b: a / b)
    assert needed.ask(6, 3) == 2
    with pytest.raises(ZeroDivisionError):
        needed.ask(1, 0)
    assert needed.ask(1, 1) == 1


def test_what_a_model_says_of_itself_is_for_the_log_alone():
    error = NotScored("scores does not answer", "At: /secret/model.py")
    assert (str(error), reason_of(error)) == ("scores does not answer", "At: /secret/model.py")
    assert reason_of(NotScored("scores did not answer within 1 s")) == "scores did not answer within 1 s"
    assert reason_of(ValueError("gone")) == "gone"


def test_a_call_that_hangs_is_given_up_and_no_other_is_made_until_it_is_done():
    goes_on, calls = threading.Event(), []

    def call(number):
        calls.append(number)
        if number == 0:
            goes_on.wait()
        return number

    needed = Needed("scores", 0.5, call)
    with pytest.raises(NotScored, match=r"scores did not answer within 0\.5 s"):
        needed.ask(0)
    needed._timeout_s = 60.0
    with pytest.raises(NotScored, match="scores still works on a request that was given up after 60 s"):
        needed.ask(1)
    assert calls == [0]
    goes_on.set()
    deadline = time.monotonic() + 20
    while needed._outcomes.empty() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert needed.ask(2) == 2  # not what the first one gave


def test_a_model_that_was_loaded_again_is_tried_though_what_it_was_asked_before_never_returns():
    ends = threading.Event()
    before = {*threading.enumerate()}
    needed = Needed("scores", 0.05, lambda hangs: ends.wait() if hangs else "answer")
    (first,) = {*threading.enumerate()} - before
    with pytest.raises(NotScored, match="did not answer"):
        needed.ask(True)
    needed._timeout_s, needed._given_up_at = 60.0, time.monotonic() - 60.0
    assert needed.ask(False) == "answer"
    ends.set()
    first.join(20)
    assert not first.is_alive()
