"""What is known of one thing that is watched, a model or the server itself, and when it is to be started again. Knows no server.

Times `now` are of a clock that never goes back, in seconds.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from ovr.errors import ConfigError
from ovr.serving.probe import Answer

State = Literal["ok", "busy", "slow", "failed", "gone", "given up"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How often is looked, and how long something is started again before it is given up."""

    interval_s: float = 1.0  # between two looks
    probe_timeout_s: float = 10.0  # of one row
    slow_probes: int = 3  # unanswered ones in a row, until the model counts as dead
    max_restarts: int = 5  # in a row, of a model and of the server
    backoff_s: float = 0.5  # before the second restart in a row; doubles with each
    max_backoff_s: float = 30.0
    forget_after_s: float = 30.0  # of health after which restarts are no longer in a row
    drain_s: float = 20.0  # for the requests in flight at the end
    lame_duck_s: float = 0.0  # before that, in which the server says that it is not ready and answers all the same

    def __post_init__(self) -> None:
        for name, least in (
            ("interval_s", 0.01),
            ("probe_timeout_s", 0.01),
            ("slow_probes", 1),
            ("max_restarts", 0),
            ("backoff_s", 0),
            ("max_backoff_s", 0),
            ("forget_after_s", 0),
            ("drain_s", 0),
            ("lame_duck_s", 0),
        ):
            value = getattr(self, name)
            kind, what = (int, "a whole number") if name in ("slow_probes", "max_restarts") else (int | float, "a number")
            if not isinstance(value, kind) or isinstance(value, bool) or not value >= least:
                raise ConfigError(f"{name} is {value!r}; expected {what} of at least {least}")


@dataclass
class Restarts:
    """How often something was started again, and when it may be again."""

    patience: Patience
    total: int = 0
    in_a_row: int = 0
    last: float = 0.0
    well_since: float | None = None  # the last restart; None: not well yet

    @property
    def exhausted(self) -> bool:
        """Whether there have been as many in a row as there may be."""
        return self.in_a_row >= self.patience.max_restarts

    def wait_s(self, now: float) -> float:
        """Return how long to wait yet: the first is at once, the others after a time that doubles."""
        if self.in_a_row == 0:
            return 0.0
        backoff_s = min(self.patience.backoff_s * 2.0 ** (self.in_a_row - 1), self.patience.max_backoff_s)
        return max(0.0, self.last + backoff_s - now)

    def count(self, now: float) -> None:
        """Count one."""
        self.total += 1
        self.in_a_row += 1
        self.last, self.well_since = now, None

    def healthy(self, now: float) -> None:
        """Forget those in a row once all has been well for long enough: to start does not count as being well."""
        if self.well_since is None:
            self.well_since = now
        if now - self.well_since >= self.patience.forget_after_s:
            self.in_a_row = 0

    def ill(self) -> None:
        """Begin anew to wait until all has been well for long enough."""
        self.well_since = None


@dataclass
class Watched:
    """One model in the server."""

    name: str
    versions: tuple[int, ...]  # that the server has
    restarts: Restarts
    state: State = "ok"
    answer: Answer | None = None
    since: str = field(default_factory=lambda: utc_now())
    was_ok: bool = False  # with these versions
    strikes: int = 0  # probes in a row that came to the same fault
    asked: float = 0.0  # when a probe came to something last

    def saw(self, answer: Answer, now: float) -> None:
        """Take note of a probe's answer."""
        before = self.answer.outcome if self.answer is not None else None
        self.strikes = self.strikes + 1 if answer.outcome == before else 1
        self.answer, self.asked = answer, now
        self.was_ok |= answer.outcome == "ok"
        if answer.outcome == "ok":
            self.restarts.healthy(now)
        elif answer.outcome != "busy":  # which is neither
            self.restarts.ill()
        if self.state != "given up" or answer.outcome == "ok":
            self.be("failed" if answer.outcome == "dead" else answer.outcome)

    def forget_answer(self) -> None:
        """What it answered was before it was loaded again."""
        self.answer, self.strikes = None, 0

    def be(self, state: State) -> None:
        """Change to this state, if it is another."""
        if state != self.state:
            self.state, self.since = state, utc_now()

    @property
    def is_faulty(self) -> bool:
        """Whether a restart is called for.

        One error of a model that answered before may be the request's bad luck, two are not. A model that never answered our row
        otherwise is at work, and an error is all that it has for it.
        """
        if self.answer is None or self.state == "given up":
            return False
        match self.answer.outcome:
            case "dead" | "gone":
                return True
            case "failed":
                return self.was_ok and self.strikes >= 2
            case "slow":
                return self.strikes >= self.restarts.patience.slow_probes
            case _:
                return False


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
