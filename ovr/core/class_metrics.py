"""How many classes have metrics of their own, as plain data of one publication. Knows nothing of servers."""

import math
from dataclasses import dataclass

from ovr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ClassMetricsSettings:
    """A class has some 30 series for each version of its head that has answered; those above `max_classes` share one group."""

    max_classes: int = 50
    interval_s: float = 5.0

    def __post_init__(self) -> None:
        if type(self.max_classes) is not int or self.max_classes < 0:
            raise ConfigError(f"max_classes is {self.max_classes!r}; expected a whole number of at least 0")
        if not isinstance(self.interval_s, int | float) or isinstance(self.interval_s, bool) or not 0 < self.interval_s < math.inf:
            raise ConfigError(f"interval_s is {self.interval_s!r}; expected seconds above 0")
