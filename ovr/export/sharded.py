"""A trained model with very many heads as a bundle of shards, each checked against torch before it is kept. One shard at a time.

N = rows, K = heads, S = heads of one shard
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import DecisionPolicy, ModelCard
from ovr.core.bundle import BACKBONE_ONNX, BACKBONE_WEIGHTS, ModelBundle
from ovr.core.calibrations import Calibrations
from ovr.core.files import canonical_json, sha256_bytes
from ovr.core.heads import Figures, HeadColumns
from ovr.core.onnx_file import GRAPH_OPS
from ovr.core.schema import InputSchema, check_rows
from ovr.core.sharded_bundle import write_sharded_bundle
from ovr.core.shards import FIGURES, Shard, npy_bytes, npz_bytes, read_figures, shard_bytes, shards_of
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError
from ovr.export import check
from ovr.export.backbone import backbone_model, backbone_weights
from ovr.export.bundle import torch_prob
from ovr.export.fused import fused_model_of_stack
from ovr.export.heads_graph import Stack, blank, folded
from ovr.export.reference import check_fused
from ovr.export.shard import check_stack, shard_file, shard_metadata, shard_model
from ovr.model import OvrModel
from ovr.runtime.reference import Reference, tolerances

log = logging.getLogger(__name__)

REFERENCE_VALUES = (
    1 << 23
)  # rows times heads, or their hidden units, of the rows kept for reference: 64 MiB of probabilities at most
MAX_FUSED_BYTES = check.MAX_MODEL_BYTES - (1 << 20)  # weights, backbone and card; the rest is for nodes and names


def export_sharded_bundle(
    final: Path,
    *,
    model: OvrModel,
    taxonomy: Taxonomy,
    input: InputSchema,
    policy: DecisionPolicy,
    calibrations: Calibrations,
    threshold_K: NDArray[np.float64],
    threshold_status_K: Sequence[str] | None = None,
    version: int,
    figures: Figures,
    reference_rows: NDArray[np.float32],
    calibration_arrays: Mapping[str, NDArray[Any]],
    report: dict[str, Any],
    provenance: dict[str, Any],
    data_parts: Mapping[str, bytes],
) -> tuple[ModelBundle, dict[str, float]]:
    """Write the bundle of `model` to `final` and return it, with the largest differences between torch and ONNX Runtime.

    Args:
        final: must not exist.
        calibrations, threshold_K, threshold_status_K: one a class, in column order; no statuses: nothing speaks against any.
        version: of every head.
        figures: of the test rows, (K,) each; kept as report/classes.npz.
        reference_rows: raw rows (N, *input.shape), N >= 1; the bundle keeps so many of the first that rows times heads (hidden
            units, of heads that have them) stay within `REFERENCE_VALUES`, one at least.
        calibration_arrays: kept as calibration/<name>.npy.
        report: kept as report/metrics.json.
        data_parts: files of the data card, by their place in the bundle.

    Returns:
        The bundle, and over the reference rows the largest absolute difference of a probability from torch's: "heads" through the
        backbone's and the shards' files, and "fused" through the fused graph, if that fits one file.

    Raises:
        ArtifactError: `final` exists; counts that differ; a model that cannot be exported, or not within 1e-5 of torch
            (times the head's scale where that is above 1). Nothing is written then.
    """
    num_heads = len(taxonomy)
    for name, values in {"calibrations": calibrations, "thresholds": threshold_K, **figures}.items():
        if len(values) != num_heads:
            raise ArtifactError(f"{len(values)} {name} for {num_heads} classes; expected one a class")
    calibrations.check_affine(where="a bundle with head shards")
    head_module: Any = model.head
    one_head = {name: value[None] for name, value in head_module.head_weights(0).items()}
    num_units = max(value.shape[1] for value in one_head.values())  # values that a logit is made from
    x = check_rows(reference_rows[: max(1, REFERENCE_VALUES // (num_heads * num_units))], input)
    shards = shards_of(num_heads, head_bytes=_size_bytes(one_head))
    prob_NK = torch_prob(model, x, calibrations, [shard.columns for shard in shards])
    reference = Reference(x, prob_NK, tolerances(calibrations), taxonomy.ids)
    backbone = backbone_model(model, input)
    backbone_data = check.check_structure(backbone, allowed_ops=GRAPH_OPS, what="the backbone")
    features_ND = check.run(backbone_data, x)
    heads = HeadColumns(
        taxonomy.ids,
        kind=head_module.kind,
        backbone_sha256=sha256_bytes(backbone_data),
        version_K=np.full(num_heads, version),
        threshold_K=threshold_K,
        threshold_status_K=threshold_status_K,
        calibrations=calibrations,
        figures=lambda: read_figures(final),
    )
    # Room for the weights of the fused graph, unless they alone do not fit one file.
    every = blank(one_head, num_heads) if num_heads * _size_bytes(one_head) <= MAX_FUSED_BYTES else None
    diffs = {"heads": 0.0}

    def shard_parts(shard: Shard) -> dict[str, bytes | Path]:
        stack = _weights(head_module, shard)
        check_stack(heads.kind, stack)
        here = calibrations[shard.columns]
        calibrated = folded(stack, here.scale_K, here.bias_K)
        metadata = shard_metadata(first_column=shard.first_column, backbone_sha256=heads.backbone_sha256)
        data = shard_file(shard_model(heads.kind, calibrated, metadata), what=shard.path)
        what = f"the backbone with {shard.path}"
        diffs["heads"] = max(diffs["heads"], reference.of(shard.columns).compare(check.run(data, features_ND), what=what))
        if every is not None:
            for name, value in calibrated.items():
                every[name][shard.columns] = value
        return {shard.heads_file: shard_bytes(heads, shard, stack), shard.onnx_file: data}

    def fuse(card: ModelCard) -> bytes | None:
        log.info("backbone and %d heads agree with torch within %.1e on %d rows", num_heads, diffs["heads"], len(x))
        if every is None or _size_bytes(every) + len(backbone_data) + len(canonical_json(card.to_json())) > MAX_FUSED_BYTES:
            log.warning("%d heads do not fit one ONNX file: the bundle has no fused graph", num_heads)
            return None
        data, diffs["fused"] = check_fused(fused_model_of_stack(backbone, heads.kind, every, card), reference)
        return data

    parts: dict[str, bytes | Path] = {BACKBONE_ONNX: backbone_data, BACKBONE_WEIGHTS: backbone_weights(model)}
    parts |= {**reference.parts(), **data_parts}
    parts |= {f"calibration/{name}.npy": npy_bytes(array) for name, array in calibration_arrays.items()}
    parts |= {"report/metrics.json": canonical_json(report), FIGURES: npz_bytes(figures)}
    bundle = write_sharded_bundle(
        final,
        taxonomy=taxonomy,
        heads=heads,
        shards=shards,
        input=input,
        policy=policy,
        provenance=provenance,
        parts=parts,
        shard_parts=shard_parts,
        fuse=fuse,
    )
    return bundle, diffs


def _weights(head_module: Any, shard: Shard) -> Stack:
    """Return the weights of a shard's heads, (S, ...) each."""
    heads = [head_module.head_weights(column) for column in range(shard.columns.start, shard.columns.stop)]
    return {name: np.stack([head[name] for head in heads]) for name in heads[0]}


def _size_bytes(stack: Stack) -> int:
    return sum(value.nbytes for value in stack.values())
