"""What a head is held to before it enters a bundle, and where that asks less than the default policy. Knows no rows."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ovr.errors import ConfigError
from ovr.metric.intervals import CONFIDENCE

# From the strictest to the loosest.
CHOICES = {"undecided": ("fail", "pass"), "worse": ("excluded", "estimate", "not_shown"), "others": ("unseen", "seen")}


@dataclass(frozen=True, slots=True)
class Policy:
    """What a head is held to. Equal rows count once.

    Args:
        min_positives, min_negatives: known rows of the class, and of others.
        max_ece: limit of the calibration error; a class's own `max_ece` comes before it.
        undecided: whether rows that are too few to decide the contract let a head "pass" or "fail".
        worse: what happens where the rows do not decide whether it is more than `margin` worse than the version that it replaces:
            "excluded": it fails; "estimate": it passes where the figures, taken as they are, are within the margin; "not_shown": it
            passes.
        margin: of average precision, and of information (`ovr.metric.not_worse`).
        min_compared: known rows of the class, and of others, that neither version has seen, below which nothing is decided and no
            figure is taken.
        others: whether rows of others that the version before has seen count with these where they alone are fewer ("seen"), or
            not ("unseen"). They favour that version. Rows of the class never do.
        confidence: of each check.
    """

    min_positives: int = 5
    min_negatives: int = 5
    max_ece: float = 0.05
    undecided: Literal["fail", "pass"] = "pass"
    worse: Literal["excluded", "estimate", "not_shown"] = "estimate"
    margin: float = 0.02
    min_compared: int = 10
    others: Literal["unseen", "seen"] = "seen"
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ConfigError(f"the gate's {name} is {value!r}; expected {' or '.join(choices)}")
        for name, least in (("min_positives", 0), ("min_negatives", 0), ("min_compared", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"the gate's {name} is {value!r}; expected a whole number of at least {least}")
        for name in ("max_ece", "margin", "confidence"):
            value, most = getattr(self, name), "below 1" if name == "confidence" else "at most 1"
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value <= 1
                or (name, value) == ("confidence", 1)
            ):
                raise ConfigError(f"the gate's {name} is {value!r}; expected a number above 0 and {most}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def looser_than(self, other: "Policy") -> tuple[str, ...]:
        """Return the settings that let more heads in than those of the other policy do."""
        found = [name for name in ("min_positives", "min_negatives", "min_compared") if getattr(self, name) < getattr(other, name)]
        found += [name for name in ("max_ece", "margin") if getattr(self, name) > getattr(other, name)]
        found += [name for name, order in CHOICES.items() if order.index(getattr(self, name)) > order.index(getattr(other, name))]
        found += ["confidence"] if self.confidence < other.confidence else []
        return tuple(found)


DEFAULT = Policy()
CRITICAL = Policy(min_positives=20, min_negatives=20, undecided="fail", worse="excluded", min_compared=20, others="unseen")
