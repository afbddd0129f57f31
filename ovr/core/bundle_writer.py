"""Writing a bundle with a file a head, and what every writer of a bundle needs. Knows not what the files mean."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from ovr.core.artifact import DecisionPolicy, HeadArtifact, ModelCard, check_cohorts, schema_version_with
from ovr.core.bundle import (
    BACKBONE_ONNX,
    FUSED_ONNX,
    HEAD_SIGNATURES,
    MANIFEST,
    SIGNATURES,
    ModelBundle,
    check_columns,
    check_fits,
    head_directory,
)
from ovr.core.cohorts import CohortCalibrations
from ovr.core.files import MAX_JSON_BYTES, canonical_json, place, read_json, sha256_bytes, sha256_file, staged_directory
from ovr.core.ledger import Ledger
from ovr.core.merkle import leaves, root
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError


def write_bundle(
    final: Path,
    *,
    taxonomy: Taxonomy,
    heads: Sequence[HeadArtifact],
    input: InputSchema,
    policy: DecisionPolicy,
    provenance: dict[str, Any],
    parts: Mapping[str, bytes | Path],
    fuse: Callable[[ModelCard], bytes],
    cohorts: CohortCalibrations | None = None,
    ledger: Ledger | None = None,
    signatures: Callable[[Mapping[str, Any]], bytes | None] | None = None,
) -> ModelBundle:
    """Write a bundle to `final` by one atomic rename, and return it opened.

    Args:
        final: must not exist.
        heads: in column order, one a class.
        parts: every file but `manifest.json` and the fused graph, by path relative to the bundle: its content, or an existing
            file to share by hard link. The backbone and one `model.onnx` a head must be among them; a head's `head.json` is
            written where it is not.
        fuse: makes the fused ONNX file from the model card. It is called once the bundle's digest is known; the fused file is
            derived from the rest and its own digest is recorded beside it.
        cohorts: a calibration a cohort and head, beside the heads' own.
        ledger: the classes that the bundle's ancestors had, and the versions of heads that it keeps beside those in use, whose
            files are among the parts; None: it has no past.
        signatures: gives signatures/heads.json by the manifest, of heads that come with their owners' signatures; None: none does.

    Raises:
        ArtifactError: `final` exists; a head does not fit the taxonomy or the backbone; a part is missing or badly named.
    """
    check_columns(heads, taxonomy)
    check_cohorts(cohorts, taxonomy)
    ledger = Ledger(taxonomy.ids) if ledger is None else ledger
    ledger.check(taxonomy)
    files = dict(parts)
    kept = {*(each.directory for each in ledger.earlier), *map(head_directory, heads)}
    check_part_names(files, head_directories=kept)
    if len({head_directory(head) for head in heads}) != len(heads):
        raise ArtifactError("two heads would lie in one directory; rename one of the classes")
    for head in heads:
        name = f"{head_directory(head)}/head.json"
        said = files.setdefault(name, canonical_json(head.to_json()))
        if isinstance(said, Path) and HeadArtifact.from_json(read_json(said)) != head:
            raise ArtifactError(f"{said} tells of another head than the one of class {head.class_id!r}")
    needed = [BACKBONE_ONNX, *(f"{directory}/model.onnx" for directory in sorted(kept))]
    needed += [f"{each.directory}/head.json" for each in ledger.earlier]
    if missing := [relative for relative in needed if relative not in files]:
        raise ArtifactError(f"a bundle needs {', '.join(missing[:5])}")

    classes = taxonomy.to_json()
    manifest: dict[str, Any] = {
        "schema_version": schema_version_with(classes, cohorts),
        "taxonomy": classes,
        "heads": [{"class_id": h.class_id, "version": h.version, "path": head_directory(h)} for h in heads],
        "input": input.to_json(),
        "policy": asdict(policy),
        "provenance": provenance,
        "files": {relative: file_digest(content) for relative, content in sorted(files.items())},
        **({} if cohorts is None else {"cohorts": cohorts.to_json()}),
        **ledger.to_json(taxonomy),
    }
    manifest["merkle_root"] = root(leaves(manifest))
    backbone_sha256 = manifest["files"][BACKBONE_ONNX]["sha256"]
    for head in heads:
        check_fits(head, backbone_sha256)
    manifest["bundle_sha256"] = sha256_bytes(canonical_json(manifest))
    digest = manifest["bundle_sha256"]
    bundle = ModelBundle(
        final,
        taxonomy,
        tuple(heads),
        input,
        policy,
        backbone_sha256,
        digest,
        provenance,
        cohorts=cohorts,
        ledger=ledger,
        merkle_root=manifest["merkle_root"],
    )
    fused = fuse(bundle.card)
    manifest["derived"] = {FUSED_ONNX: file_digest(fused)}
    carried = None if signatures is None else signatures(manifest)
    signed = {} if carried is None else {HEAD_SIGNATURES: carried}
    with staged_directory(final) as staging:
        place(staging, {**files, **signed, FUSED_ONNX: fused, MANIFEST: manifest_bytes(manifest)})
    return bundle


def check_part_names(names: Iterable[str], *, head_directories: Collection[str] = ()) -> None:
    """Raise ArtifactError unless each is a plain relative path of a file that is not written with the bundle.

    Args:
        head_directories: those whose `head.json` may be among the parts.
    """
    for relative in names:
        pure = PurePosixPath(relative)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != relative or relative == ".":
            raise ArtifactError(f"part {relative!r} must be a plain relative path")
        of_no_head = pure.name == "head.json" and str(pure.parent) not in head_directories
        if relative in (MANIFEST, FUSED_ONNX) or of_no_head or pure.parts[0] == SIGNATURES:
            raise ArtifactError(f"part {relative!r} is written with the bundle; leave it out of the parts")


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Return what is written as `manifest.json`.

    Raises:
        ArtifactError: it is too large to be opened again.
    """
    data = canonical_json(manifest)
    if len(data) > MAX_JSON_BYTES:
        raise ArtifactError(
            f"{MANIFEST} takes {len(data)} bytes, of which at most {MAX_JSON_BYTES} are read; shorten ids and names"
        )
    return data


def file_digest(content: bytes | Path) -> dict[str, Any]:
    """Return what the manifest says of a file."""
    if isinstance(content, bytes):
        return {"sha256": sha256_bytes(content), "size_bytes": len(content)}
    return {"sha256": sha256_file(content), "size_bytes": content.stat().st_size}
