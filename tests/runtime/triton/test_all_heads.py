"""The one call for all heads, with functions in place of the ensemble. With a server: tests/triton/test_partial_answers.py."""

import threading

import numpy as np
import pytest

from ovr.runtime.triton.all_heads import AllHeads

GOOD_BK = np.full((2, 3), 0.5, np.float32)


class Ensemble:
    def __init__(self):
        self.answer, self.num_calls, self.now, self.told = GOOD_BK, 0, 100.0, []
        self.took_s = 0.0
        self.go_on = threading.Event()
        self.all_heads = AllHeads(self.call, pause_s=5.0, tell=self.told.append, clock=lambda: self.now)

    def call(self, x):
        self.num_calls += 1
        self.now += self.took_s
        if self.answer is None:
            self.go_on.wait(30)
            return GOOD_BK
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def ask(self, timeout_s=30.0):
        return self.all_heads.ask("rows", timeout_s)


@pytest.fixture
def ensemble():
    ensemble = Ensemble()
    yield ensemble
    ensemble.go_on.set()


def test_what_it_gives_is_the_answer(ensemble):
    assert ensemble.ask() is GOOD_BK
    assert ensemble.ask() is GOOD_BK
    assert ensemble.told == []


@pytest.mark.parametrize("odd", [np.nan, 1.5, -0.1])
def test_where_one_is_no_probability_the_heads_are_asked_and_the_next_rows_are_tried_again(ensemble, odd):
    ensemble.answer = GOOD_BK.copy()
    ensemble.answer[1, 2] = odd
    assert ensemble.ask() is None
    ensemble.answer = GOOD_BK
    assert ensemble.ask() is GOOD_BK


def test_after_a_failure_it_is_left_alone_for_a_while(ensemble):
    ensemble.answer = ValueError("a head is gone")
    assert ensemble.ask() is None
    assert ensemble.told == ["the heads are asked one by one for 5 s: a head is gone"]
    ensemble.answer = GOOD_BK
    ensemble.now += 4.9
    assert ensemble.ask() is None
    assert ensemble.num_calls == 1
    ensemble.now += 0.2
    assert ensemble.ask() is GOOD_BK


def test_one_that_takes_some_times_as_long_as_others_is_given_up(ensemble):
    ensemble.took_s = 0.02
    assert ensemble.ask() is GOOD_BK
    ensemble.took_s = 0.0
    for _ in range(99):  # the longest still counts
        assert ensemble.ask() is GOOD_BK
    ensemble.answer = None
    assert ensemble.ask(timeout_s=30.0) is None
    assert ensemble.told == ["the heads are asked one by one for 5 s: no answer within 0.08 s"]


def test_one_that_is_late_is_given_up_and_no_other_is_made_before_it_returns(ensemble):
    ensemble.answer = None
    assert ensemble.ask(timeout_s=0.01) is None
    assert ensemble.told == ["the heads are asked one by one for 5 s: no answer within 0.01 s"]
    ensemble.now += 6
    assert ensemble.ask() is None
    assert ensemble.num_calls == 1
    ensemble.answer = GOOD_BK
    ensemble.go_on.set()
    while ensemble.ask() is None:
        pass
    assert ensemble.num_calls == 2
