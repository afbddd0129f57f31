"""A bundle's ONNX models as a directory of their own, for other tools and devices.

    card.json             classes, versions, thresholds, decision policy, input
    backbone.onnx         raw rows -> features
    heads/<slug>.onnx     features -> calibrated probability
    fused.onnx            raw rows -> all probabilities, with the card inside

Needs no torch.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from ovr.core.bundle import ModelBundle
from ovr.core.files import canonical_json, place, staged_directory
from ovr.core.taxonomy import slug
from ovr.errors import ArtifactError
from ovr.export.fused import fused_model
from ovr.export.reference import check_fused, check_parts, load_reference


@dataclass(frozen=True, slots=True)
class ExportedFiles:
    """Where `export_onnx` wrote, and the largest difference from the bundle's reference probabilities."""

    path: Path
    num_heads: int
    max_abs_diff: dict[str, float]  # "heads" and "fused"


def export_onnx(bundle: ModelBundle, out_dir: Path) -> ExportedFiles:
    """Write the models of an opened bundle to `out_dir` by one atomic rename.

    Backbone and heads are the bundle's own files, byte for byte; the fused graph is made anew from them. All are checked
    against the bundle's reference rows first.

    Raises:
        ArtifactError: `out_dir` exists or lies within the bundle.
        ArtifactError: a model is not one that ovr serves, or does not give the reference probabilities.
    """
    if out_dir.resolve().is_relative_to(bundle.path.resolve()) and not out_dir.exists():
        raise ArtifactError(f"{out_dir} lies within the bundle {bundle.path}, which is never changed; choose another place")
    with staged_directory(out_dir) as staging:
        reference = load_reference(bundle)
        backbone_bytes = bundle.backbone_onnx.read_bytes()
        head_bytes = {head.class_id: bundle.head_onnx(head).read_bytes() for head in bundle.heads}
        backbone = parsed(backbone_bytes, what="the backbone")
        heads = [parsed(data, what=f"head {class_id!r}") for class_id, data in head_bytes.items()]
        checked = check_parts(backbone, heads, reference)
        fused_bytes, fused_diff = check_fused(fused_model(backbone, heads, bundle.card), reference)
        files: dict[str, bytes | Path] = {
            "card.json": canonical_json(bundle.card.to_json()),
            "backbone.onnx": backbone_bytes,
            "fused.onnx": fused_bytes,
            **{f"heads/{slug(class_id)}.onnx": data for class_id, data in head_bytes.items()},
        }
        place(staging, files)
    return ExportedFiles(out_dir, len(heads), {"heads": checked.max_abs_diff, "fused": fused_diff})


def parsed(data: bytes, *, what: str) -> onnx.ModelProto:
    """Return the ONNX model in `data`, whose digest has been checked.

    Raises:
        ArtifactError: it is none.
    """
    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ArtifactError(f"{what} is not an ONNX file: {error}") from None
