"""Versions and aliases in MLflow's model registry: its sqlite store, which works offline, or a server.

A version is a run whose artifacts hold the bundle, and a version of MLflow's registered model with what we note of it as a tag;
aliases are MLflow's own, so that its pages show them and may move them. Aliases of heads, and moves, are tags of the registered
model. MLflow has no way to change two of these at once: the alias is set first, then its move noted. Versions of the same
registered model that others made are passed over.

Over sqlite, a lock beside the file keeps other processes of ovr out. A server has no such lock: two writers at once both
succeed there, and `expect` is refused.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ovr.core.bundle import ModelBundle
from ovr.core.files import canonical_json, staged_directory
from ovr.core.signature_files import take_over
from ovr.core.taxonomy import slug
from ovr.errors import ArtifactError, ConfigError
from ovr.registry.entries import Aliases, HeadPlace, Move, Version, check_name, check_same, check_text
from ovr.registry.lock import locked_file

SQLITE = "sqlite:///"
VERSION_TAG, MOVE_TAG, HEAD_TAG = "ovr.version", "ovr.move.", "ovr.head."
BUNDLE = "bundle"


class MLflow:
    """The model registry at `tracking_uri`."""

    def __init__(self, tracking_uri: str, *, experiment: str, artifacts: str | None, cache: str) -> None:
        """Connect; a sqlite file is made where it is missing.

        Args:
            experiment: whose runs hold the bundles; made where it is missing.
            artifacts: where a new experiment keeps them; None: where the server says.
            cache: a directory for bundles that MLflow keeps on another machine.

        Raises:
            ConfigError: MLflow is not installed, or cannot use the address.
        """
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise ConfigError("registry=mlflow needs MLflow: pip install 'ovr[mlflow]'") from None
        self.tracking_uri, self.experiment, self.cache = tracking_uri, experiment, Path(cache).expanduser()
        self.artifacts = artifacts
        if artifacts is not None and not urlparse(artifacts).scheme:
            self.artifacts = Path(artifacts).expanduser().absolute().as_uri()
        self._failure = MlflowException
        with self._told():
            self._client = MlflowClient(tracking_uri, tracking_uri)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"MLflow's registry {self.tracking_uri}"

    @property
    def excludes_others(self) -> bool:
        """Whether `locked` keeps every other writer out: processes of ovr on a sqlite file."""
        return self.tracking_uri.startswith(SQLITE)

    def models(self) -> list[str]:
        """Return the names of the models that have a version, sorted."""
        with self._told():
            names = [model.name for model in _pages(self._client.search_registered_models)]
        return sorted(name for name in names if self.versions(name))

    def versions(self, model: str) -> list[Version]:
        """Return the versions of a model that were registered here, by their numbers; none where there is no such model."""
        return [version for version, _ in self._found(model)]

    def aliases(self, model: str) -> Aliases:
        """Return what the aliases name now."""
        registered = self._registered(model)
        heads = {}
        for key, value in registered.tags.items():
            if key.startswith(HEAD_TAG):
                told = json.loads(value)
                heads[told["class_id"]] = {alias: HeadPlace(**place) for alias, place in told["aliases"].items()}
        return Aliases({alias: int(number) for alias, number in registered.aliases.items()}, heads)

    def moves(self, model: str) -> list[Move]:
        """Return every move of an alias that was made here, the oldest first."""
        tags = self._registered(model).tags
        return [Move.from_json(json.loads(tags[key])) for key in sorted(key for key in tags if key.startswith(MOVE_TAG))]

    def bundle_path(self, version: Version) -> Path:
        """Return the directory that holds a version's bundle; one on another machine is fetched once.

        Raises:
            ArtifactError: it cannot be fetched.
        """
        from mlflow.artifacts import download_artifacts

        source = next(source for each, source in self._found(version.model) if each.version == version.version)
        with self._told():
            if urlparse(source).scheme in ("", "file"):
                return Path(download_artifacts(artifact_uri=source, tracking_uri=self.tracking_uri))
            kept = self.cache / version.bundle_sha256
            if not kept.is_dir():
                with staged_directory(kept) as staging:  # whole or not at all, whoever else is fetching it
                    download_artifacts(artifact_uri=source, dst_path=str(staging), tracking_uri=self.tracking_uri)
            return kept / BUNDLE

    def register(self, bundle: ModelBundle, model: str, *, who: str, why: str) -> Version:
        """Keep `bundle` as the next version of `model`; the version that it is already, with newer signatures, where it is one.

        Raises:
            ConfigError: a name that cannot be used, or no `who` or `why`.
            ArtifactError: MLflow cannot keep it, or keeps it with another fused graph.
        """
        check_name("model", model)
        check_text("who", who)
        check_text("why", why)
        with self.locked(model), self._told():
            for version in self.versions(model):
                if version.bundle_sha256 == bundle.bundle_sha256:
                    self._sign_again(bundle, version)
                    return version
            noted = Version.of(bundle, model, 0, who=who, why=why)
            if not self._client.search_registered_models(f"name = {_quoted(model)}"):
                self._client.create_registered_model(model)
            found = self._client.get_experiment_by_name(self.experiment)
            experiment = self._client.create_experiment(self.experiment, self.artifacts) if found is None else found.experiment_id
            run = self._client.create_run(experiment, run_name=f"{model} {bundle.bundle_sha256[:12]}").info
            self._client.log_artifacts(run.run_id, str(bundle.path), BUNDLE)
            self._client.set_terminated(run.run_id)
            made = self._client.create_model_version(
                model,
                source=f"{run.artifact_uri}/{BUNDLE}",
                run_id=run.run_id,
                description=why,
                tags={VERSION_TAG: canonical_json(noted.to_json()).decode()},
            )
        return _numbered(made)

    @contextmanager
    def locked(self, model: str) -> Iterator[None]:
        """Keep other processes of ovr away from a sqlite file while the block runs; a server knows no lock."""
        if not self.excludes_others:
            yield
            return
        file = Path(self.tracking_uri.removeprefix(SQLITE))
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked_file(file.with_name(f".{file.name}.lock")):
            yield

    def write(self, model: str, moves: Sequence[Move]) -> None:
        """Set the aliases that these moves move, then note the moves. The caller holds the lock."""
        after, number = self.aliases(model).after(moves), len(self.moves(model))
        with self._told():
            for move in moves:
                if move.class_id is None:
                    self._client.set_registered_model_alias(model, move.alias, str(move.version))
            for class_id in {move.class_id for move in moves if move.class_id is not None}:
                named = {alias: asdict(place) for alias, place in after.heads[class_id].items()}
                value = canonical_json({"class_id": class_id, "aliases": named}).decode()
                self._client.set_registered_model_tag(model, f"{HEAD_TAG}{slug(class_id)}", value)
            for count, move in enumerate(moves, start=number + 1):
                self._client.set_registered_model_tag(model, f"{MOVE_TAG}{count:09d}", canonical_json(move.to_json()).decode())

    def _sign_again(self, bundle: ModelBundle, version: Version) -> None:
        """Give a version the signatures that its bundle has by now, where MLflow keeps it and in this machine's cache."""
        source = next(source for each, source in self._found(version.model) if each.version == version.version)
        kept = self.bundle_path(version)
        check_same(bundle, kept)
        changed = take_over(bundle.path, kept)
        if urlparse(source).scheme not in ("", "file"):
            run_id = self._client.get_model_version(version.model, str(version.version)).run_id
            for name in changed:
                self._client.log_artifact(run_id, str(kept / name), f"{BUNDLE}/{Path(name).parent}")

    def _registered(self, model: str) -> Any:
        with self._told():
            return self._client.get_registered_model(model)

    def _found(self, model: str) -> list[tuple[Version, str]]:
        """Return the versions that were registered here, with where MLflow keeps each."""
        with self._told():
            found = _pages(lambda **page: self._client.search_model_versions(f"name = {_quoted(model)}", **page))
        ours = [(_numbered(version), str(version.source)) for version in found if VERSION_TAG in version.tags]
        return sorted(ours, key=lambda each: each[0].version)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Let MLflow's own errors be ours."""
        try:
            yield
        except self._failure as error:
            message = f"{self.name}: {' '.join(str(error).split())}"
            if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                raise ConfigError(message) from error
            raise ArtifactError(message) from error


def _numbered(version: Any) -> Version:
    """Return what is noted of one of MLflow's versions, with the number that MLflow gave it."""
    return replace(Version.from_json(json.loads(version.tags[VERSION_TAG])), version=int(version.version))


def _pages(search: Callable[..., Any]) -> list[Any]:
    """Return what all pages of a search hold."""
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def _quoted(model: str) -> str:
    """Return a name for MLflow's filters, which know no escapes.

    Raises:
        ConfigError: it has quotes of both kinds.
    """
    if "'" not in model:
        return f"'{model}'"
    if '"' in model:
        raise ConfigError(f"model is {model!r}; MLflow takes no name with quotes of both kinds")
    return f'"{model}"'
