"""Who owns classes, by patterns of their ids: what a CODEOWNERS file is for files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ovr.core.taxonomy import ClassSpec
from ovr.errors import TaxonomyError


@dataclass(frozen=True, slots=True)
class Owners:
    """Patterns of class ids and their owners; the last pattern that fits an id counts, and one without an owner leaves it without.

    In a pattern * stands for any characters, / among them, ? for one and [ab] for one of these.
    """

    rules: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_lines(cls, lines: Sequence[str]) -> "Owners":
        """Return what lines say: a pattern, white space and an owner, or a pattern alone. # begins a comment.

        Raises:
            TaxonomyError: a line of more than two words, with its number.
        """
        rules = []
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if words and not words[0].startswith("#"):
                words = words[: next((i for i, word in enumerate(words) if word.startswith("#")), None)]
                if len(words) > 2:
                    raise TaxonomyError(
                        f"owners, line {number}: {line.strip()!r} has {len(words)} words; expected a pattern of class ids and one "
                        "owner. ? stands for a space in an id"
                    )
                rules.append((words[0], words[1] if len(words) == 2 else ""))
        return cls(tuple(rules))

    def of(self, class_id: str) -> str | None:
        """Return the owner of a class; None where no pattern fits."""
        return next((owner for pattern, owner in reversed(self.rules) if fnmatchcase(class_id, pattern)), None)

    def given(self, classes: Iterable[ClassSpec]) -> dict[str, dict[str, str]]:
        """Return the settings {"owner": OWNER} of the classes that a pattern fits, by their id."""
        found = {spec.id: self.of(spec.id) for spec in classes}
        return {class_id: {"owner": owner} for class_id, owner in found.items() if owner is not None}
