"""The steps by which a repository comes to serve something else: each is told to a running server, and all can be taken back.

Knows where models, versions and configurations lie, not what is in them or in which order they change.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from ovr.core.files import discard, place, sha256_bytes, sha256_file, staged_directory, staged_file
from ovr.errors import OvrError, ServingError
from ovr.serving import control
from ovr.serving.contents import read_config, versions_of
from ovr.serving.pbtxt import both_versions, from_text, to_text

CALLERS = ("ovr_heads", "ovr")  # they call models that stay in service until their last request is done


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a publication: its configuration and the files of its version directory."""

    config: pb.ModelConfig
    parts: Mapping[str, bytes | Path]

    @property
    def name(self) -> str:
        """The Triton model."""
        return str(self.config.name)

    @property
    def version(self) -> int:
        """The version that the publication is of."""
        return int(self.config.version_policy.specific.versions[0])

    @property
    def versions(self) -> set[int]:
        """The versions that it is to serve: that one, and one before it where that stands in for a head that fails."""
        return set(self.config.version_policy.specific.versions)


class Transition:
    """Changes to one repository, in the order in which they are made."""

    def __init__(self, repository: Path, server: str | None) -> None:
        """Begin one.

        Args:
            server: HTTP address of a running server on this repository.
        """
        self.repository = repository
        self.server = server
        self._ready = {} if server is None else control.ready_versions(server)
        self._created: list[Path] = []
        self._changes: list[tuple[str, str]] = []  # models, and their configurations before
        self._loaded: set[Path] = set()  # version directories that the server has served
        self._told: set[str] = set()  # models that it has loaded
        self._refused: list[str] = []  # models that it could not load

    def write(self, model: Model) -> None:
        """Write the version directory if it is missing; a new model appears with its configuration in one rename.

        What the model's last version has too is shared with it by hard link.
        """
        directory = self.repository / model.name
        # Within the repository's root a staged directory would look like a model.
        if not directory.exists():
            with staged_directory(directory, beside=self.repository.parent) as staging:
                (staging / str(model.version)).mkdir()
                place(staging / str(model.version), model.parts)
                (staging / "config.pbtxt").write_text(to_text(model.config), encoding="utf-8")
                self._created.append(directory)
        elif not (directory / str(model.version)).exists():
            self._created.append(directory / str(model.version))
            with staged_directory(directory / str(model.version), beside=self.repository.parent) as staging:
                place(staging, _shared(directory, model.parts))

    def overlap(self, model: Model) -> bool:
        """Let the model serve its version besides those that the repository and the server serve now; return whether it did not.

        Raises:
            ServingError: as `configure`.
        """
        old = read_config(self.repository, model.name)
        assert old is not None  # `write` has put it there
        config = both_versions(old, model.config)
        ready = self._ready.get(model.name, set())
        there = {v for v in ready if (self.repository / model.name / str(v)).is_dir()}
        versions = sorted({*config.version_policy.specific.versions, *there})
        if set(versions) == model.versions and self.server is None:
            return False
        config.version_policy.specific.versions[:] = versions
        self.configure(config)
        return model.version not in ready

    def configure(self, config: pb.ModelConfig) -> None:
        """Write the configuration and load the model, where the repository or the server have another.

        Raises:
            ServingError: the server cannot load it; it serves what it served.
        """
        name, text, versions = config.name, to_text(config), set(config.version_policy.specific.versions)
        self._wait_for_leaving(name, versions)
        path = self.repository / name / "config.pbtxt"
        before = path.read_text(encoding="utf-8")
        if before != text:
            self._changes.append((name, before))
            self._write_config(name, text)
        elif self.server is None or self._ready.get(name) == versions:
            return
        self._load(name, versions)

    def restrict(self, name: str, called: Collection[int]) -> None:
        """Let the model serve none but the `called` of the versions that it serves.

        Raises:
            ServingError: as `configure`.
        """
        config = read_config(self.repository, name)
        assert config is not None
        config.version_policy.specific.versions[:] = [v for v in config.version_policy.specific.versions if v in called]
        self.configure(config)

    def is_open(self, model: Model) -> bool:
        """Return whether the model serves its version as it is to, but for other versions that it may serve besides."""
        config = read_config(self.repository, model.name)
        assert config is not None
        config.version_policy.specific.versions[:] = model.config.version_policy.specific.versions
        return to_text(config) == to_text(model.config)

    def retire(self, name: str) -> None:
        """Take a model that nothing calls out of the server and the repository."""
        if self.server is not None:
            control.unload_model(self.server, name)
        self._discard(self.repository / name)

    def settle(self, models: list[Model]) -> None:
        """Return once the server has no other version of the models: until then that is at work, and the server not ready.

        Raises:
            ServingError: another version is still there after a minute.
        """
        if self.server is not None:
            for model in models:
                control.wait_until_alone(self.server, model.name, *model.versions)

    def undo(self) -> list[str]:
        """Take all back, last first, and return what could not be: the next transition to the same models goes on from there.

        Version directories that no server has served are removed; those that one has keep their number and their content.
        """
        problems: list[str] = []
        for path in reversed(self._created):  # first, as they may have filled the disk
            if not self._is_named(path):
                _try(problems, self._discard, path)
        for name, before in reversed(self._changes):
            _try(problems, self._put_back, name, before)
        if problems:  # what is served may be of this transition
            return problems
        for name, before in self._changes:
            _try(problems, self._settle_again, name, before)
        for path in reversed(self._created):
            _try(problems, self._withdraw, path)
        for name in dict.fromkeys(self._refused):
            _try(problems, self._make_ready, name)
        return list(dict.fromkeys(problems))

    def _load(self, name: str, versions: set[int]) -> None:
        if self.server is None:
            return
        try:
            control.load_model(self.server, name)
        except ServingError:
            self._refused.append(name)
            raise
        self._told.add(name)
        self._loaded |= {self.repository / name / str(version) for version in versions}
        self._ready[name] = versions

    def _wait_for_leaving(self, name: str, versions: set[int]) -> None:
        """Wait until no version that is to come is still being unloaded: of two under one number the server shows one."""
        if self.server is None or not (coming := versions - self._ready.get(name, set())):
            return
        if leaving := coming & (live := control.live_versions(self.server, name)):
            control.wait_until_alone(self.server, name, *(live - leaving))

    def _write_config(self, name: str, text: str) -> None:
        """Write it as the newest file of its model whatever the clock says: or else Triton, told to load it, would do nothing."""
        model = self.repository / name
        time_ns = max(time.time_ns(), _newest_ns(model) + 1)
        with staged_file(model / "config.pbtxt") as file:
            file.write(text.encode())
            file.flush()
            os.utime(file.fileno(), ns=(time_ns, time_ns))

    def _is_named(self, path: Path) -> bool:
        """Return whether a version directory is one that its model's configuration names, or a whole model."""
        if path.parent == self.repository:
            return True
        config = read_config(self.repository, path.parent.name)
        return config is not None and int(path.name) in config.version_policy.specific.versions

    def _put_back(self, name: str, before: str) -> None:
        self._write_config(name, before)
        if name in self._told:
            self._load(name, _versions(before))
            if name in CALLERS:  # what they call is taken back next
                self._settle_again(name, before)

    def _settle_again(self, name: str, before: str) -> None:
        if self.server is not None and name in self._told:
            control.wait_until_alone(self.server, name, *_versions(before))

    def _withdraw(self, path: Path) -> None:
        """Remove what this transition made, but for versions that were served."""
        if path.parent != self.repository:
            if path not in self._loaded:
                self._discard(path)
            return
        if self.server is not None and (path.name in self._ready or path.name in self._refused):
            self._refused = [name for name in self._refused if name != path.name]
            control.unload_model(self.server, path.name)
        self._discard(path)

    def _discard(self, path: Path) -> None:
        discard(path, beside=self.repository.parent)

    def _make_ready(self, name: str) -> None:
        """Have the server forget the version that it could not load: until that number has come and gone it is not ready.

        A copy of the version in service stands in for it for a moment.
        """
        if self.server is None or not (failed := control.failed_versions(self.server, name)):
            return
        if name == "ovr":  # clients that name no version would get the stand-in
            raise ServingError("the server says that it is not ready until a publication succeeds, though it answers")
        config = read_config(self.repository, name)
        assert config is not None
        text = to_text(config)
        versions = list(config.version_policy.specific.versions)
        served = max(versions)  # whom clients that name no version get
        source, stand_ins = self.repository / name / str(served), [self.repository / name / str(version) for version in failed]
        for stand_in in stand_ins:
            with staged_directory(stand_in, beside=self.repository.parent) as staging:
                place(staging, {p.relative_to(source).as_posix(): p for p in source.rglob("*") if p.is_file()})
        config.version_policy.specific.versions.extend(failed)
        try:
            self._write_config(name, to_text(config))
            control.load_model(self.server, name)
        finally:
            self._write_config(name, text)
            control.load_model(self.server, name)
            control.wait_until_alone(self.server, name, *versions)
            for stand_in in stand_ins:
                self._discard(stand_in)


def _shared(model: Path, parts: Mapping[str, bytes | Path]) -> dict[str, bytes | Path]:
    """Return `parts` with each that the model's last version holds with the same bytes as that version's file."""
    last = model / str(max(versions_of(model), default=0))
    return {name: last / name if is_same(last / name, content) else content for name, content in parts.items()}


def _newest_ns(path: Path) -> int:
    """Return the latest time stamp, in nanoseconds, of all that lies at or under `path`, by what Triton compares."""
    try:
        status = path.stat()
    except FileNotFoundError:  # a server's Python replaces what it compiles
        return 0
    newest_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    return max([newest_ns, *(_newest_ns(child) for child in path.iterdir())]) if path.is_dir() else newest_ns


def _versions(text: str) -> set[int]:
    return set(from_text(text, "the configuration before").version_policy.specific.versions)


def is_same(path: Path, content: bytes | Path) -> bool:
    """Return whether the file at `path` is there with this content."""
    size_bytes = len(content) if isinstance(content, bytes) else content.stat().st_size
    if not path.is_file() or path.stat().st_size != size_bytes:
        return False
    return sha256_file(path) == (sha256_bytes(content) if isinstance(content, bytes) else sha256_file(content))


def _try(problems: list[str], step: Callable[..., None], *args: object) -> None:
    try:
        step(*args)
    except (OSError, OvrError) as error:
        problems.append(str(error))
