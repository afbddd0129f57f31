"""Which requests the router writes a line about, as plain data of one publication. Knows nothing of servers."""

from dataclasses import dataclass

from ovr.errors import ConfigError

PROBE_ID = "ovr-serve"  # of requests of one row that only ask whether there is an answer: they are in no count of classes or rows


@dataclass(frozen=True, slots=True)
class RequestLogSettings:
    """Requests that were refused are written where `errors` says so, and of those that were answered `share`, chosen by their ids.

    Requests of one id, as those of one call of a client, are written all or not at all, by every server.
    """

    errors: bool = True
    share: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.errors, bool):
            raise ConfigError(f"errors of request_log is {self.errors!r}; expected true or false")
        if not isinstance(self.share, int | float) or isinstance(self.share, bool) or not 0 <= self.share <= 1:
            raise ConfigError(f"share of request_log is {self.share!r}; expected a number from 0 to 1")
