"""Which classes a bundle has had, and the head versions that it keeps beside those in use. Knows nothing of what is in them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ovr.core.taxonomy import ClassSpec, Taxonomy, slug
from ovr.errors import ArtifactError, TaxonomyError


@dataclass(frozen=True, slots=True, order=True)
class HeadVersion:
    """One version of one head, in use or not. A version never changes, and its number is never given again."""

    class_id: str
    version: int

    @property
    def directory(self) -> str:
        """Where it lies in a bundle, relative to its root."""
        return f"heads/{slug(self.class_id)}/{self.version}"


@dataclass(frozen=True, slots=True)
class Ledger:
    """The classes of a bundle from its first ancestor on.

    `class_ids` are in the order in which they came, retired ones included: their places in the Merkle tree. `earlier` are versions
    of heads that are not in use, those of retired classes included, to which a head may be rolled back.
    """

    class_ids: tuple[str, ...]
    retired: tuple[ClassSpec, ...] = ()
    earlier: tuple[HeadVersion, ...] = ()

    def versions(self, class_id: str) -> list[int]:
        """Return the versions of a class that are kept and not in use, ascending."""
        return sorted(each.version for each in self.earlier if each.class_id == class_id)

    def to_json(self, taxonomy: Taxonomy) -> dict[str, Any]:
        """Return plain values for the manifest; what a bundle without a past does not have is left out."""
        value: dict[str, Any] = {}
        if self.class_ids != taxonomy.ids:
            value["ledger"] = list(self.class_ids)
        if self.retired:
            value["retired"] = [asdict(spec) for spec in self.retired]
        if self.earlier:
            value["earlier"] = [asdict(each) for each in sorted(self.earlier)]
        return value

    @classmethod
    def from_json(cls, manifest: Mapping[str, Any], taxonomy: Taxonomy) -> "Ledger":
        """Return the ledger that a manifest holds.

        Raises:
            ArtifactError: it is not one of these classes.
        """
        try:
            ledger = cls(
                tuple(manifest.get("ledger", taxonomy.ids)),
                tuple(ClassSpec(**row) for row in manifest.get("retired", ())),
                tuple(HeadVersion(**row) for row in manifest.get("earlier", ())),
            )
        except (TypeError, TaxonomyError) as error:
            raise ArtifactError(f"the ledger of the bundle's classes cannot be read: {error}") from None
        ledger.check(taxonomy)
        return ledger

    def check(self, taxonomy: Taxonomy) -> None:
        """Raise ArtifactError unless it is of these classes, in use or retired, each once."""
        had = (*taxonomy.ids, *(spec.id for spec in self.retired))
        if sorted(had) != sorted(self.class_ids):
            odd = sorted({*had} ^ {*self.class_ids}) or sorted({each for each in had if had.count(each) > 1})
            raise ArtifactError(f"the ledger of the bundle's classes does not fit them: {', '.join(map(repr, odd[:5]))}")
        if unknown := {each.class_id for each in self.earlier} - {*had}:
            raise ArtifactError(f"the bundle keeps earlier heads of classes that it never had: {sorted(unknown)[:5]}")


def successor(
    before: Ledger, old: Sequence[HeadVersion], taxonomy: Taxonomy, new: Sequence[HeadVersion], specs: Mapping[str, ClassSpec]
) -> Ledger:
    """Return the ledger of a bundle that is made of another.

    Args:
        old, new: the versions in use before and after.
        specs: of the classes before, in use or retired, by their id.
    """
    used = set(new)
    came = [class_id for class_id in taxonomy.ids if class_id not in set(before.class_ids)]
    gone = [specs[class_id] for class_id in before.class_ids if class_id not in set(taxonomy.ids)]
    earlier = {each for each in (*before.earlier, *old) if each not in used}
    return Ledger((*before.class_ids, *came), tuple(gone), tuple(sorted(earlier)))
