"""Publishing a bundle into a Triton model repository. Knows where things lie in it, not how a server is run.

    ovr_scores/<N>/model.onnx, labels.txt        raw rows -> all probabilities (the fused graph; with cohorts, see `scores_graph`)
    ovr/<N>/model.py, card.json, ovr/...         the router, with the files of ovr that it imports, the bundle's signatures
    backbone/<V>/model.onnx                      raw rows -> features              } layout per_head
    head_<slug>/<version>/model.onnx             features -> one probability       }
    ovr_heads/<N>/                               ensemble of the last two          }

Every version directory is staged beside the repository, renamed, and never changed. What is served is said by the configurations
alone: each names its versions, and the router and the ensemble name those that they call. A change goes through a state in which
the callees serve the old and the new version, so that at every moment, and after a crash at any, the callers find theirs.
"""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from tritonclient.grpc import model_config_pb2 as pb

from ovr.core.artifact import ModelCard
from ovr.core.bundle import BUNDLE_SIGNATURE, HEAD_SIGNATURES, SIGNATURES, ModelBundle
from ovr.core.cohorts import COHORT
from ovr.core.files import canonical_json, fsync_directory, place, read_json, sha256_file, staged_directory, write_file
from ovr.errors import ArtifactError, ConfigError, ServingError
from ovr.input.encoder import KINDS
from ovr.serving import control
from ovr.serving.contents import model_names, read_config, versions_of
from ovr.serving.labels import labels_file
from ovr.serving.pbtxt import (
    CARD,
    VERSION,
    InstanceKind,
    Scheduling,
    backbone_config,
    both_versions,
    ensemble_config,
    head_config,
    router_config,
    router_input,
    scores_config,
    to_text,
)
from ovr.serving.scores_graph import with_required_cohort
from ovr.serving.vendored import import_closure

log = logging.getLogger(__name__)

Layout = Literal["fused", "per_head"]
ROUTER = "ovr.runtime.triton.router"
ROUTER_MODEL_PY = f"""\"\"\"The router: {ROUTER} from the copy of ovr in this directory.\"\"\"

import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the stub does not heed the environment variable
sys.path.insert(0, str(Path(__file__).resolve().parent))

from {ROUTER} import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
"""


@dataclass(frozen=True, slots=True)
class Published:
    """What `publish` made."""

    repository: Path
    layout: Layout
    bundle_sha256: str
    versions: dict[str, int]  # Triton model -> the version that it serves now, callees before their callers


@dataclass(frozen=True, slots=True)
class _Model:
    """One model of a publication: its configuration and the files of its version directory."""

    config: pb.ModelConfig
    parts: Mapping[str, bytes | Path]

    @property
    def version(self) -> int:
        return int(self.config.version_policy.specific.versions[0])


def publish(
    bundle: ModelBundle,
    repository: Path,
    *,
    layout: Layout = "fused",
    instance_kind: InstanceKind = "KIND_CPU",
    instance_count: int = 1,
    max_batch_size: int = 256,
    max_queue_delay_us: int = 0,
    max_queue_size: int = 1024,
    num_threads: int = 1,
    server: str | None = None,
) -> Published:
    """Publish `bundle` into the Triton repository at `repository` and return what is served now.

    Args:
        bundle: as `open_bundle` returned it.
        repository: made if missing; its parent must be on the same file system.
        layout: `per_head` adds the backbone, a model a head and their ensemble `ovr_heads` to the models of `fused`.
        instance_kind: of the ONNX models; the router always runs on the CPU.
        max_queue_delay_us: how long Triton may keep a request waiting for others to batch it with.
        max_queue_size: waiting requests a model; more are refused. 0: no limit.
        num_threads: of one ONNX session; 0: as many as there are cores.
        server: HTTP address of a running server on this repository, which loads each change when it is written.

    Raises:
        ArtifactError: the bundle is published there already, another head has this head's version, or the repository serves
            another input or layout, or cohorts where this bundle has none, or none where it has; the bundle has no fused graph, or
            head shards or cohorts with layout per_head. Nothing has been written then.
        ConfigError: a value that cannot be used.
        ServingError: `server` is not there or serves another repository (nothing has been written), or cannot load what was
            published.
    """
    if layout not in ("fused", "per_head"):
        raise ConfigError(f"layout is {layout!r}; expected 'fused' or 'per_head'")
    if layout == "per_head" and bundle.shards:
        raise ArtifactError(
            f"layout per_head serves a model a head, and bundle {bundle.path} keeps its {len(bundle.heads)} heads in shards; "
            "publish it with layout fused"
        )
    if layout == "per_head" and bundle.cohorts is not None:
        raise ArtifactError(
            f"layout per_head serves each head with its pooled calibration, and bundle {bundle.path} has one for each of "
            f"{bundle.cohorts.column}={', '.join(bundle.cohorts.names[:5])}; publish it with layout fused"
        )
    scheduling = Scheduling(instance_kind, instance_count, max_batch_size, max_queue_delay_us, max_queue_size, num_threads)
    repository = repository.absolute()
    if repository.resolve().is_relative_to(bundle.path.resolve()):
        raise ArtifactError(f"{repository} lies within the bundle {bundle.path}, which is never changed; choose another place")
    on_change: Callable[[str], None] = lambda name: None  # noqa: E731
    if server is not None:
        control.check_live(server)
        url = server
        on_change = lambda name: control.load_model(url, name)  # noqa: E731
    with _locked(repository):
        if server is not None:
            _check_serves(server, repository)
        _check_same_use(repository, bundle, layout)
        version = _next_version(repository, bundle, layout)
        callees, callers = _models(repository, bundle, layout, scheduling, version)
        _check_versions(repository, [*callees, *callers])
        for model in (*callees, *callers):
            _write_version(repository, model, on_change)
        _configure(repository, _overlap(repository, callees), on_change)
        _configure(repository, [model.config for model in callers], on_change)
        if server is not None:
            # What the old callers still work on needs the old callees.
            for model in callers:
                control.wait_until_alone(server, model.config.name, model.version)
        _configure(repository, [model.config for model in callees], on_change)
    versions = {model.config.name: model.version for model in (*callees, *callers)}
    log.info("published bundle %s as version %d in %s (%s)", bundle.bundle_sha256[:12], version, repository, layout)
    return Published(repository, layout, bundle.bundle_sha256, versions)


def _models(
    repository: Path, bundle: ModelBundle, layout: Layout, scheduling: Scheduling, version: int
) -> tuple[list[_Model], list[_Model]]:
    """Return the models that others call, and those that call them."""
    card = bundle.card
    labels = labels_file(card.taxonomy)
    fused: bytes | Path = bundle.fused_onnx
    if isinstance(fused, Path) and card.cohorts is not None:
        fused = with_required_cohort(fused.read_bytes())
    callees = [_Model(scores_config(card, scheduling, version=version), {"model.onnx": fused, "labels.txt": labels})]
    router = router_files(card)
    signatures = [bundle.path / name for name in (BUNDLE_SIGNATURE, HEAD_SIGNATURES) if (bundle.path / name).is_file()]
    router |= {f"{SIGNATURES}/{file.name}": file for file in signatures}
    if signatures and isinstance(fused, bytes):
        router[f"{SIGNATURES}/fused.onnx"] = bundle.fused_onnx  # what was signed; the scores have it changed
    callers = [_Model(router_config(card, scheduling, version=version), router)]
    if layout == "per_head":
        num_features = num_features_of(bundle.backbone_onnx)
        backbone_version = _version_of(repository / "backbone", bundle.backbone_onnx)
        backbone = backbone_config(card, scheduling, version=backbone_version, num_features=num_features)
        callees.append(_Model(backbone, {"model.onnx": bundle.backbone_onnx}))
        for head in bundle.heads:
            config = head_config(head.class_id, scheduling, version=head.version, num_features=num_features)
            callees.append(_Model(config, {"model.onnx": bundle.head_onnx(head)}))
        ensemble = ensemble_config(card, scheduling, version=version, backbone_version=backbone_version)
        callers.insert(0, _Model(ensemble, {}))
    return callees, callers


def router_files(card: ModelCard) -> dict[str, bytes | Path]:
    """Return what the router's version directory holds, signatures apart: its code is this ovr's own."""
    files: dict[str, bytes | Path] = {"model.py": ROUTER_MODEL_PY.encode(), "card.json": canonical_json(card.to_json())}
    files |= import_closure(ROUTER)
    if card.input.raw_kind is not None:
        files |= import_closure(KINDS[card.input.raw_kind].rpartition(".")[0])
    return files


def num_features_of(backbone_onnx: Path) -> int:
    """Return D of a backbone's ONNX file."""
    shape = onnx.load(backbone_onnx, load_external_data=False).graph.output[0].type.tensor_type.shape
    num_features = int(shape.dim[-1].dim_value)
    if len(shape.dim) != 2 or num_features < 1:
        raise ArtifactError(f"{backbone_onnx} must return features of a fixed size (B, D), got {len(shape.dim)} axes")
    return num_features


def _check_serves(server: str, repository: Path) -> None:
    """Raise ServingError where the server's router is none of the repository's: what is published would not be loaded."""
    parameters = control.model_parameters(server, "ovr")
    if parameters is None:
        return
    try:
        version, bundle_sha256 = int(parameters[VERSION]), str(json.loads(parameters[CARD])["bundle_sha256"])
    except (KeyError, ValueError, TypeError):
        raise ServingError(f"the server at {server} has a model 'ovr' that was not published by ovr") from None
    card = repository / "ovr" / str(version) / "card.json"
    if not card.is_file() or read_json(card)["bundle_sha256"] != bundle_sha256:
        raise ServingError(
            f"the server at {server} serves another repository than {repository}: its model 'ovr' is version {version} of bundle "
            f"{bundle_sha256[:12]}, which is not there"
        )


def _check_same_use(repository: Path, bundle: ModelBundle, layout: Layout) -> None:
    """Raise ArtifactError where clients of what the repository serves could not go on."""
    served = read_config(repository, "ovr")
    if served is None:
        return
    name, shape = served.input[0].name, tuple(served.input[0].dims)
    wanted_name, wanted_shape = router_input(bundle.input)
    if (name, shape) != (wanted_name, wanted_shape):
        raise ArtifactError(
            f"{repository} serves rows of shape {shape} as input {name!r}, this bundle takes {wanted_shape} as "
            f"{wanted_name!r}; publish it into a repository of its own"
        )
    if any(tensor.name == COHORT for tensor in served.input) != (bundle.cohorts is not None):
        # The scores take a cohort from all that call them, or from none: old and new versions could not be served side by side.
        what, has = ("no cohorts", "some") if bundle.cohorts is not None else ("cohorts", "none")
        raise ArtifactError(f"{repository} serves {what} and this bundle has {has}; publish it into a repository of its own")
    if layout == "fused" and read_config(repository, "ovr_heads") is not None:
        raise ArtifactError(f"{repository} has layout per_head and its heads would stay behind; publish with layout per_head")


def _next_version(repository: Path, bundle: ModelBundle, layout: Layout) -> int:
    """Return the version to publish as: the next free one, or that of this bundle where a publication was not finished."""
    served = read_config(repository, "ovr")
    last = int(served.parameters[VERSION].string_value) if served is not None else 0
    for version in versions_of(repository / "ovr"):
        card = repository / "ovr" / str(version) / "card.json"
        if read_json(card)["bundle_sha256"] != bundle.bundle_sha256:
            continue
        unfinished = version > last or (version == last and _is_unfinished(repository, layout, version))
        if not unfinished:
            raise ArtifactError(f"{repository} holds this bundle ({bundle.bundle_sha256[:12]}) already, as version {version}")
        return version
    return 1 + max(v for name in ("ovr_scores", "ovr", "ovr_heads") for v in (0, *versions_of(repository / name)))


def _is_unfinished(repository: Path, layout: Layout, version: int) -> bool:
    """Return whether the version that is served lacks the layout's ensemble, or the one before it was not put out of service."""
    if layout == "per_head" and version not in versions_of(repository / "ovr_heads"):
        return True
    configs = (read_config(repository, name) for name in model_names(repository))
    return any(config is not None and len(config.version_policy.specific.versions) > 1 for config in configs)


def _version_of(model: Path, content: Path) -> int:
    """Return the version of `model` that holds `content`, or else the next free one."""
    versions = versions_of(model)
    return next((v for v in versions if _same(model / str(v) / "model.onnx", content)), 1 + max(versions, default=0))


def _check_versions(repository: Path, models: list[_Model]) -> None:
    """Raise ArtifactError where a version directory that this publication needs is there with another content."""
    clashes = []
    for model in models:
        directory = repository / model.config.name / str(model.version)
        onnx_file = model.parts.get("model.onnx")
        if isinstance(onnx_file, Path) and directory.exists() and not _same(directory / "model.onnx", onnx_file):
            clashes.append(f"{model.config.name} version {model.version}")
    if clashes:
        more = f" and {len(clashes) - 5} more" if len(clashes) > 5 else ""
        raise ArtifactError(
            f"{repository} has {', '.join(clashes[:5])}{more} with other weights; a version is never overwritten: "
            "give the new heads a higher version (`ovr train version=...`)"
        )


def _write_version(repository: Path, model: _Model, on_change: Callable[[str], None]) -> None:
    """Write the version directory if it is missing; a new model appears with its configuration in one rename."""
    directory = repository / model.config.name
    # Within the repository's root a staged directory would look like a model.
    if not directory.exists():
        with staged_directory(directory, beside=repository.parent) as staging:
            (staging / str(model.version)).mkdir()
            place(staging / str(model.version), model.parts)
            (staging / "config.pbtxt").write_text(to_text(model.config), encoding="utf-8")
        on_change(model.config.name)
    elif not (directory / str(model.version)).exists():
        with staged_directory(directory / str(model.version), beside=repository.parent) as staging:
            place(staging, model.parts)


def _overlap(repository: Path, callees: list[_Model]) -> list[pb.ModelConfig]:
    """Return the configurations by which those that change serve the old and the new version."""
    configs = []
    for model in callees:
        old = read_config(repository, model.config.name)
        if old is not None and list(old.version_policy.specific.versions) != [model.version]:
            configs.append(both_versions(old, model.config))
    return configs


def _configure(repository: Path, configs: Sequence[pb.ModelConfig], on_change: Callable[[str], None]) -> None:
    """Write each configuration that differs from the one that is there."""
    for config in configs:
        path = repository / config.name / "config.pbtxt"
        if path.read_text(encoding="utf-8") != (text := to_text(config)):
            write_file(path, text.encode())
            on_change(config.name)


def _same(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_size == other.stat().st_size and sha256_file(path) == sha256_file(other)


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """Make the repository where it is missing, and keep other publishers out of it."""
    existed = repository.exists()
    if existed and not repository.is_dir():
        raise ArtifactError(f"{repository} is a file; expected a directory, or a place to make one")
    repository.mkdir(parents=True, exist_ok=True)
    if repository.stat().st_dev != repository.parent.stat().st_dev:
        raise ArtifactError(
            f"{repository} and {repository.parent} are on different file systems, so that no version could appear at once; "
            "make the repository a directory within the mounted one"
        )
    descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(f"another process is publishing into {repository}") from None
        yield
        fsync_directory(repository.parent)
    finally:
        os.close(descriptor)
        if not existed and not any(repository.iterdir()):
            repository.rmdir()
