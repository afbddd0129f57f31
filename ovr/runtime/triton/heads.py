"""Asking one model a head, all at once, and doing without those that do not answer. Knows nothing of Triton's objects or of rows.

B = batch, D = features, K = heads
"""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ovr.core.faults import HeadPlan
from ovr.core.taxonomy import Taxonomy, slug
from ovr.runtime.triton.breaker import Breaker
from ovr.runtime.triton.needed import reason_of
from ovr.runtime.triton.workers import Workers

F32 = NDArray[np.float32]
FIRST_CALL_S = 5.0  # a head's first call at least: on a machine at work it has taken 0.6 s, a hundred times as long as the next
Fault = Literal["missing", "late", "sick", "skipped"]


@dataclass(slots=True, eq=False)
class Head:
    """One version of one head's model, and how it has been doing."""

    model: str
    version: int
    column: int
    breaker: Breaker
    last_call: Future[F32] | None = None
    is_warm: bool = False  # whether something has come of a call

    def is_busy(self) -> bool:
        """Return whether it still works on a call that nobody waits for any more."""
        return self.last_call is not None and not self.last_call.done()


@dataclass(frozen=True, slots=True)
class Scored:
    """What was got for each row and class."""

    prob_BK: F32  # NaN where nothing was got, or no probability
    head_version_BK: NDArray[np.int64]  # that of the head which gave it, 0 where none did
    answered_K: NDArray[np.bool_]  # the heads that work, whatever they say of these rows
    is_odd_B: NDArray[np.bool_] | None = None  # rows that a head which works has no probability of; None: there are none


class Heads:
    """The heads of one publication; not for use by several threads at once."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        head_versions: Sequence[int],
        plan: HeadPlan,
        *,
        call: Callable[[str, int, F32], F32],
        on_fault: Callable[[Head, Fault, str], None],
        on_change: Callable[[Head], None],
    ) -> None:
        """Prepare them.

        Args:
            call: returns the probabilities (B,) that a model's version gives for features (B, D), or raises; from any thread.
            on_fault: told of each call that gave nothing, or rows without a probability, or was not made, with the reason.
            on_change: told of each breaker that opened or closed.
        """
        self._call, self._on_fault, self._on_change = call, on_fault, on_change
        self._deadline_s = plan.faults.head_timeout_ms / 1000
        self._workers = Workers()
        self._num_heads = len(taxonomy)
        self._heads, self._earlier = [], {}
        for column, (class_id, version) in enumerate(zip(taxonomy.ids, head_versions, strict=True)):
            model = f"head_{slug(class_id)}"
            self._heads.append(Head(model, version, column, Breaker(plan.faults)))
            if class_id in plan.earlier:
                self._earlier[column] = Head(model, plan.earlier[class_id], column, Breaker(plan.faults))

    def are_well(self) -> bool:
        """Return whether each head has been called before, does not work on another call, and was not found failing of late."""
        return all(head.is_warm and head.breaker.state == "closed" and not head.is_busy() for head in self._heads)

    def answered(self) -> None:
        """Record that each head gave probabilities of all rows, asked by another way."""
        for head in self._heads:
            head.breaker.record(failed=False)

    def score(self, features_BD: F32, columns: Collection[int]) -> Scored:
        """Return what the heads of these columns say; the others' columns are left NaN.

        A head that is called gets `head_timeout_ms`, and more for its first call. Where the version served before is kept, it is
        asked for the rows that the present one gives nothing for: along with the others if that one is left alone, else after it,
        with as much time again.
        """
        prob_BK = np.full((len(features_BD), self._num_heads), np.nan, np.float32)
        version_BK = np.zeros(prob_BK.shape, np.int64)
        asked: list[Head] = []
        left_alone: list[Head] = []
        for column in columns:
            head = self._heads[column]
            (asked if self._may_be_called(head) else left_alone).append(head)
        earlier = [self._earlier[head.column] for head in left_alone if head.column in self._earlier]
        scored = Scored(prob_BK, version_BK, np.zeros(self._num_heads, np.bool_), np.zeros(len(features_BD), np.bool_))
        self._ask([*asked, *(head for head in earlier if self._may_be_called(head))], features_BD, scored)
        if self._earlier:
            missing = [head.column for head in asked if head.column in self._earlier and np.isnan(prob_BK[:, head.column]).any()]
            again = [self._earlier[column] for column in missing if self._may_be_called(self._earlier[column])]
            self._ask(again, features_BD, scored)
        return scored

    def _may_be_called(self, head: Head) -> bool:
        if not head.breaker.allows():
            self._on_fault(head, "skipped", "its breaker is open")
            return False
        if head.is_busy():
            self._failed(head, "late", "it still works on a call that was given up")
            return False
        return True

    def _ask(self, heads: Sequence[Head], features_BD: F32, scored: Scored) -> None:
        """Call these heads together and fill in what they say of rows that have no probability yet."""
        for head in heads:
            head.last_call = self._workers.submit(self._call, head.model, head.version, features_BD)
        calls = [head.last_call for head in heads if head.last_call is not None]
        wait(calls, timeout=self._deadline_s)
        if cold := [call for head, call in zip(heads, calls, strict=True) if not head.is_warm]:
            wait(cold, timeout=max(FIRST_CALL_S - self._deadline_s, 0))
        answered: list[Head] = []
        probs: list[F32] = []
        for head, call in zip(heads, calls, strict=True):
            deadline_s = self._deadline_s if head.is_warm else max(FIRST_CALL_S, self._deadline_s)
            head.is_warm = True
            if not call.done():
                self._failed(head, "late", f"no answer within {deadline_s:g} s")
            elif (error := call.exception()) is not None:
                self._failed(head, "missing", reason_of(error))
            else:
                answered.append(head)
                probs.append(call.result())
        if not answered:
            return
        prob_BA = np.stack(probs, axis=1)
        good_BA = (prob_BA >= 0) & (prob_BA <= 1)
        columns = [head.column for head in answered]  # each once
        before_BA, version_A = scored.prob_BK[:, columns], np.array([head.version for head in answered])
        fill_BA = good_BA & np.isnan(before_BA)
        scored.prob_BK[:, columns] = np.where(fill_BA, prob_BA, before_BA)
        scored.head_version_BK[:, columns] = np.where(fill_BA, version_A, scored.head_version_BK[:, columns])
        if good_BA.all():
            scored.answered_K[columns] = True
            for head in answered:
                self._works(head)
            return
        sick = self._sick([head for head, good_B in zip(answered, good_BA.T, strict=True) if not good_B.any()], features_BD)
        # A row for which no head of several gives a number is itself at fault, and tells nothing of those that work.
        counts_B = good_BA.any(axis=1)
        for head, good_B in zip(answered, good_BA.T, strict=True):
            if head in sick:
                self._failed(head, "sick", f"no probability for {len(good_B)} of {len(good_B)} rows, nor for a plain one")
                continue
            assert scored.is_odd_B is not None
            scored.answered_K[head.column] = True
            scored.is_odd_B[~good_B] = True
            if num_bad := int((counts_B & ~good_B).sum()):
                self._on_fault(head, "sick", f"no probability for {num_bad} of {len(good_B)} rows")
            self._works(head)

    def _sick(self, heads: Sequence[Head], features_BD: F32) -> list[Head]:
        """Return those of the heads that have no probability of a plain row either: else those that were asked for are odd."""
        if not heads:
            return []
        plain_1D = np.linspace(0, 1, features_BD[0].size, dtype=np.float32).reshape(1, *features_BD.shape[1:])
        calls = []
        for head in heads:
            calls.append(self._workers.submit(self._call, head.model, head.version, plain_1D))
            head.last_call = calls[-1]
        wait(calls, timeout=self._deadline_s)
        return [head for head, call in zip(heads, calls, strict=True) if not _gave_a_probability(call)]

    def _works(self, head: Head) -> None:
        if head.breaker.record(failed=False):
            self._on_change(head)

    def _failed(self, head: Head, fault: Fault, why: str) -> None:
        self._on_fault(head, fault, why)
        if head.breaker.record(failed=True):
            self._on_change(head)


def _gave_a_probability(call: Future[F32]) -> bool:
    return call.done() and call.exception() is None and bool(0 <= call.result()[0] <= 1)


def scored_at_once(prob_BK: Any, head_versions: NDArray[np.int64]) -> Scored:
    """Return what one model for all heads gave, NaN for what is no probability. A row without any is an odd one."""
    good_BK = (prob_BK >= 0) & (prob_BK <= 1)
    answered_K = np.ones(len(head_versions), np.bool_)
    if good_BK.all():
        return Scored(prob_BK, np.broadcast_to(head_versions, prob_BK.shape), answered_K)
    prob_BK = np.where(good_BK, prob_BK, np.float32(np.nan))
    return Scored(prob_BK, np.where(good_BK, head_versions, 0), answered_K, ~good_BK.any(axis=1))
