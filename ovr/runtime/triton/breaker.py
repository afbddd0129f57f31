"""When a head that fails is left alone, and when it is tried again. Knows nothing of heads: it is told what came of each call."""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from ovr.core.faults import Faults

State = Literal["closed", "open", "half_open"]


class Breaker:
    """A circuit breaker (Nygard, "Release It!"): closed, then open after failures, then one trial that closes or opens it."""

    def __init__(self, faults: Faults, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin closed; `clock` counts seconds."""
        self.state: State = "closed"
        self._faults = faults
        self._clock = clock
        self._on_end = 0
        self._recent: deque[bool] = deque(maxlen=faults.breaker_window)  # whether each failed
        self._opened_at = 0.0

    def allows(self) -> bool:
        """Return whether to call now. After the pause that is a trial: until it is recorded, another call is one too."""
        if self.state == "open" and self._clock() - self._opened_at >= self._faults.breaker_pause_s:
            self.state = "half_open"
        return self.state != "open"

    def record(self, *, failed: bool) -> bool:
        """Take in what came of a call, and return whether the state is another one now."""
        before = self.state
        if failed:
            self._on_end += 1
            self._recent.append(True)
            full = len(self._recent) == self._faults.breaker_window
            too_many = full and sum(self._recent) >= self._faults.breaker_error_rate * len(self._recent)
            if before == "half_open" or self._on_end >= self._faults.breaker_failures or too_many:
                self.state, self._opened_at = "open", self._clock()
        else:
            self._on_end = 0
            self._recent.append(False)
            if before == "half_open":
                self.state = "closed"
                self._recent.clear()
        return self.state != before
