"""Heads that are asked in threads, with functions in place of their models. With a server: tests/triton/test_partial_answers.py."""

import threading

import numpy as np
import pytest

from ovr.core.faults import Faults, HeadPlan
from ovr.core.taxonomy import Taxonomy
from ovr.runtime.triton import heads as module
from ovr.runtime.triton.heads import Heads, scored_at_once
from ovr.runtime.triton.workers import Workers

IDS = ("a", "b", "c")
FEATURES = np.arange(8, dtype=np.float32).reshape(4, 2)


class Models:
    """Each gives 0.5 for every row, unless it is told otherwise."""

    def __init__(self, **plan):
        self.does, self.calls, self.faults, self.changes = {}, [], [], []
        settings = {"head_timeout_ms": 50, "breaker_failures": 2, "breaker_pause_s": 1e9, **plan.pop("faults", {})}
        plan = HeadPlan(faults=Faults(**settings), backbone_version=1, **plan)
        self.heads = Heads(
            Taxonomy.from_ids(IDS),
            (7, 8, 9),
            plan,
            call=self.call,
            on_fault=lambda head, fault, why: self.faults.append((head.model, head.version, fault)),
            on_change=lambda head: self.changes.append((head.model, head.breaker.state)),
        )

    def call(self, model, version, features_BD):
        self.calls.append((model, version))
        does = self.does.get((model, version), lambda: np.full(len(features_BD), 0.5, np.float32))
        return does(features_BD) if does in (nothing_of_odd_rows, nothing) else does()

    def num_calls(self, model):
        return sum(name == model for name, _ in self.calls)


@pytest.fixture(autouse=True)
def no_head_is_given_more_time(monkeypatch):
    monkeypatch.setattr(module, "FIRST_CALL_S", 0.0)


def raises():
    raise ValueError("gone")


def nothing(features_BD):
    return np.full(len(features_BD), np.nan, np.float32)


def nothing_of_odd_rows(features_BD):
    return np.where((features_BD > 1).any(axis=1), np.float32(np.nan), np.float32(0.5))


def gives(*values):
    return lambda: np.array(values, np.float32)


def test_only_the_heads_asked_for_are_called():
    models = Models()
    scored = models.heads.score(FEATURES, [2, 0])
    assert sorted(models.calls) == [("head_a", 7), ("head_c", 9)]
    assert np.isnan(scored.prob_BK).tolist() == [[False, True, False]] * 4
    assert scored.head_version_BK.tolist() == [[7, 0, 9]] * 4
    assert scored.answered_K.tolist() == [True, False, True]


def test_a_head_that_raises_is_left_out_and_then_alone():
    models = Models()
    models.does["head_b", 8] = raises
    for _ in range(5):
        assert np.isnan(models.heads.score(FEATURES, range(3)).prob_BK).tolist() == [[False, True, False]] * 4
    assert models.num_calls("head_b") == 2
    assert models.faults == [("head_b", 8, "missing")] * 2 + [("head_b", 8, "skipped")] * 3
    assert models.changes == [("head_b", "open")]


def test_heads_are_well_once_each_was_called_and_while_none_is_failing_or_at_work():
    models, asked, go_on = Models(faults={"breaker_pause_s": 1e-9}), threading.Event(), threading.Event()
    assert not models.heads.are_well()
    models.heads.score(FEATURES, [0, 1])
    assert not models.heads.are_well()
    models.heads.score(FEATURES, [2])
    assert models.heads.are_well()
    models.does["head_b", 8] = raises
    models.heads.score(FEATURES, range(3))
    models.heads.answered()  # by another way: the failures are no longer in a row
    models.heads.score(FEATURES, range(3))
    assert models.heads.are_well()
    models.heads.score(FEATURES, range(3))
    assert not models.heads.are_well()
    del models.does["head_b", 8]
    models.heads.score(FEATURES, range(3))
    assert models.heads.are_well()
    models.does["head_c", 9] = lambda: asked.set() or (go_on.wait(30) and np.full(4, 0.5, np.float32))
    models.heads.score(FEATURES, range(3))
    assert asked.wait(30)
    assert not models.heads.are_well()
    go_on.set()
    models.heads._heads[2].last_call.result()
    assert models.heads.are_well()


def test_a_head_that_hangs_is_called_once_until_it_is_done():
    models, done = Models(faults={"breaker_pause_s": 1e-9}), threading.Event()
    models.does["head_a", 7] = lambda: done.wait() and np.full(4, 0.5, np.float32)
    for _ in range(5):
        assert np.isnan(models.heads.score(FEATURES, range(3)).prob_BK[:, 0]).all()
    assert models.num_calls("head_a") == 1
    assert set(models.faults) == {("head_a", 7, "late")}
    done.set()
    models.heads._heads[0].last_call.result()
    assert not np.isnan(models.heads.score(FEATURES, range(3)).prob_BK).any()
    assert models.changes[-1] == ("head_a", "closed")


def test_a_first_call_gets_more_time(monkeypatch):
    monkeypatch.setattr(module, "FIRST_CALL_S", 60.0)
    models = Models(faults={"head_timeout_ms": 1})
    asked = threading.Event()
    models.does["head_a", 7] = lambda: asked.wait(0.1) or np.full(4, 0.5, np.float32)
    assert not np.isnan(models.heads.score(FEATURES, range(3)).prob_BK).any()
    models.does["head_a", 7] = lambda: asked.wait() and np.full(4, 0.5, np.float32)
    assert np.isnan(models.heads.score(FEATURES, range(3)).prob_BK[:, 0]).all()
    asked.set()


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 1.5])
def test_a_head_that_gives_no_probability_is_left_out_and_then_alone(value):
    models = Models()
    models.does["head_c", 9] = gives(*[value] * 4)
    for _ in range(4):
        scored = models.heads.score(FEATURES, range(3))
        assert np.isnan(scored.prob_BK).tolist() == [[False, False, True]] * 4
        assert scored.head_version_BK.tolist() == [[7, 8, 0]] * 4
        assert scored.answered_K.tolist() == [True, True, False]
        assert not scored.is_odd_B.any()
    assert models.num_calls("head_c") == 2 * 2  # for a plain row too


def test_rows_without_a_probability_are_marked_and_do_not_condemn_their_head():
    models = Models()
    models.does["head_c", 9] = gives(np.nan, 0.5, 0.5, 2.0)
    for _ in range(4):
        assert np.isnan(models.heads.score(FEATURES, range(3)).prob_BK[:, 2]).tolist() == [True, False, False, True]
    assert models.num_calls("head_c") == 4
    assert models.faults == [("head_c", 9, "sick")] * 4


@pytest.mark.parametrize("columns", [[2], [0, 1, 2]])
def test_odd_rows_condemn_no_head_however_few_are_asked_for(columns):
    models, x = Models(), FEATURES + 2
    for head in (("head_a", 7), ("head_b", 8), ("head_c", 9)):
        models.does[head] = nothing_of_odd_rows
    for _ in range(4):
        scored = models.heads.score(x, columns)
        assert np.isnan(scored.prob_BK).all()
        assert scored.answered_K[columns].all()
        assert scored.is_odd_B.all()
    assert models.faults == models.changes == []
    scored = models.heads.score(x[:2] - 2, columns)
    assert (np.isnan(scored.prob_BK[:, columns]) == [[False], [True]]).all()
    assert scored.is_odd_B.tolist() == [False, True]


def test_rows_that_are_odd_to_one_head_are_told_and_condemn_it_not():
    models = Models()
    models.does["head_c", 9] = nothing_of_odd_rows
    for _ in range(4):
        assert np.isnan(models.heads.score(FEATURES + 2, range(3)).prob_BK).tolist() == [[False, False, True]] * 4
    assert models.faults == [("head_c", 9, "sick")] * 4
    assert models.changes == []


@pytest.mark.parametrize("columns", [[2], [1, 2]])
def test_sick_heads_that_are_asked_alone_are_found_so(columns):
    models = Models()
    models.does["head_b", 8] = models.does["head_c", 9] = nothing
    for _ in range(3):
        scored = models.heads.score(FEATURES, columns)
        assert not scored.answered_K.any()
        assert not scored.is_odd_B.any()
    assert models.changes == [(f"head_{IDS[column]}", "open") for column in columns]


def test_a_head_that_gives_a_plain_row_no_answer_in_time_is_sick():
    models, done = Models(), threading.Event()
    answers = iter([lambda: np.full(4, np.nan, np.float32), lambda: done.wait(30) and np.full(1, 0.5, np.float32)])
    models.does["head_c", 9] = lambda: next(answers)()
    assert not models.heads.score(FEATURES, [2]).answered_K.any()
    assert models.faults == [("head_c", 9, "sick")]
    done.set()


def test_the_version_before_fills_in_what_the_present_one_leaves():
    models = Models(earlier={"c": 4})
    models.does["head_c", 9] = gives(np.nan, 0.25, np.nan, 0.25)
    scored = models.heads.score(FEATURES, range(3))
    assert scored.prob_BK[:, 2].tolist() == [0.5, 0.25, 0.5, 0.25]
    assert scored.head_version_BK[:, 2].tolist() == [4, 9, 4, 9]
    models.does["head_c", 9] = raises
    for _ in range(4):
        assert models.heads.score(FEATURES, range(3)).head_version_BK[:, 2].tolist() == [4] * 4
    assert models.calls.count(("head_c", 9)) == 3
    models.does["head_c", 4] = raises
    for _ in range(4):
        assert np.isnan(models.heads.score(FEATURES, range(3)).prob_BK[:, 2]).all()
    assert models.calls.count(("head_c", 4)) == 1 + 4 + 2
    models = Models(earlier={"c": 4})
    models.does["head_c", 9], models.does["head_c", 4] = gives(np.nan, 0.25, 0.25, 0.25), nothing
    scored = models.heads.score(FEATURES, [2])
    assert scored.answered_K.tolist() == [False, False, True]  # the present one works
    assert scored.is_odd_B.tolist() == [True, False, False, False]


def test_one_model_for_all_heads_is_marked_cell_by_cell():
    prob_BK = np.array([[0.5, np.nan], [0.25, 0.75]], np.float32)
    scored = scored_at_once(prob_BK, np.array([3, 4]))
    assert np.isnan(scored.prob_BK).tolist() == [[False, True], [False, False]]
    assert scored.head_version_BK.tolist() == [[3, 0], [3, 4]]
    assert scored_at_once(prob_BK[1:], np.array([3, 4])).head_version_BK.tolist() == [[3, 4]]
    assert scored_at_once(np.array([[0.5, np.nan], [2, np.nan]]), np.array([3, 4])).is_odd_B.tolist() == [False, True]


def test_workers_are_as_many_as_calls_at_one_time():
    workers, together = Workers(), threading.Barrier(3)
    for future in [workers.submit(together.wait) for _ in range(3)]:  # returns only where all three are called at once
        future.result(timeout=20)
    before = threading.active_count()
    for _ in range(20):
        workers.submit(int).result(timeout=20)
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="gone"):
        workers.submit(raises).result(timeout=20)
