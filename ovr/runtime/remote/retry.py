"""When a request is sent again, and when a call has taken too long. Knows nothing of protocols."""

import random
import threading
import time
from dataclasses import dataclass

from ovr.errors import ConfigError, DeadlineError, ServingError

LONGEST_WAIT_S = 30.0  # what a server may ask for; a caller decides on more


class Failure(Exception):
    """A request that failed: `error` is what a caller is told, `may_retry` whether it may be sent again.

    `wait_s` is how long the server wants to be left alone, 0 where it did not say.
    """

    def __init__(self, error: ServingError, *, may_retry: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.may_retry = may_retry
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and after what pause a request is sent again that may be.

    Before attempt n + 1 there is a pause of `random.uniform(0, min(max_delay_s, first_delay_s * 2 ** (n - 1)))`: exponential
    backoff with full jitter, so that the clients of a server that was away do not come back at once. A server that says how long it
    wants to be left alone (Retry-After) is, unless the deadline comes first or it wants more than 30 s.

    A client sends at most `budget` requests again, and one more for every 1 / `budget_per_success` that succeed: where a server can
    take no more, retries add that much to its load and not a multiple of it.
    """

    attempts: int = 4  # the first among them; 1 sends nothing again
    first_delay_s: float = 0.1
    max_delay_s: float = 2.0
    budget: int = 100
    budget_per_success: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("attempts", 1), ("budget", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} of Retry is {value!r}; expected a whole number of at least {least}")
        for name in ("first_delay_s", "max_delay_s", "budget_per_success"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigError(f"{name} of Retry is {value!r}; expected a number of at least 0")


class Deadline:
    """The moment by which a call must be done; without one it may take for ever, and each request its own time."""

    __slots__ = ("ends", "given_s")

    def __init__(self, given_s: float | None) -> None:
        """Begin now.

        Raises:
            ConfigError: no number above 0.
        """
        check_seconds("deadline_s", given_s, is_optional=True)
        self.given_s = given_s
        self.ends = None if given_s is None else time.monotonic() + given_s

    def copy(self) -> "Deadline":
        """Return the same moment, to be ended by itself."""
        copied = Deadline(None)
        copied.ends, copied.given_s = self.ends, self.given_s
        return copied

    def end(self) -> None:
        """Let it pass now."""
        self.ends, self.given_s = 0.0, self.given_s or 0.0

    def remaining_s(self, at_most: float) -> float:
        """Return the seconds that a request may take: what is left, and `at_most` at most; not above 0 when nothing is."""
        return at_most if self.ends is None else min(at_most, self.ends - time.monotonic())

    def check(self, url: str, last: Failure | None) -> None:
        """Raise the error of the last attempt, or without one DeadlineError, where it has passed."""
        if self.ends is not None and time.monotonic() >= self.ends:
            if last is not None:
                raise _with(last.error, f"; the deadline of {self.given_s:g} s has passed")
            raise DeadlineError(f"the call of {url} took longer than its deadline of {self.given_s:g} s; nothing more was sent")


class Retries:
    """The retries of one client. Safe for threads."""

    def __init__(self, settings: Retry) -> None:
        """Begin with a full budget."""
        self.settings = settings
        self._left = float(settings.budget)
        self._lock = threading.Lock()
        self.count = 0  # requests sent again

    def succeeded(self) -> None:
        """Note a request that was answered."""
        if self._left < self.settings.budget:
            with self._lock:
                self._left = min(self.settings.budget, self._left + self.settings.budget_per_success)

    def delay_s(self, failure: Failure, attempt: int, deadline: Deadline) -> float:
        """Return the seconds to wait before the next attempt, and take it from the budget.

        Args:
            attempt: the one that failed, from 1.

        Raises:
            ServingError: the failure's own error, where it is the last: also where the pause would outlast the deadline, or the
                budget is used up.
        """
        if not failure.may_retry:
            raise failure.error from None
        if attempt >= self.settings.attempts:
            raise _with(failure.error, f"; tried {attempt} times" if attempt > 1 else "") from None
        if failure.wait_s > LONGEST_WAIT_S:
            raise _with(failure.error, f"; it asks to be left alone for {failure.wait_s:g} s") from None
        longest_s = min(self.settings.max_delay_s, self.settings.first_delay_s * 2 ** min(attempt - 1, 60))
        delay_s = failure.wait_s + random.uniform(0.0, longest_s)
        if deadline.ends is not None and time.monotonic() + delay_s >= deadline.ends:
            raise _with(
                failure.error, f"; tried {attempt} times, the deadline of {deadline.given_s:g} s leaves no time for another"
            )
        with self._lock:
            if self._left < 1.0:
                raise _with(failure.error, f"; tried {attempt} times, and this client's budget of retries is used up") from None
            self._left -= 1.0
            self.count += 1
        return delay_s


def check_seconds(name: str, value: float | None, *, is_optional: bool = False) -> None:
    """Raise ConfigError unless `value` is a number above 0, or None where that is one."""
    if value is None and is_optional:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {value!r}; expected a number of seconds above 0")


def _with(error: ServingError, more: str) -> ServingError:
    return type(error)(f"{error}{more}")
