"""Asking the one model that no class can do without, and giving up where it hangs. Knows nothing of Triton's objects."""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from ovr.errors import OvrError

Calls = SimpleQueue[tuple[Any, ...] | None]
Outcomes = SimpleQueue[tuple[Any, Exception | None]]


class NotScored(OvrError):
    """A model does not answer. What it says of itself, as `details`, is for the log alone: it may name paths."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def reason_of(error: BaseException) -> str:
    """Return what the log is told of a call that failed."""
    return (isinstance(error, NotScored) and error.details) or str(error)


class Needed:
    """Calls of one model, made one at a time in a thread of their own, so that they can be given up.

    While one that was given up has not returned no other is made, but for a trial each `timeout_s`: where the model was loaded
    again, what its process before was asked may never return.
    """

    def __init__(self, model: str, timeout_s: float, call: Callable[..., Any]) -> None:
        """Begin; `call` is what is called, `model` names it in errors."""
        self._model, self._timeout_s, self._call = model, timeout_s, call
        self._given_up_at: float | None = None
        self._begin()

    def ask(self, *args: Any) -> Any:
        """Return what the call returns, or raise what it raises.

        Raises:
            NotScored: it does not return in time, or one that was given up has not returned yet.
        """
        if self._given_up_at is not None:
            self._after_one_that_was_given_up(self._given_up_at)
        self._calls.put(args)
        try:
            result, error = self._outcomes.get(timeout=self._timeout_s)
        except Empty:
            self._given_up_at = time.monotonic()
            raise NotScored(f"{self._model} did not answer within {self._timeout_s:g} s") from None
        if error is not None:
            raise error
        return result

    def _after_one_that_was_given_up(self, when_s: float) -> None:
        try:
            self._outcomes.get_nowait()
        except Empty:
            if time.monotonic() - when_s < self._timeout_s:
                told = f"{self._model} still works on a request that was given up after {self._timeout_s:g} s"
                raise NotScored(told) from None
            self._calls.put(None)
            self._begin()
        self._given_up_at = None

    def _begin(self) -> None:
        self._calls: Calls = SimpleQueue()
        self._outcomes: Outcomes = SimpleQueue()
        threading.Thread(target=self._work, args=(self._calls, self._outcomes), name="ovr-needed", daemon=True).start()

    def _work(self, calls: Calls, outcomes: Outcomes) -> None:
        while (args := calls.get()) is not None:
            try:
                outcomes.put((self._call(*args), None))
            except Exception as error:
                outcomes.put((None, error))
            del args  # not kept while waiting
