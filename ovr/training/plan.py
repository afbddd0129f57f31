"""Which heads are trained and which of them train the backbone: settings in class ids, as columns. Knows no weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ovr.core.taxonomy import Taxonomy
from ovr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """Columns that keep their weights, and columns whose gradient reaches the backbone; a frozen head may be among both."""

    frozen: tuple[int, ...]
    to_backbone: tuple[int, ...]
    num_heads: int

    @property
    def is_plain(self) -> bool:
        """Every head is trained and trains the backbone."""
        return not self.frozen and len(self.to_backbone) == self.num_heads

    def record(self, taxonomy: Taxonomy) -> dict[str, Any]:
        """Return the settings for a checkpoint, each plan spelled in one way only."""
        listed: str | list[str] = [taxonomy[k].id for k in self.to_backbone]
        if len(self.to_backbone) in (0, self.num_heads):
            listed = "all" if self.to_backbone else "none"
        return {"frozen_heads": [taxonomy[k].id for k in self.frozen], "backbone_grad": listed}

    def check_record(self, saved: dict[str, Any], taxonomy: Taxonomy) -> None:
        """Raise ConfigError unless a checkpoint's record is of this plan: groups of other heads may have the same shapes."""
        for name, value in self.record(taxonomy).items():
            if saved[name] != value:
                raise ConfigError(f"a resumed run keeps its {name}: the checkpoint has {saved[name]}, the configuration {value}")


def head_plan(taxonomy: Taxonomy, *, frozen_heads: Sequence[Any], backbone_grad: str | Sequence[Any]) -> HeadPlan:
    """Return the plan for class ids `frozen_heads` and for `backbone_grad`: "all", "none" or class ids.

    Raises:
        ConfigError: neither, or class ids that are not in the taxonomy, all of them named.
    """
    frozen = _columns(taxonomy, "frozen_heads", frozen_heads, expected="a list of class ids")
    if backbone_grad == "all":
        to_backbone = tuple(range(len(taxonomy)))
    elif backbone_grad == "none":
        to_backbone = ()
    else:
        to_backbone = _columns(taxonomy, "backbone_grad", backbone_grad, expected="all, none or a list of class ids")
    return HeadPlan(frozen, to_backbone, len(taxonomy))


def _columns(taxonomy: Taxonomy, setting: str, class_ids: Any, *, expected: str) -> tuple[int, ...]:
    if not isinstance(class_ids, list | tuple):
        raise ConfigError(f"{setting} must be {expected}, got {class_ids!r}")
    # YAML reads the id 7 as a number; of other values, such as 1.50 or yes, the spelling is lost.
    if lost := [class_id for class_id in class_ids if type(class_id) not in (str, int)]:
        raise ConfigError(f"{setting} holds {lost[0]!r}, which is no text; quote class ids that YAML reads as something else")
    wanted, known = {str(class_id) for class_id in class_ids}, set(taxonomy.ids)
    if unknown := sorted(wanted - known):
        shown = ", ".join(map(repr, taxonomy.ids[:10])) + (", ..." if len(taxonomy) > 10 else "")
        raise ConfigError(f"{setting} names classes {unknown}, which are not among the {len(taxonomy)} of the taxonomy: {shown}")
    return tuple(sorted(taxonomy.column(class_id) for class_id in wanted))
