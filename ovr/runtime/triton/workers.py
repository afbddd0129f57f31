"""Threads that calls wait in, one a call at a time. Knows nothing of what is called."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class Workers:
    """As many threads as there were calls at one time; a call that never returns keeps its own.

    They are daemons, unlike those of `ThreadPoolExecutor`: a process whose calls hang could not end otherwise.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_idle = 0

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Call `function` in a thread and return what will come of it."""
        future: Future[Any] = Future()
        self._calls.put((future, function, args))
        with self._lock:
            if self._num_idle:
                self._num_idle -= 1
                return future
        threading.Thread(target=self._work, name="ovr-worker", daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            future, function, args = self._calls.get()
            result, error = None, None
            try:
                result = function(*args)
            except Exception as raised:
                error = raised
            with self._lock:  # before the caller hears of it, who may have the next call at once
                self._num_idle += 1
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del future, function, args, result, error  # not kept while waiting
