"""What a registry holds, as plain data: versions of a model, the aliases that name them, and the moves of those."""

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from ovr.core.artifact import SCHEMA_VERSION, check_schema_version
from ovr.core.bundle import DATA_CARD, MANIFEST, ModelBundle
from ovr.core.files import read_json
from ovr.errors import ArtifactError, ConfigError

MAX_NAME = 200  # letters


@dataclass(frozen=True, slots=True)
class Version:
    """A registered bundle. Versions of a model count from 1; their order is that of their numbers, never of their times."""

    model: str
    version: int
    bundle_sha256: str
    parent_bundle_sha256: str | None  # the bundle that it was made from; None where it was trained anew
    data_sha256: str | None  # of data/card.json, which has the digests of the source files
    git_commit: str | None  # of the code that trained it
    who: str
    when: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any) -> "Version":
        """Return the version that `to_json` wrote.

        Raises:
            ArtifactError: another schema version, or keys missing or unknown.
        """
        return cls(**_fields(cls, value, "a version of the registry"))

    @classmethod
    def of(cls, bundle: ModelBundle, model: str, number: int, *, who: str, why: str) -> "Version":
        """Return what is to be noted of `bundle` as version `number` of `model`, now."""
        environment = bundle.provenance.get("environment", {})
        files = read_json(bundle.path / MANIFEST)["files"]
        return cls(
            model=model,
            version=number,
            bundle_sha256=bundle.bundle_sha256,
            parent_bundle_sha256=parents(bundle)[-1],
            data_sha256=files.get(DATA_CARD, {}).get("sha256"),
            git_commit=environment.get("git_commit"),
            who=who,
            when=now(),
            why=why,
        )


@dataclass(frozen=True, slots=True)
class HeadPlace:
    """The head that an alias of a class names: its own version, and the version of the model whose bundle holds it."""

    version: int
    head_version: int


@dataclass(frozen=True, slots=True)
class Move:
    """One alias set to a version, of the model or of one class."""

    alias: str
    class_id: str | None  # None: of the model
    before: int | None  # the version that it named; None where it named none
    version: int
    head_version: int | None  # None: of the model
    who: str
    when: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any) -> "Move":
        """Return the move that `to_json` wrote.

        Raises:
            ArtifactError: another schema version, or keys missing or unknown.
        """
        return cls(**_fields(cls, value, "a move of the registry"))


@dataclass(frozen=True, slots=True)
class Aliases:
    """What the aliases of a model, and of its classes by their ids, name now."""

    model: dict[str, int] = field(default_factory=dict)
    heads: dict[str, dict[str, HeadPlace]] = field(default_factory=dict)

    def version(self, alias: str, class_id: str | None) -> int | None:
        """Return the version that holds what the alias names, None where it names nothing."""
        if class_id is None:
            return self.model.get(alias)
        place = self.heads.get(class_id, {}).get(alias)
        return None if place is None else place.version

    def after(self, moves: Iterable[Move]) -> "Aliases":
        """Return the aliases after these moves."""
        model, heads = dict(self.model), {class_id: dict(named) for class_id, named in self.heads.items()}
        for move in moves:
            if move.class_id is None or move.head_version is None:
                model[move.alias] = move.version
            else:
                heads.setdefault(move.class_id, {})[move.alias] = HeadPlace(move.version, move.head_version)
        return Aliases(model, heads)


class Store(Protocol):
    """What keeps versions, aliases and moves. Reading takes no lock and sees whole states only."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def excludes_others(self) -> bool:
        """Whether `locked` keeps every other writer out."""

    def models(self) -> list[str]:
        """Return the names of the models that have a version, sorted."""

    def versions(self, model: str) -> list[Version]:
        """Return the versions of a model by their numbers; none where there is no such model."""

    def aliases(self, model: str) -> Aliases:
        """Return what the aliases name now."""

    def moves(self, model: str) -> list[Move]:
        """Return every move of an alias, the oldest first."""

    def bundle_path(self, version: Version) -> Path:
        """Return the directory that holds a version's bundle."""

    def register(self, bundle: ModelBundle, model: str, *, who: str, why: str) -> Version:
        """Keep `bundle` as the next version of `model`; the version that it is already, where it is one.

        Raises:
            ConfigError: a name that cannot be used, or no `who` or `why`.
            ArtifactError: the bundle changed while it was copied.
        """

    def locked(self, model: str) -> AbstractContextManager[None]:
        """Keep other writers away from the aliases of a model while the block runs."""

    def write(self, model: str, moves: Sequence[Move]) -> None:
        """Note these moves, and set the aliases that they move. The caller holds the lock."""


def check_same(bundle: ModelBundle, kept: Path) -> None:
    """Raise ArtifactError unless `kept`, which holds a bundle of that digest, has its fused graph too, which that leaves out."""
    manifest = kept / MANIFEST
    if not manifest.is_file() or manifest.read_bytes() != (bundle.path / MANIFEST).read_bytes():
        raise ArtifactError(
            f"bundle {bundle.bundle_sha256[:12]} is registered already, and {kept} does not hold it as {bundle.path} does: one of "
            "the two has a fused graph that is not of its heads, or is damaged; `ovr head verify` of the two says which"
        )


def now() -> str:
    """Return the time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def parents(bundle: ModelBundle) -> list[str | None]:
    """Return the digest of the bundle that each step of the bundle's making began with: training, then what was made of it."""
    made_of: list[str | None] = [bundle.provenance.get("init_from_bundle_sha256")]
    return made_of + [step.get("parent_bundle_sha256") for step in bundle.provenance.get("history", [])]


def check_text(what: str, text: str) -> None:
    """Raise ConfigError unless `text` says something."""
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{what} is {text!r}; expected some text")


def check_name(what: str, name: str) -> None:
    """Raise ConfigError unless `name` can be the name of a model or an alias."""
    if not isinstance(name, str) or not name.isprintable() or name != name.strip() or not 0 < len(name) <= MAX_NAME:
        raise ConfigError(f"{what} is {name!r}; expected a name of 1 to {MAX_NAME} printable letters without blanks around it")
    if name.isdecimal():
        raise ConfigError(f"{what} is {name!r}; numbers are for versions, so a name needs something else than digits")


def _fields(cls: type[Any], value: Any, what: str) -> dict[str, Any]:
    check_schema_version(value, what)
    names = {each.name for each in fields(cls)}
    if set(value) != {*names, "schema_version"}:
        raise ArtifactError(f"{what} has the keys {sorted(value)}; expected schema_version and {sorted(names)}")
    return {name: value[name] for name in names}
