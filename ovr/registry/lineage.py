"""Where a version came from: every step of its making, the data and the code of each, and who moved which alias to it.

The steps stand in the bundle itself, so that they are known of bundles that were registered late, and of steps that never were.
"""

from dataclasses import dataclass
from typing import Any

from ovr.core.bundle import DATA_CARD, ModelBundle
from ovr.core.files import read_json
from ovr.registry.aliases import opened
from ovr.registry.entries import Move, Store, Version, parents


@dataclass(frozen=True, slots=True)
class Step:
    """One bundle on the way to a version: what made it, of what."""

    command: str
    bundle_sha256: str
    parent_bundle_sha256: str | None
    from_bundle_sha256: str | None  # whose heads came in, beside those of the parent
    version: int | None  # of the same model, where the bundle was registered
    when: str | None
    who: str | None
    why: str | None
    git_commit: str | None
    files: tuple[dict[str, Any], ...]  # name, sha256 and size of each file of data that the step read
    details: dict[str, Any]  # all that the bundle tells of it

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: getattr(self, name) for name in self.__slots__} | {"files": list(self.files)}


@dataclass(frozen=True, slots=True)
class Lineage:
    """A version, the steps of its making from the first to the last, and the moves of aliases to it and away from it."""

    version: Version
    steps: tuple[Step, ...]
    moves: tuple[Move, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "version": self.version.to_json(),
            "steps": [step.to_json() for step in self.steps],
            "moves": [move.to_json() for move in self.moves],
        }


def lineage(store: Store, version: Version) -> Lineage:
    """Return where a version came from.

    Raises:
        ArtifactError: its bundle is damaged.
    """
    numbers = {each.bundle_sha256: each.version for each in store.versions(version.model)}
    bundle = opened(store, version)
    moves = [move for move in store.moves(version.model) if version.version in (move.before, move.version)]
    return Lineage(version, tuple(_steps(bundle, numbers)), tuple(moves))


def _steps(bundle: ModelBundle, numbers: dict[str, int]) -> list[Step]:
    """Return the steps of a bundle's making; `numbers` are the versions of the registered digests."""
    history, begun_with = bundle.provenance.get("history", []), parents(bundle)
    card = read_json(bundle.path / DATA_CARD) if (bundle.path / DATA_CARD).is_file() else {}
    environment = bundle.provenance.get("environment", {})
    trained = {
        "command": "train",
        "created_at": bundle.provenance.get("created_at"),
        "git_commit": environment.get("git_commit"),
        "git_dirty": environment.get("git_dirty"),
        "data": {name: card[name] for name in ("files", "split") if name in card},
    }
    made = [*begun_with[1:], bundle.bundle_sha256]  # what each step made is what the next began with
    return [
        Step(
            command=str(told.get("command", "")),
            bundle_sha256=str(digest),
            parent_bundle_sha256=parent,
            from_bundle_sha256=told.get("from_bundle_sha256"),
            version=numbers.get(str(digest)),
            when=told.get("created_at"),
            who=told.get("who"),
            why=told.get("why"),
            git_commit=told.get("git_commit"),
            files=tuple(told.get("data", {}).get("files", ())),
            details=told,
        )
        for told, parent, digest in zip([trained, *history], begun_with, made, strict=True)
    ]
