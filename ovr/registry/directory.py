"""A registry of plain files, which any number of processes may read and write at once.

    <model slug>/versions/<N>/bundle/        the bundle: hard links where the file system has them, else copies
    <model slug>/versions/<N>/version.json   who registered it, when and why, the digests of it, its parent and its data, the commit
    <model slug>/aliases.json                what each alias names, and every move of one, the oldest first
    .<model slug>.versions, ....aliases      locks: empty, never removed

A version appears by one rename and never changes but for the signatures of its bundle, which may come later; aliases and the
history of their moves are one file, replaced at once. So readers need no lock, and a writer that is killed at any point leaves the
old state or the new. What it leaves beside them is ignored, and swept by the next writer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from ovr.core.artifact import SCHEMA_VERSION, check_schema_version
from ovr.core.bundle import ModelBundle, open_bundle
from ovr.core.files import canonical_json, place, read_json, staged_directory, write_file
from ovr.core.signature_files import take_over
from ovr.core.taxonomy import slug
from ovr.errors import ArtifactError
from ovr.registry.entries import Aliases, HeadPlace, Move, Version, check_name, check_same, check_text
from ovr.registry.lock import locked_file

VERSIONS, VERSION, BUNDLE, ALIASES = "versions", "version.json", "bundle", "aliases.json"


class Directory:
    """The registry in the directory at `path`, which the first registration makes."""

    excludes_others = True

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the registry {self.path}"

    def models(self) -> list[str]:
        """Return the names of the models that have a version, sorted."""
        folders = [each for each in _entries(self.path) if each.is_dir() and not each.name.startswith(".")]
        return sorted(found[0].model for folder in folders if (found := _versions(folder)))

    def versions(self, model: str) -> list[Version]:
        """Return the versions of a model by their numbers; none where there is no such model.

        Raises:
            ArtifactError: what is noted of one cannot be read.
        """
        return _versions(self._folder(model))

    def aliases(self, model: str) -> Aliases:
        """Return what the aliases name now.

        Raises:
            ArtifactError: `aliases.json` cannot be read.
        """
        return self._read_aliases(model)[0]

    def moves(self, model: str) -> list[Move]:
        """Return every move of an alias, the oldest first.

        Raises:
            ArtifactError: `aliases.json` cannot be read.
        """
        return self._read_aliases(model)[1]

    def bundle_path(self, version: Version) -> Path:
        """Return the directory that holds a version's bundle."""
        return self._folder(version.model) / VERSIONS / str(version.version) / BUNDLE

    def register(self, bundle: ModelBundle, model: str, *, who: str, why: str) -> Version:
        """Keep `bundle` as the next version of `model`; the version that it is already, with newer signatures, where it is one.

        Raises:
            ConfigError: a name that cannot be used, or no `who` or `why`.
            ArtifactError: the registry lies within the bundle, the bundle changed while it was copied, or it is registered with
                another fused graph. Nothing is kept then.
        """
        check_name("model", model)
        check_text("who", who)
        check_text("why", why)
        if self.path.resolve().is_relative_to(bundle.path.resolve()):
            raise ArtifactError(f"{self.path} lies within the bundle {bundle.path}, which is never changed; choose another place")
        folder = self._folder(model)
        with self._locked(model, VERSIONS):
            there = _versions(folder)
            for version in there:
                if version.bundle_sha256 == bundle.bundle_sha256:
                    kept = self.bundle_path(version)
                    check_same(bundle, kept)
                    take_over(bundle.path, kept)
                    return version
            number = 1 + max((version.version for version in there), default=0)
            noted = Version.of(bundle, model, number, who=who, why=why)
            files = {path.relative_to(bundle.path).as_posix(): path for path in bundle.path.rglob("*") if path.is_file()}
            try:
                with staged_directory(folder / VERSIONS / str(number)) as staging:
                    place(staging / BUNDLE, files)
                    if open_bundle(staging / BUNDLE).bundle_sha256 != bundle.bundle_sha256:
                        raise ArtifactError(f"bundle {bundle.path} changed while it was registered")
                    (staging / VERSION).write_bytes(canonical_json(noted.to_json()))
            except BaseException:
                with suppress(OSError):  # of a model that has no version; others' folders are not empty
                    (folder / VERSIONS).rmdir()
                    folder.rmdir()
                raise
        return noted

    @contextmanager
    def locked(self, model: str) -> Iterator[None]:
        """Keep other writers away from the aliases of a model while the block runs."""
        with self._locked(model, "aliases"):
            yield

    def write(self, model: str, moves: Sequence[Move]) -> None:
        """Note these moves, and set the aliases that they move, at once. The caller holds the lock."""
        aliases, before = self._read_aliases(model)
        value = {
            "schema_version": SCHEMA_VERSION,
            **asdict(aliases.after(moves)),
            "moves": [move.to_json() for move in (*before, *moves)],
        }
        write_file(self._folder(model) / ALIASES, canonical_json(value))

    def _folder(self, model: str) -> Path:
        return self.path / slug(model)

    @contextmanager
    def _locked(self, model: str, what: str) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with locked_file(self.path / f".{slug(model)}.{what}"):
            yield

    def _read_aliases(self, model: str) -> tuple[Aliases, list[Move]]:
        file = self._folder(model) / ALIASES
        if not file.exists():
            return Aliases(), []
        value = read_json(file)
        check_schema_version(value, str(file))
        try:
            heads = {
                class_id: {alias: HeadPlace(**place) for alias, place in named.items()}
                for class_id, named in value["heads"].items()
            }
            return Aliases(dict(value["model"]), heads), [Move.from_json(move) for move in value["moves"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{file} cannot be read: {type(error).__name__} {error}") from None


def _versions(folder: Path) -> list[Version]:
    """Return the versions of the model in `folder` by their numbers."""
    numbers = sorted(int(each.name) for each in _entries(folder / VERSIONS) if each.name.isdecimal())
    found = [Version.from_json(read_json(folder / VERSIONS / str(number) / VERSION)) for number in numbers]
    for number, version in zip(numbers, found, strict=True):
        if (version.version, slug(version.model)) != (number, folder.name):
            raise ArtifactError(
                f"{folder / VERSIONS / str(number)} holds version {version.version} of {version.model!r}: it was moved"
            )
    return found


def _entries(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []
