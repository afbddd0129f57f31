"""A bundle with other calibrations, thresholds or policy: the heads that change get the next version, all other files stay.

Backbone, weights and every head that does not change are the same files, by hard link where the file system allows; the reference
answers and the fused graph are made anew and checked as in training. What a report or a head told of the test rows told of the
heads before, so heads that change lose their figures; `report/` stays as it was, and the history in the provenance says of what.

N = rows, K = heads, S = heads of one shard
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import Calibration, DecisionPolicy, HeadArtifact, ModelCard
from ovr.core.bundle import FUSED_ONNX, MANIFEST, ModelBundle, head_directory
from ovr.core.bundle_writer import write_bundle
from ovr.core.calibrations import Calibrations
from ovr.core.cohorts import CohortCalibrations
from ovr.core.heads import HeadColumns
from ovr.core.sharded_bundle import write_sharded_bundle
from ovr.core.shards import Shard, npy_bytes, paths, read_figures, read_weights, shard_bytes
from ovr.core.thresholds import Thresholds
from ovr.errors import ArtifactError
from ovr.export.check import run
from ovr.export.fused import fused_model, fused_model_of_stack
from ovr.export.head import head_metadata, head_model
from ovr.export.heads_graph import blank, folded
from ovr.export.reference import Reference, check_fused, check_parts, load_reference, tolerances
from ovr.export.shard import shard_file, shard_metadata, shard_model
from ovr.export.stored import parsed, stored_models, stored_weights
from ovr.lifecycle.cohorts import differing
from ovr.lifecycle.logits import StoredLogits, bundle_features

REFERENCE_PROB, REFERENCE_LOGIT = "reference/prob.npy", "reference/logit.npy"
Parts = dict[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The new bundle, the ids of the heads that changed, and the largest differences from the reference answers."""

    bundle: ModelBundle
    changed_ids: tuple[str, ...]
    max_abs_diff: dict[str, float]


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
) -> Rewritten:
    """Write the bundle with these calibrations, thresholds and policy to `out`.

    Args:
        out: must not exist, nor lie within the bundle.
        cohorts: a calibration a cohort and head; a head for which one changes has changed.
        threshold_status_K: what is said of the thresholds (see `ovr.core.thresholds`); None: what was said of them.
        entry: what the history in the provenance tells of this step, in plain values.
        abstention_status: what is to be said of the policy's limit from now on; None: what was said of it.

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
    reference = _reference(bundle, before, calibrations, cohorts)
    told = {
        **entry,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parent_bundle_sha256": bundle.bundle_sha256,
        "num_changed_heads": len(changed),
        "report_is_of_bundle_sha256": _report_of(bundle),
    }
    provenance = {**bundle.provenance, "history": [*bundle.provenance.get("history", []), told]}
    if abstention_status is not None:
        told["abstention_status"] = provenance["abstention_status"] = abstention_status
    write = _write_shards if bundle.shards else _write_heads
    made, diffs = write(bundle, out, changed, calibrations, thresholds, policy, provenance, reference)
    return Rewritten(made, tuple(bundle.taxonomy[k].id for k in changed), diffs)


def check_out(bundle: ModelBundle, out: Path) -> None:
    """Raise ArtifactError where a new bundle must not be written, before any work."""
    if out.exists():
        raise ArtifactError(f"{out} exists already and is never overwritten; choose another place or remove it")
    if out.resolve().is_relative_to(bundle.path.resolve()):
        raise ArtifactError(f"{out} lies within the bundle {bundle.path}, which is never changed; choose another place")


def _report_of(bundle: ModelBundle) -> str:
    """Return the bundle that report/ is of: the one that was trained."""
    history = bundle.provenance.get("history", [])
    return str(history[-1]["report_is_of_bundle_sha256"]) if history else bundle.bundle_sha256


def _reference(bundle: ModelBundle, before: Calibrations, after: Calibrations, cohorts: CohortCalibrations | None) -> Reference:
    """Return the reference answers with the new calibrations: those of heads that keep theirs are torch's as they were."""
    old = load_reference(bundle)
    changed = np.flatnonzero(differ(before, after)).tolist()
    kept_NK = old.logit_NK
    if not changed and (cohorts is None or kept_NK is not None):
        return replace(old, cohorts=cohorts)
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


def _kept(bundle: ModelBundle, without: Sequence[str]) -> Parts:
    """Return the files of a bundle that are shared with its successor; `without` are files, or directories ending in /."""
    files = {path.relative_to(bundle.path).as_posix(): path for path in bundle.path.rglob("*") if path.is_file()}
    made = {MANIFEST, FUSED_ONNX, *without}
    directories = tuple(each for each in made if each.endswith("/"))
    return {
        name: path
        for name, path in files.items()
        if name not in made and not name.endswith("/head.json") and not name.startswith(directories)
    }


def _write_heads(
    bundle: ModelBundle,
    out: Path,
    changed: Sequence[int],
    calibrations: Sequence[Calibration],
    thresholds: Thresholds,
    policy: DecisionPolicy,
    provenance: dict[str, Any],
    reference: Reference,
) -> tuple[ModelBundle, dict[str, float]]:
    heads: list[HeadArtifact] = list(bundle.heads)
    protos: list[onnx.ModelProto] = list(stored_models(bundle, range(len(heads))))
    for k, kind, weights in stored_weights(bundle, changed):
        old = heads[k]
        new = replace(old, version=old.version + 1, calibration=calibrations[k], threshold=float(thresholds.threshold_K[k]))
        heads[k] = replace(new, threshold_status=thresholds.status_K[k], metrics={})
        protos[k] = head_model(kind, weights, heads[k].calibration, head_metadata(heads[k]))
    backbone = parsed(bundle.backbone_onnx.read_bytes(), what="the backbone")
    parts = _kept(bundle, [REFERENCE_PROB, REFERENCE_LOGIT, *(f"{head_directory(bundle.heads[k])}/" for k in changed)])
    parts[REFERENCE_PROB] = _unchanged(bundle, REFERENCE_PROB, npy_bytes(reference.prob_NK))
    if reference.logit_NK is not None:
        parts[REFERENCE_LOGIT] = _unchanged(bundle, REFERENCE_LOGIT, npy_bytes(reference.logit_NK))
    diffs: dict[str, float] = {}
    if changed:
        checked = check_parts(backbone, [protos[k] for k in changed], reference.of(list(changed)))
        diffs["heads"] = checked.max_abs_diff
        parts |= {f"{head_directory(heads[k])}/model.onnx": data for k, data in zip(changed, checked.heads, strict=True)}

    def fuse(card: ModelCard) -> bytes:
        data, diffs["fused"] = check_fused(fused_model(backbone, protos, card), reference)
        return data

    made = write_bundle(
        out,
        taxonomy=bundle.taxonomy,
        heads=heads,
        input=bundle.input,
        policy=policy,
        provenance=provenance,
        parts=parts,
        fuse=fuse,
        cohorts=reference.cohorts,
    )
    return made, diffs


def _write_shards(
    bundle: ModelBundle,
    out: Path,
    changed: Sequence[int],
    calibrations: Calibrations,
    thresholds: Thresholds,
    policy: DecisionPolicy,
    provenance: dict[str, Any],
    reference: Reference,
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
        model = _unchanged(bundle, shard.onnx_file, data)  # thresholds are not in it
        return {shard.heads_file: shard_bytes(heads, shard, stack), shard.onnx_file: model}

    def fuse(card: ModelCard) -> bytes | None:
        if every is None:
            return None
        backbone = parsed(backbone_data, what="the backbone")
        data, diffs["fused"] = check_fused(fused_model_of_stack(backbone, heads.kind, every, card), reference)
        return data

    parts = _kept(bundle, [REFERENCE_PROB, *paths(bundle.shards)])
    parts[REFERENCE_PROB] = _unchanged(bundle, REFERENCE_PROB, npy_bytes(reference.prob_NK))
    made = write_sharded_bundle(
        out,
        taxonomy=bundle.taxonomy,
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


def _unchanged(bundle: ModelBundle, name: str, content: bytes) -> bytes | Path:
    """Return the bundle's own file where it holds the same."""
    file = bundle.path / name
    return file if file.is_file() and file.read_bytes() == content else content
