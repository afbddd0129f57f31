"""Asking all heads by one call, while all of them are well: a call a head is what takes most of the time of a request.

Knows nothing of Triton's objects. B = batch, K = heads
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.runtime.triton.needed import reason_of
from ovr.runtime.triton.workers import Workers

F32 = NDArray[np.float32]
NUM_KEPT = 100  # calls whose time is remembered
TIMES_LONGEST = 4.0  # of these, and a call is given up: a head that died answers nobody, and all wait
LEAST_S = 0.05


class AllHeads:
    """One call for all, which is as slow as the slowest head and fails with any: then there are the heads, one by one.

    It is not made again for `pause_s` after one that came late or failed, nor while one that was given up has not returned.
    """

    def __init__(
        self,
        call: Callable[[Any], F32],
        *,
        pause_s: float,
        tell: Callable[[str], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            call: returns the probabilities (B, K) of rows, or raises; it is made in a thread of its own.
            tell: told why it is not made again for a while.
        """
        self._call, self._pause_s, self._tell, self._clock = call, pause_s, tell, clock
        self._workers = Workers()
        self._last: Future[F32] | None = None
        self._took_s: deque[float] = deque(maxlen=NUM_KEPT)
        self._not_before_s = clock()

    def ask(self, x: Any, timeout_s: float) -> F32 | None:
        """Return the probabilities (B, K) of the rows, or None where the heads are to be asked one by one.

        It is waited for as long as `timeout_s`, but no longer than some times what others took of late.

        That is also where one is no probability: of whose making it is, a head's or the row's, is found out that way.
        """
        if self._clock() < self._not_before_s or (self._last is not None and not self._last.done()):
            return None
        if self._took_s:
            timeout_s = min(timeout_s, max(LEAST_S, TIMES_LONGEST * max(self._took_s)))
        began_s = self._clock()
        self._last = self._workers.submit(self._call, x)
        try:
            prob_BK = self._last.result(timeout_s)
        except Exception as error:  # whatever it is: the heads themselves say what is wrong with which
            self._not_before_s = self._clock() + self._pause_s
            why = f"no answer within {timeout_s:.3g} s" if isinstance(error, TimeoutError) else reason_of(error)
            self._tell(f"the heads are asked one by one for {self._pause_s:g} s: {why}")
            return None
        self._took_s.append(self._clock() - began_s)
        return prob_BK if ((prob_BK >= 0) & (prob_BK <= 1)).all() else None
