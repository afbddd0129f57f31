"""Writing a bundle with head shards, file by file: no more than one shard is in memory. Knows not what the files mean.

K = heads
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ovr.core.artifact import COLUMNS_SCHEMA_VERSION, DecisionPolicy, ModelCard
from ovr.core.bundle import BACKBONE_ONNX, FUSED_ONNX, MANIFEST, ModelBundle
from ovr.core.bundle_writer import check_part_names, file_digest, manifest_bytes
from ovr.core.files import canonical_json, place, sha256_bytes, staged_directory
from ovr.core.heads import HeadColumns
from ovr.core.schema import InputSchema
from ovr.core.shards import FIGURES, Shard
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError


def write_sharded_bundle(
    final: Path,
    *,
    taxonomy: Taxonomy,
    heads: HeadColumns,
    shards: tuple[Shard, ...],
    input: InputSchema,
    policy: DecisionPolicy,
    provenance: dict[str, Any],
    parts: Mapping[str, bytes | Path],
    shard_parts: Callable[[Shard], Mapping[str, bytes | Path]],
    fuse: Callable[[ModelCard], bytes | None],
) -> ModelBundle:
    """Write a bundle to `final` by one atomic rename, and return it opened.

    Args:
        final: must not exist.
        parts: every file but `manifest.json`, the shards and the fused graph; the backbone and the figures a class among them.
        shard_parts: gives the files of a shard, or existing ones to share by hard link; called once for each, in column order.
        fuse: makes the fused ONNX file from the model card, or None where it does not fit one file. It is called last.

    Raises:
        ArtifactError: `final` exists; the heads do not fit the taxonomy or the backbone; a part is missing or badly named.
    """
    check_part_names(parts)
    if missing := [relative for relative in (BACKBONE_ONNX, FIGURES) if relative not in parts]:
        raise ArtifactError(f"a bundle needs {', '.join(missing)}")
    if tuple(heads.class_ids) != taxonomy.ids:
        raise ArtifactError(f"the {len(heads)} heads are not those of the taxonomy's {len(taxonomy)} classes")
    files = {relative: file_digest(content) for relative, content in parts.items()}
    backbone_sha256 = files[BACKBONE_ONNX]["sha256"]
    if heads.backbone_sha256 != backbone_sha256:
        raise ArtifactError(
            f"the heads were trained on backbone {heads.backbone_sha256[:12]}, this bundle has {backbone_sha256[:12]}"
        )
    with staged_directory(final) as staging:
        place(staging, parts)
        for shard in shards:
            made = shard_parts(shard)
            if set(made) != {shard.heads_file, shard.onnx_file}:
                raise ArtifactError(f"a shard needs {shard.heads_file} and {shard.onnx_file}, got {sorted(made)}")
            place(staging, made)
            files |= {relative: file_digest(content) for relative, content in made.items()}
        manifest: dict[str, Any] = {
            "schema_version": COLUMNS_SCHEMA_VERSION,
            "taxonomy": taxonomy.to_json(),
            "shards": [asdict(shard) for shard in shards],
            "input": input.to_json(),
            "policy": asdict(policy),
            "provenance": provenance,
            "files": files,
        }
        manifest["bundle_sha256"] = sha256_bytes(canonical_json(manifest))
        bundle = ModelBundle(
            final, taxonomy, heads, input, policy, backbone_sha256, manifest["bundle_sha256"], provenance, shards=shards
        )
        fused = fuse(bundle.card)
        manifest["derived"] = {} if fused is None else {FUSED_ONNX: file_digest(fused)}
        place(staging, {MANIFEST: manifest_bytes(manifest), **({} if fused is None else {FUSED_ONNX: fused})})
    return replace(bundle, has_fused=fused is not None)
