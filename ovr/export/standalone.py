"""A bundle's ONNX models as a directory of their own, for other tools and devices.

    card.json             classes, versions, thresholds, decision policy, input
    backbone.onnx         raw rows -> features
    heads/<slug>.onnx     features -> calibrated probability; heads/shard-<number>.onnx, of many heads, where the bundle has shards
    fused.onnx            raw rows -> all probabilities, with the card inside

Needs no torch.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ovr.core.bundle import ModelBundle
from ovr.core.files import canonical_json, place, staged_directory
from ovr.core.onnx_file import GRAPH_OPS
from ovr.core.taxonomy import slug
from ovr.errors import ArtifactError, ConfigError
from ovr.export.check import check_structure, run
from ovr.export.derived import check_derived
from ovr.export.fused import fused_model
from ovr.export.reference import check_fused, check_parts
from ovr.export.shard import shard_file
from ovr.export.stored import parsed, stored_models
from ovr.runtime.reference import load_reference


@dataclass(frozen=True, slots=True)
class ExportedFiles:
    """Where `export_onnx` wrote, and the largest difference from the bundle's reference probabilities."""

    path: Path
    num_heads: int
    max_abs_diff: dict[str, float]  # "heads", and "fused" where that was written


def export_onnx(bundle: ModelBundle, out_dir: Path, *, class_ids: Collection[str] | None = None) -> ExportedFiles:
    """Write the models of an opened bundle to `out_dir` by one atomic rename.

    Backbone, heads and shards are the bundle's own files, byte for byte; the fused graph of a bundle without shards is made anew
    from them. All are checked against the bundle's reference rows first.

    Args:
        class_ids: these heads only, a file each, and the backbone; by default all heads, the card and the fused graph.

    Raises:
        ArtifactError: `out_dir` exists or lies within the bundle.
        ArtifactError: a model is not one that ovr serves, or does not give the reference probabilities; the fused graph of head
            shards is not theirs.
        ConfigError: no class id is given.
        TaxonomyError: a class id that the bundle does not have.
    """
    if out_dir.resolve().is_relative_to(bundle.path.resolve()) and not out_dir.exists():
        raise ArtifactError(f"{out_dir} lies within the bundle {bundle.path}, which is never changed; choose another place")
    if class_ids is not None and not class_ids:
        raise ConfigError("heads is an empty list; name the class ids of the heads to export, or leave it out to export all")
    columns = None if class_ids is None else sorted({bundle.taxonomy.column(class_id) for class_id in class_ids})
    with staged_directory(out_dir) as staging:
        if columns is not None:
            num_heads, diffs = len(columns), _place_some(bundle, columns, staging)
        else:
            num_heads, diffs = len(bundle.heads), (_place_shards if bundle.shards else _place_all)(bundle, staging)
            place(staging, {"card.json": canonical_json(bundle.card.to_json())})
    return ExportedFiles(out_dir, num_heads, diffs)


def _place_all(bundle: ModelBundle, staging: Path) -> dict[str, float]:
    reference = load_reference(bundle)
    backbone_bytes = bundle.backbone_onnx.read_bytes()
    head_bytes = {head.class_id: bundle.head_onnx(head).read_bytes() for head in bundle.heads}
    backbone = parsed(backbone_bytes, what="the backbone")
    heads = [parsed(data, what=f"head {class_id!r}") for class_id, data in head_bytes.items()]
    checked = check_parts(backbone, heads, reference)
    fused_bytes, fused_diff = check_fused(fused_model(backbone, heads, bundle.card), reference)
    place(staging, {"backbone.onnx": backbone_bytes, "fused.onnx": fused_bytes})
    place(staging, {f"heads/{slug(class_id)}.onnx": data for class_id, data in head_bytes.items()})
    return {"heads": checked.max_abs_diff, "fused": fused_diff}


def _place_some(bundle: ModelBundle, columns: list[int], staging: Path) -> dict[str, float]:
    backbone_bytes = bundle.backbone_onnx.read_bytes()
    models = list(stored_models(bundle, columns))
    checked = check_parts(parsed(backbone_bytes, what="the backbone"), models, load_reference(bundle).of(columns))
    place(staging, {"backbone.onnx": backbone_bytes})
    names = [slug(bundle.taxonomy[column].id) for column in columns]
    place(staging, {f"heads/{name}.onnx": data for name, data in zip(names, checked.heads, strict=True)})
    return {"heads": checked.max_abs_diff}


def _place_shards(bundle: ModelBundle, staging: Path) -> dict[str, float]:
    reference = load_reference(bundle)
    backbone_bytes = bundle.backbone_onnx.read_bytes()
    backbone = parsed(backbone_bytes, what="the backbone")
    features_ND = run(check_structure(backbone, allowed_ops=GRAPH_OPS, what="the backbone"), reference.x)
    place(staging, {"backbone.onnx": backbone_bytes})
    diffs = {"heads": 0.0}
    for shard in bundle.shards:
        data = (bundle.path / shard.onnx_file).read_bytes()
        shard_file(parsed(data, what=shard.path), what=shard.path)
        diff = reference.of(shard.columns).compare(run(data, features_ND), what=f"the backbone with {shard.path}")
        diffs["heads"] = max(diffs["heads"], diff)
        place(staging, {f"{shard.path}.onnx": data})
    if bundle.has_fused:
        check_derived(bundle)
        data, diffs["fused"] = check_fused(parsed(bundle.fused_onnx.read_bytes(), what="the fused graph"), reference)
        place(staging, {"fused.onnx": data})
    return diffs
