"""What a router does about heads that do not answer, as plain data of one publication. Knows nothing of servers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ovr.core.class_metrics import ClassMetricsSettings
from ovr.core.request_log import RequestLogSettings
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ConfigError

PLAN = "ovr.heads"  # the parameter of the configuration of `ovr` that holds a HeadPlan
MAX_TEXT_CHARS = 1_000_000
UNAVAILABLE, PRIOR, LAST_GOOD, FAIL = FALLBACKS = ("unavailable", "prior", "last_good", "fail")


@dataclass(frozen=True, slots=True)
class Faults:
    """How long heads may take, when they are no longer asked, and what a class is answered with whose head gave nothing.

    `scores_timeout_ms` is for the model that all classes need: `ovr_scores`, or with layout per_head `backbone`.
    A breaker opens after `breaker_failures` failures on end, or once `breaker_error_rate` of the last `breaker_window` calls have
    failed. Then the head is left alone for `breaker_pause_s`; one request that succeeds after that closes it.

    `fallback` is that of classes that `fallback_of` does not name. Each marks the class unavailable unless it was scored:
    unavailable: NaN. prior: the class's share of its calibration rows. last_good: what the version of the head that was published
    before says (layout per_head), if that fails too, as unavailable. fail: the request is refused.
    """

    head_timeout_ms: float = 500.0
    scores_timeout_ms: float = 30_000.0
    breaker_failures: int = 3
    breaker_error_rate: float = 0.5
    breaker_window: int = 20
    breaker_pause_s: float = 5.0
    fallback: str = UNAVAILABLE
    fallback_of: Mapping[str, str] = field(default_factory=dict)  # by class id

    def __post_init__(self) -> None:
        problems = []
        for name in ("head_timeout_ms", "scores_timeout_ms", "breaker_pause_s"):
            if not _is_number(value := getattr(self, name)) or not 0 < value < math.inf:
                problems.append(f"{name} is {value!r}; expected a number above 0")
        for name in ("breaker_failures", "breaker_window"):
            if type(value := getattr(self, name)) is not int or value < 1:
                problems.append(f"{name} is {value!r}; expected a whole number of at least 1")
        if not _is_number(self.breaker_error_rate) or not 0 < self.breaker_error_rate <= 1:
            problems.append(f"breaker_error_rate is {self.breaker_error_rate!r}; expected a share above 0, of at most 1")
        if not isinstance(self.fallback_of, Mapping):
            problems.append(f"fallback_of is {self.fallback_of!r}; expected {{CLASS: FALLBACK}}")
        else:
            named = {"fallback": self.fallback} | {f"fallback_of {key!r}": value for key, value in self.fallback_of.items()}
            what = ", ".join(FALLBACKS)
            problems += [f"{name} is {value!r}; expected one of {what}" for name, value in named.items() if value not in FALLBACKS]
        if problems:
            raise ConfigError("; ".join(problems))

    def fallbacks(self, taxonomy: Taxonomy) -> tuple[str, ...]:
        """Return the fallback of each class, in column order.

        Raises:
            ConfigError: `fallback_of` names a class that there is not.
        """
        if unknown := taxonomy.unknown(self.fallback_of):
            raise ConfigError(f"fallback_of names what is no class of this bundle: {unknown}")
        return tuple(self.fallback_of.get(class_id, self.fallback) for class_id in taxonomy.ids)


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """How the router of one publication asks for its classes: travels in the configuration of `ovr`."""

    faults: Faults = field(default_factory=Faults)
    prior: Mapping[str, float] = field(default_factory=dict)  # by class id, of the classes whose fallback it is
    earlier: Mapping[str, int] = field(default_factory=dict)  # the version served before, of those with fallback last_good
    before: Mapping[str, Sequence[int]] = field(default_factory=dict)  # those and what was served before them, ascending
    metrics: ClassMetricsSettings = field(default_factory=ClassMetricsSettings)
    request_log: RequestLogSettings = field(default_factory=RequestLogSettings)
    backbone_version: int | None = None  # None: all classes from `ovr_scores`; else `backbone` and a model a head are asked
    max_text_chars: int = MAX_TEXT_CHARS  # of one row that is a text; a longer one is refused

    def __post_init__(self) -> None:
        if type(self.max_text_chars) is not int or self.max_text_chars < 1:
            raise ConfigError(f"max_text_chars is {self.max_text_chars!r}; expected a whole number of at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "HeadPlan":
        """Return the plan that `to_json` wrote."""
        before = value.get("before", {class_id: [version] for class_id, version in value["earlier"].items()})  # not in earlier ovr
        return cls(
            faults=Faults(**value["faults"]),
            prior=value["prior"],
            earlier=value["earlier"],
            before={class_id: tuple(versions) for class_id, versions in before.items()},
            metrics=ClassMetricsSettings(**value["metrics"]),
            request_log=RequestLogSettings(**value.get("request_log", {})),  # {}: published by an earlier ovr
            backbone_version=value["backbone_version"],
            max_text_chars=value.get("max_text_chars", MAX_TEXT_CHARS),  # not in earlier ovr
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
