"""A trained model as a bundle: every head, the backbone and the fused graph as ONNX, each checked against torch before it is kept.

N = rows, D = features, K = heads, C = heads of one block
"""

import logging
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import Calibration, DecisionPolicy, HeadArtifact, ModelCard
from ovr.core.bundle import BACKBONE_ONNX, BACKBONE_WEIGHTS, ModelBundle, head_directory
from ovr.core.bundle_writer import write_bundle
from ovr.core.cohorts import CohortCalibrations
from ovr.core.files import canonical_json, sha256_bytes
from ovr.core.schema import InputSchema, check_rows
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import Taxonomy
from ovr.core.thresholds import Thresholds
from ovr.errors import ArtifactError
from ovr.export.backbone import backbone_model, backbone_weights
from ovr.export.fused import fused_model
from ovr.export.head import head_metadata, head_model
from ovr.export.reference import check_fused, check_parts
from ovr.head import EVERY
from ovr.model import OvrModel
from ovr.runtime.reference import Reference, tolerances

log = logging.getLogger(__name__)


def export_bundle(
    final: Path,
    *,
    model: OvrModel,
    taxonomy: Taxonomy,
    input: InputSchema,
    policy: DecisionPolicy,
    calibrations: Sequence[Calibration],
    thresholds: Thresholds | Sequence[float],
    versions: Sequence[int],
    metrics: Sequence[dict[str, dict[str, Any]]],
    reference_rows: NDArray[np.float32],
    calibration_arrays: Mapping[str, NDArray[Any]],
    report: dict[str, Any],
    provenance: dict[str, Any],
    data_parts: Mapping[str, bytes],
    cohorts: CohortCalibrations | None = None,
) -> tuple[ModelBundle, dict[str, float]]:
    """Write the bundle of `model` to `final` and return it, with the largest differences between torch and ONNX Runtime.

    The model itself is left as it is, on its device and in its mode.

    Args:
        final: must not exist.
        calibrations, thresholds, versions, metrics: one a class, in column order.
        reference_rows: raw rows (N, *input.shape), N >= 1, that the bundle keeps with torch's probabilities for them.
        calibration_arrays: kept as calibration/<name>.npy: logit, target and mask (N, K) of the calibration rows.
        report: kept as report/metrics.json.
        data_parts: files of the data card, by their place in the bundle.
        cohorts: a calibration a cohort and head, which the fused graph has beside the heads' own.

    Returns:
        The bundle, and over the reference rows the largest absolute difference of a probability from torch's: "heads" through the
        backbone's and the heads' own files, "fused" through the fused graph, whatever the
        cohort.

    Raises:
        ArtifactError: `final` exists; counts that differ; a model that cannot be exported, or not within 1e-5 of torch
            (times the head's scale where that is above 1). Nothing is written then.
    """
    chosen = Thresholds.of(thresholds)
    counts: dict[str, Sized] = {"calibrations": calibrations, "thresholds": chosen, "versions": versions, "metrics": metrics}
    for name, values in counts.items():
        if len(values) != len(taxonomy):
            raise ArtifactError(f"{len(values)} {name} for {len(taxonomy)} classes; expected one a class")
    x = check_rows(reference_rows, input)
    head_module: Any = model.head
    logit_NK = torch_logits(model, x)[0]
    prob_NK = calibrated_prob(logit_NK, calibrations)
    kept_NK = None if cohorts is None else logit_NK
    reference = Reference(x, prob_NK, tolerances(calibrations), taxonomy.ids, cohorts, kept_NK)
    backbone = backbone_model(model, input)
    backbone_sha256 = sha256_bytes(backbone.SerializeToString(deterministic=True))
    heads = [
        HeadArtifact(spec.id, version, backbone_sha256, head_module.kind, calibration, threshold, figures, threshold_status=status)
        for spec, version, calibration, threshold, status, figures in zip(
            taxonomy, versions, calibrations, chosen.threshold_K.tolist(), chosen.status_K, metrics, strict=True
        )
    ]
    protos = [
        head_model(head.kind, head_module.head_weights(column), head.calibration, head_metadata(head))
        for column, head in enumerate(heads)
    ]
    checked = check_parts(backbone, protos, reference)
    log.info("backbone and %d heads agree with torch within %.1e on %d rows", len(heads), checked.max_abs_diff, len(x))
    diffs = {"heads": checked.max_abs_diff}

    def fuse(card: ModelCard) -> bytes:
        data, diffs["fused"] = check_fused(fused_model(backbone, protos, card), reference)
        return data

    parts: dict[str, bytes | Path] = {BACKBONE_ONNX: checked.backbone, BACKBONE_WEIGHTS: backbone_weights(model)}
    parts |= {f"{head_directory(head)}/model.onnx": data for head, data in zip(heads, checked.heads, strict=True)}
    parts |= {**reference.parts(), **data_parts}
    parts |= {f"calibration/{name}.npy": npy_bytes(array) for name, array in calibration_arrays.items()}
    parts["report/metrics.json"] = canonical_json(report)
    bundle = write_bundle(
        final,
        taxonomy=taxonomy,
        heads=heads,
        input=input,
        policy=policy,
        provenance=provenance,
        parts=parts,
        fuse=fuse,
        cohorts=cohorts,
    )
    return bundle, diffs


def torch_prob(
    model: OvrModel, x: NDArray[np.float32], calibrations: Sequence[Calibration], blocks: Sequence[slice] = (EVERY,)
) -> NDArray[np.float64]:
    """Return torch's calibrated probabilities (N, K), in eval mode, computed in blocks of heads; the model's mode is put back."""
    parts = zip(torch_logits(model, x, blocks), blocks, strict=True)
    return np.concatenate([calibrated_prob(logit_NC, calibrations[here]) for logit_NC, here in parts], axis=1)


def torch_logits(model: OvrModel, x: NDArray[np.float32], blocks: Sequence[slice] = (EVERY,)) -> list[NDArray[np.float32]]:
    """Return torch's logits (N, C) of each block of heads, in eval mode; the model's mode is put back."""
    was_training = model.training
    device = next(iter(model.state_dict().values())).device
    model.eval()
    try:
        with torch.inference_mode():
            z_ND = model.features(torch.from_numpy(x).to(device))
            return [model.head(z_ND, columns).float().cpu().numpy() for columns in blocks]
    finally:
        model.train(was_training)
