"""A bundle with other calibrations, thresholds or policy: the heads that change get the next version, all other files stay.

Backbone, weights and every head that does not change are the same files, by hard link where the file system allows; the reference
answers and the fused graph are made anew and checked as in training. What a report or a head told of the test rows told of the
heads before, so heads that change lose their figures; `report/` stays as it was, and the history in the provenance says of what.

N = rows, K = heads, S = heads of one shard
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import Calibration, DecisionPolicy, HeadArtifact, ModelCard
from ovr.core.bundle import ModelBundle
from ovr.core.calibrations import Calibrations
from ovr.core.cohorts import CohortCalibrations
from ovr.core.heads import HeadColumns
from ovr.core.sharded_bundle import write_sharded_bundle
from ovr.core.shards import Shard, npy_bytes, paths, read_figures, read_weights, shard_bytes
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.core.thresholds import Thresholds
from ovr.data.leakage import U64
from ovr.data.overlap import CALIBRATION, rows_of_step
from ovr.errors import ArtifactError
from ovr.export.check import run
from ovr.export.fused import fused_model_of_stack
from ovr.export.heads_graph import blank, folded
from ovr.export.reference import check_fused
from ovr.export.shard import shard_file, shard_metadata, shard_model
from ovr.export.stored import parsed, stored_weights
from ovr.lifecycle.assemble import (
    ABSTENTION_STATUS,
    REFERENCE_PROB,
    NewModel,
    Parts,
    Rewritten,
    assembled,
    check_out,
    kept,
    told,
    unchanged,
)
from ovr.lifecycle.cohorts import differing
from ovr.lifecycle.logits import StoredLogits, bundle_features
from ovr.runtime.reference import Reference, load_reference, tolerances

log = logging.getLogger(__name__)


def calibrations_of(bundle: ModelBundle) -> Calibrations:
    """Return the calibrations of a bundle's heads, in column order."""
    heads = bundle.heads
    return heads.calibrations if isinstance(heads, HeadColumns) else Calibrations.of(head.calibration for head in heads)


def thresholds_of(bundle: ModelBundle) -> Thresholds:
    """Return the thresholds of a bundle's heads, in column order, with what is said of them."""
    heads = bundle.heads
    if isinstance(heads, HeadColumns):
        return Thresholds(heads.threshold_K, heads.threshold_status_K)
    return Thresholds(np.array([head.threshold for head in heads]), tuple(head.threshold_status for head in heads))


def differ(before: Calibrations, after: Calibrations) -> NDArray[np.bool_]:
    """Return which heads (K,) have another calibration, in any of its fields."""
    differ_K = np.zeros(len(before), np.bool_)
    for name in {**before.columns, **after.columns}:
        differ_K |= (before.optional(name) != after.optional(name)).astype(np.bool_)
    return differ_K


def rewritten(
    bundle: ModelBundle,
    out: Path,
    *,
    calibrations: Calibrations,
    threshold_K: NDArray[np.float64],
    policy: DecisionPolicy,
    cohorts: CohortCalibrations | None,
    entry: dict[str, Any],
    threshold_status_K: Sequence[str] | None = None,
    abstention_status: str | None = None,
    digest_N: U64 | None = None,
    taxonomy: Taxonomy | None = None,
) -> Rewritten:
    """Write the bundle with these calibrations, thresholds and policy to `out`.

    Args:
        out: must not exist, nor lie within the bundle.
        cohorts: a calibration a cohort and head; a head for which one changes has changed.
        threshold_status_K: what is said of the thresholds (see `ovr.core.thresholds`); None: what was said of them.
        entry: what the history in the provenance tells of this step, in plain values.
        abstention_status: what is to be said of the policy's limit from now on; None: what was said of it.
        digest_N: of the rows that this was fitted on, by `row_digests`, which the bundle keeps; None: those of its own rows.
        taxonomy: the same classes, described otherwise; None: as they were.

    Raises:
        ArtifactError: `out` exists or lies within the bundle; the bundle has no reference rows, or its heads do not give their
            answers; a calibration that its kind of bundle cannot keep. Nothing is written then.
    """
    check_out(bundle, out)
    if bundle.shards:
        calibrations.check_affine(where="a bundle with head shards")
        if cohorts is not None:
            raise ArtifactError(f"bundle {bundle.path} has head shards, and those hold no calibration a cohort ({cohorts.column})")
    before = calibrations_of(bundle)
    said_K = thresholds_of(bundle).status_K
    thresholds = Thresholds(threshold_K, said_K if threshold_status_K is None else tuple(threshold_status_K))
    restated_K = np.array([new != old for new, old in zip(thresholds.status_K, said_K, strict=True)])
    rethought_K = restated_K | (threshold_K != np.array(bundle.card.thresholds))
    differ_K = differ(before, calibrations) | differing(bundle.cohorts, cohorts, len(bundle.heads))
    changed = np.flatnonzero(differ_K | rethought_K).tolist()
    entry = {**entry, **of_critical([bundle.taxonomy[k] for k in changed])}
    reference = _reference(bundle, before, calibrations, cohorts)
    said = {} if abstention_status is None else {ABSTENTION_STATUS: abstention_status}
    more: Parts = {}
    if digest_N is not None:
        file = rows_of_step(CALIBRATION, len(bundle.provenance.get("history", [])) + 1)
        more[file], entry = npy_bytes(np.unique(digest_N)), {**entry, "row_digests": file}
    provenance = told(bundle, {**entry, **said}, num_changed=len(changed))
    write = _write_shards if bundle.shards else _write_heads
    described = bundle.taxonomy if taxonomy is None else taxonomy
    made, diffs = write(bundle, out, described, changed, calibrations, thresholds, policy, provenance, reference, more)
    return Rewritten(made, tuple(bundle.taxonomy[k].id for k in changed), diffs)


def of_critical(specs: Sequence[ClassSpec]) -> dict[str, list[str]]:
    """Return what the history tells of heads that change and pass no gate: those of critical classes, which a warning tells too."""
    critical = [spec.id for spec in specs if spec.critical]
    if not critical:
        return {}
    log.warning("%d heads of critical classes change and pass no gate: %s", len(critical), ", ".join(map(repr, critical[:5])))
    return {"ungated_critical": critical}


def _reference(bundle: ModelBundle, before: Calibrations, after: Calibrations, cohorts: CohortCalibrations | None) -> Reference:
    """Return the reference answers with the new calibrations: those of heads that keep theirs are torch's as they were."""
    old = load_reference(bundle)
    changed = np.flatnonzero(differ(before, after)).tolist()
    kept_NK = old.logit_NK
    if not changed and (cohorts is None or kept_NK is not None):
        return replace(old, cohorts=cohorts, logit_NK=None if cohorts is None else kept_NK)
    prob_NK, logit_NK = old.prob_NK.copy(), np.empty(old.prob_NK.shape, np.float32)
    for columns, logit_NC in StoredLogits(bundle, bundle_features(bundle, old.x)):
        # The weights give what torch gave with the calibrations before: then they do with others too.
        what = "the bundle's heads in ONNX Runtime"
        old.of(columns).compare(calibrated_prob(logit_NC, before[columns]).astype(np.float32), what=what)
        here = [k - columns.start for k in changed if columns.start <= k < columns.stop]
        prob_NK[:, columns][:, here] = calibrated_prob(logit_NC, after[columns])[:, here]
        logit_NK[:, columns] = logit_NC
    if cohorts is None:
        return Reference(old.x, prob_NK, tolerances(after), old.class_ids)
    return Reference(old.x, prob_NK, tolerances(after), old.class_ids, cohorts, logit_NK if kept_NK is None else kept_NK)


def _write_heads(
    bundle: ModelBundle,
    out: Path,
    taxonomy: Taxonomy,
    changed: Sequence[int],
    calibrations: Sequence[Calibration],
    thresholds: Thresholds,
    policy: DecisionPolicy,
    provenance: dict[str, Any],
    reference: Reference,
    more: Parts,
) -> tuple[ModelBundle, dict[str, float]]:
    heads: list[HeadArtifact] = list(bundle.heads)
    new = {}
    for k, kind, weights in stored_weights(bundle, changed):
        old = heads[k]
        head = replace(
            old, version=bundle.next_version(old.class_id), calibration=calibrations[k], threshold=float(thresholds.threshold_K[k])
        )
        heads[k] = replace(head, threshold_status=thresholds.status_K[k], metrics={})
        new[old.class_id] = NewModel(kind, weights)
    return assembled(
        bundle,
        out,
        taxonomy=taxonomy,
        heads=heads,
        new=new,
        reference=reference,
        policy=policy,
        provenance=provenance,
        parts=more,
    )


def _write_shards(
    bundle: ModelBundle,
    out: Path,
    taxonomy: Taxonomy,
    changed: Sequence[int],
    calibrations: Calibrations,
    thresholds: Thresholds,
    policy: DecisionPolicy,
    provenance: dict[str, Any],
    reference: Reference,
    more: Parts,
) -> tuple[ModelBundle, dict[str, float]]:
    assert isinstance(bundle.heads, HeadColumns)
    version_K = bundle.heads.version_K.copy()
    version_K[list(changed)] += 1
    heads = HeadColumns(
        bundle.taxonomy.ids,
        kind=bundle.heads.kind,
        backbone_sha256=bundle.backbone_sha256,
        version_K=version_K,
        threshold_K=thresholds.threshold_K,
        threshold_status_K=thresholds.status_K,
        calibrations=calibrations,
        figures=lambda: read_figures(out),
    )
    backbone_data = bundle.backbone_onnx.read_bytes()
    features_ND = run(backbone_data, reference.x)
    every = None
    if bundle.has_fused:
        first = read_weights(bundle.path, bundle.shards[0])
        every = blank({name: value[:1] for name, value in first.items()}, len(heads))
    diffs = {"heads": 0.0}

    def shard_parts(shard: Shard) -> Parts:
        files: Parts = {name: bundle.path / name for name in paths([shard])}
        same = not any(shard.columns.start <= k < shard.columns.stop for k in changed)
        if same and every is None:
            return files
        stack = read_weights(bundle.path, shard)
        here = calibrations[shard.columns]
        calibrated = folded(stack, here.scale_K, here.bias_K)
        if every is not None:
            for name, value in calibrated.items():
                every[name][shard.columns] = value
        if same:
            return files
        metadata = shard_metadata(first_column=shard.first_column, backbone_sha256=heads.backbone_sha256)
        data = shard_file(shard_model(heads.kind, calibrated, metadata), what=shard.path)
        diff = reference.of(shard.columns).compare(run(data, features_ND), what=f"the backbone with {shard.path}")
        diffs["heads"] = max(diffs["heads"], diff)
        model = unchanged(bundle, shard.onnx_file, data)  # thresholds are not in it
        return {shard.heads_file: shard_bytes(heads, shard, stack), shard.onnx_file: model}

    def fuse(card: ModelCard) -> bytes | None:
        if every is None:
            return None
        backbone = parsed(backbone_data, what="the backbone")
        data, diffs["fused"] = check_fused(fused_model_of_stack(backbone, heads.kind, every, card), reference)
        return data

    parts = {name: file for name, file in kept(bundle).items() if name not in paths(bundle.shards)} | more
    parts[REFERENCE_PROB] = unchanged(bundle, REFERENCE_PROB, npy_bytes(reference.prob_NK))
    made = write_sharded_bundle(
        out,
        taxonomy=taxonomy,
        heads=heads,
        shards=bundle.shards,
        input=bundle.input,
        policy=policy,
        provenance=provenance,
        parts=parts,
        shard_parts=shard_parts,
        fuse=fuse,
    )
    return made, diffs
