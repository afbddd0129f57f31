"""Whether a Triton repository serves what signed bundles hold, and nothing else. Knows nothing of how a server is run.

A repository is not signed itself: publishing needs no private key. Each version of the router keeps the signatures of its bundle,
and all that is served with it follows from what was signed: the models by their digests, the model card by the one within the fused
graph, the router by the code of the ovr that checks it, the configurations by what `publish` would write.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from ovr.core.artifact import ModelCard
from ovr.core.bundle import BACKBONE_ONNX, BUNDLE_SIGNATURE, FUSED_ONNX, HEAD_SIGNATURES, SIGNATURES
from ovr.core.faults import PLAN, HeadPlan
from ovr.core.files import sha256_bytes, sha256_file
from ovr.core.ledger import HeadVersion
from ovr.core.onnx_file import GRAPH_OPS, check_onnx_file, onnx_metadata
from ovr.core.signature_files import signatures_in
from ovr.errors import ArtifactError, ConfigError
from ovr.runtime.predictor import CARD_KEY
from ovr.serving.contents import model_names, read_config
from ovr.serving.head_signatures import owners_of, statement
from ovr.serving.labels import labels_file
from ovr.serving.models import num_features_of, router_files, version_with_labels
from ovr.serving.pbtxt import (
    InstanceKind,
    Scheduling,
    backbone_config,
    ensemble_config,
    head_config,
    head_model_name,
    router_config,
    scores_config,
    to_text,
)
from ovr.serving.scores_graph import with_required_cohort
from ovr.serving.signing import Trust, signed_files


def check_repository(repository: Path, trust: Trust) -> dict[str, str]:
    """Return who signed the bundle of each model that the repository serves, by the model's name.

    Compiled Python that servers left beside the router's code is removed: it would be run in place of that code, and is made again.

    Raises:
        ArtifactError: the repository is missing or empty, a publication into it is not finished, its bundle was not signed by one
            who is trusted, or a file that is served is not what follows from the bundle. All such files are named.
        ConfigError: nobody is trusted, or model-signing is not installed.
    """
    if not trust.whole:
        raise ConfigError("no signer of bundles is trusted; give trusted_keys=[FILE] or trusted_certificates=[FILE]")
    version = _served(repository, "ovr")
    router = repository / "ovr" / str(version)
    what = f"version {version} of {repository}"
    for cache in sorted(router.rglob("__pycache__")):
        if cache.is_dir() and cache.resolve().is_relative_to(repository.resolve()):  # no link leads elsewhere
            shutil.rmtree(cache)
    signer, digests = signed_files(router / BUNDLE_SIGNATURE, trust, what=what)
    fused, problems = _fused(repository, router, version, digests)
    if problems:
        raise ArtifactError(f"{what} is not what {signer} signed: {'; '.join(problems)}")
    check_onnx_file(fused, allowed_ops=GRAPH_OPS, what=str(fused))
    try:
        card = ModelCard.from_json(json.loads(onnx_metadata(fused)[CARD_KEY]))
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{fused} has no model card that can be read: {error}") from None
    expected = {f"ovr/{version}/{name}": content for name, content in router_files(card).items()}
    labels = labels_file(card.taxonomy)
    labels_version = version_with_labels(repository, labels, version)
    expected[f"ovr_scores/{labels_version}/labels.txt"] = labels
    signed = {f"ovr_scores/{version}/model.onnx": digests[FUSED_ONNX]} if card.cohorts is None else {}
    signed |= _configurations_and_heads(repository, card, version, labels_version, digests, expected)
    problems = [
        f"{name} is {'another' if (repository / name).is_file() else 'missing'}"
        for name, content in expected.items()
        if not _is(repository / name, sha256_bytes(content if isinstance(content, bytes) else content.read_bytes()))
    ]
    problems += [f"{name} is not the one that was signed" for name, sha256 in signed.items() if not _is(repository / name, sha256)]
    known = {*expected, *signed, f"ovr_scores/{version}/model.onnx"}
    problems += [f"{name} is of no bundle" for name in _present(repository) if name not in known]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ArtifactError(
            f"{what} is not what follows from the bundle that {signer} signed: {'; '.join(problems[:5])}{more}; "
            "publish the bundle into a new repository with this version of ovr"
        )
    _check_owners(router, card, digests, trust)
    return dict.fromkeys(model_names(repository), signer)


def _served(repository: Path, name: str) -> int:
    config = read_config(repository, name)
    if config is None:
        raise ArtifactError(f"{repository} has no model {name!r}; publish a bundle there with `ovr publish`")
    versions = list(config.version_policy.specific.versions)
    if len(versions) != 1:
        raise ArtifactError(f"{repository} serves versions {versions} of {name}: a publication is not finished; repeat it")
    return int(versions[0])


def _fused(repository: Path, router: Path, version: int, digests: dict[str, str]) -> tuple[Path, list[str]]:
    """Return the fused graph as it was signed, and what is wrong with it or with what is served of it."""
    scores, original = repository / "ovr_scores" / str(version) / "model.onnx", router / SIGNATURES / "fused.onnx"
    if not original.is_file():
        return scores, [] if _is(scores, digests.get(FUSED_ONNX)) else [f"ovr_scores/{version}/model.onnx was changed"]
    if not _is(original, digests.get(FUSED_ONNX)):
        return original, [f"ovr/{version}/{SIGNATURES}/fused.onnx was changed"]
    check_onnx_file(original, allowed_ops=GRAPH_OPS, what=str(original))
    if not _is(scores, sha256_bytes(with_required_cohort(original.read_bytes()))):
        return original, [f"ovr_scores/{version}/model.onnx was changed"]
    return original, []


def _configurations_and_heads(
    repository: Path,
    card: ModelCard,
    version: int,
    labels_version: int,
    digests: dict[str, str],
    expected: dict[str, bytes | Path],
) -> dict[str, str]:
    """Add the configurations to `expected`, and return the digests of the models of layout per_head."""
    scheduling = _scheduling(repository)
    plan = replace(_plan(repository), backbone_version=None, earlier={}, before={})  # what `publish` writes of a bundle alone
    configs = [scores_config(card, scheduling, version=version, labels_version=labels_version)]
    signed: dict[str, str] = {}
    if (repository / "ovr_heads").exists():
        backbone = _served(repository, "backbone")
        plan = replace(plan, backbone_version=backbone)
        backbone_file = f"backbone/{backbone}/model.onnx"
        signed[backbone_file] = digests.get(BACKBONE_ONNX, "")
        if not _is(repository / backbone_file, signed[backbone_file]):
            return signed
        num_features = num_features_of(repository / backbone_file)
        configs += [
            ensemble_config(card, scheduling, version=version, backbone_version=backbone),
            backbone_config(card, scheduling, version=backbone, num_features=num_features),
        ]
        for class_id, head_version in zip(card.taxonomy.ids, card.head_versions, strict=True):
            configs.append(head_config(class_id, scheduling, version=head_version, num_features=num_features))
            name = f"{head_model_name(class_id)}/{head_version}/model.onnx"
            signed[name] = digests.get(f"{HeadVersion(class_id, head_version).directory}/model.onnx", "")
    configs.append(router_config(card, scheduling, version=version, plan=plan))
    expected |= {f"{config.name}/config.pbtxt": to_text(config).encode() for config in configs}
    return signed


def _scheduling(repository: Path) -> Scheduling:
    """Return how the scores are run: it is the repository's owner who says so, and nobody signs it."""
    config = read_config(repository, "ovr_scores") or pb.ModelConfig()
    try:
        kind: InstanceKind = pb.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind)
        return Scheduling(
            instance_kind=kind,
            instance_count=config.instance_group[0].count,
            max_batch_size=config.max_batch_size,
            max_queue_delay_us=config.dynamic_batching.max_queue_delay_microseconds,
            max_queue_size=config.dynamic_batching.default_queue_policy.max_queue_size,
            num_threads=int(config.parameters["intra_op_thread_count"].string_value),
        )
    except (IndexError, ValueError, ConfigError) as error:
        raise ArtifactError(f"{repository}/ovr_scores/config.pbtxt is none that `ovr publish` writes: {error}") from None


def _plan(repository: Path) -> HeadPlan:
    """Return what the router does about heads that do not answer, which nobody signs either."""
    config = read_config(repository, "ovr") or pb.ModelConfig()
    try:
        return HeadPlan.from_json(json.loads(config.parameters[PLAN].string_value))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(f"{repository}/ovr/config.pbtxt is none that `ovr publish` writes: {error}") from None


def _present(repository: Path) -> list[str]:
    """Return the files of all served versions, and all outside of version directories; old versions are not loaded."""
    found = []
    for model in sorted(repository.iterdir()):
        config = None if model.is_symlink() or not model.is_dir() else read_config(repository, model.name)
        if config is None:
            found.append(model.name)
            continue
        served = {str(version) for version in config.version_policy.specific.versions}
        for entry in sorted(model.iterdir()):
            if entry.name.isdecimal() and entry.name not in served and not entry.is_symlink():
                continue
            files = [entry] if entry.is_symlink() or not entry.is_dir() else sorted(entry.rglob("*"))
            found += [file.relative_to(repository).as_posix() for file in files if file.is_symlink() or not file.is_dir()]
    skipped = tuple(f"/{name}" for name in (BUNDLE_SIGNATURE, HEAD_SIGNATURES, f"{SIGNATURES}/fused.onnx"))
    return [name for name in found if not (name.startswith("ovr/") and name.endswith(skipped))]


def _check_owners(router: Path, card: ModelCard, digests: dict[str, str], trust: Trust) -> None:
    if not trust.owner_keys:
        return
    statements = {
        class_id: statement(
            class_id, version, card.backbone_sha256, digests, cohorts=None if card.cohorts is None else card.cohorts.of_head(column)
        )
        for column, (class_id, version) in enumerate(zip(card.taxonomy.ids, card.head_versions, strict=True))
    }
    file = router / HEAD_SIGNATURES
    signatures = signatures_in(file) if file.is_file() else {}
    owners_of(card.taxonomy, statements, signatures, trust.owner_keys, what=router)


def _is(file: Path, sha256: str | None) -> bool:
    return file.is_file() and not file.is_symlink() and sha256_file(file) == sha256
