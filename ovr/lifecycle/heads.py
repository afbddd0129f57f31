"""The life of a head: one class is added, replaced, retired, renamed or rolled back; every other head stays, to the bit.

Each step makes a new bundle of an old one. A class id is for ever, and a version number is never given twice: rolling back brings
an earlier version's very files into use again.

K = heads
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ovr.core.artifact import Calibration, HeadArtifact
from ovr.core.bundle import ModelBundle, check_fits, head_directory
from ovr.core.cohorts import CohortCalibrations
from ovr.core.files import read_json
from ovr.core.ledger import HeadVersion
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.data.overlap import FILES, read_digests, rows_of_step
from ovr.errors import ArtifactError, ConfigError, TaxonomyError
from ovr.export.calibrated import weights_of
from ovr.export.head import head_constants
from ovr.export.stored import parsed, stored_weights
from ovr.lifecycle.assemble import (
    ABSTENTION_STATUS,
    COHORTS_FILE,
    NewModel,
    Parts,
    Rewritten,
    assembled,
    check_out,
    class_specs,
    head_logits,
    reference_prob,
    told,
)
from ovr.lifecycle.calibration_rows import AddedRows, calibration_parts, columns_of
from ovr.lifecycle.cohorts import TABLES
from ovr.lifecycle.gate import Gate, check_passed, judge_stored
from ovr.lifecycle.logits import bundle_features
from ovr.runtime.reference import Reference, load_reference, tolerances

log = logging.getLogger(__name__)

STALE = "stale: chosen before heads came, changed or went"


@dataclass(frozen=True, slots=True)
class NewHead:
    """A head that a bundle is to have from now on: of a class that it has, in place of the one in use, or of a new one."""

    spec: ClassSpec
    model: NewModel
    calibration: Calibration
    threshold: float
    threshold_status: str = "ok"
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def put(
    bundle: ModelBundle,
    out: Path,
    heads: Sequence[NewHead],
    *,
    entry: Mapping[str, Any],
    rows: AddedRows | None = None,
    parts: Parts | None = None,
) -> Rewritten:
    """Write the bundle with new heads to `out`: in the column of their class, or of new and retired classes in further columns.

    Args:
        entry: what the history in the provenance tells of this step, in plain values.
        rows: calibration rows that join the bundle's.
        parts: further files that differ from the bundle's.

    Raises:
        ArtifactError: the bundle has head shards; `out` exists; a head does not fit the backbone.
    """
    check_change(bundle, out)
    artifacts = {
        new.spec.id: HeadArtifact(
            class_id=new.spec.id,
            version=bundle.next_version(new.spec.id),
            backbone_sha256=bundle.backbone_sha256,
            kind=new.model.kind,
            calibration=new.calibration,
            threshold=new.threshold,
            metrics=new.metrics,
            provenance=new.provenance,
            threshold_status=new.threshold_status,
        )
        for new in heads
    }
    models = {new.spec.id: new.model for new in heads}
    return _with_heads(bundle, out, {new.spec.id: new.spec for new in heads}, artifacts, models, entry, rows, parts)


def replace_heads(
    bundle: ModelBundle,
    out: Path,
    source: ModelBundle,
    class_ids: Sequence[str],
    *,
    gate: Gate | None = None,
    force: bool = False,
    entry: Mapping[str, Any] | None = None,
) -> Rewritten:
    """Write the bundle with the heads that `source` uses for these classes to `out`, each as its next version.

    Args:
        gate: judges them on the calibration rows of `source`; None: nobody does.
        force: take heads that it refuses; the history says so.

    Raises:
        ArtifactError: the backbones differ; what `put` refuses.
        GateError: the gate refuses a head, and `force` is false. Nothing is written then.
        TaxonomyError: `source` has no such class.
    """
    check_change(bundle, out)
    columns = [source.taxonomy.column(class_id) for class_id in _some(class_ids)]
    for column in columns:
        check_fits(source.heads[column], bundle.backbone_sha256)
    found = {column: NewModel(kind, weights) for column, kind, weights in stored_weights(source, columns)}
    specs = {i: class_specs(bundle).get(i, source.taxonomy[column]) for i, column in zip(class_ids, columns, strict=True)}
    judged = [] if gate is None else [judge_stored(gate, source, specs[i], replaced=last_head(bundle, i)) for i in class_ids]
    forced = check_passed(judged, force=force)
    heads = []
    for column in columns:
        head = source.heads[column]
        origin = {**head.provenance, "from_bundle_sha256": source.bundle_sha256, "from_version": head.version}
        heads.append(
            NewHead(
                specs[head.class_id],
                found[column],
                head.calibration,
                head.threshold,
                head.threshold_status,
                head.metrics,
                provenance=origin,
            )
        )
    said = {"command": "head replace", "classes": list(class_ids), "from_bundle_sha256": source.bundle_sha256, **(entry or {})}
    if gate is not None:
        said |= {"gate": {each.class_id: each.to_json() for each in judged}, "forced": forced}
    return put(bundle, out, heads, entry=said, parts=_rows_of_source(bundle, source))


def _rows_of_source(bundle: ModelBundle, source: ModelBundle) -> Parts:
    """Return digests of the rows that `source` was made from and `bundle` was not: heads of it have seen them."""
    parts: Parts = {}
    for kind in FILES:
        theirs_U, ours_U = (read_digests(each.path, kind) for each in (source, bundle))
        if theirs_U is None:
            continue
        new_U = theirs_U if ours_U is None else np.setdiff1d(theirs_U, ours_U)
        if len(new_U):
            parts[rows_of_step(kind, len(bundle.provenance.get("history", [])) + 1)] = npy_bytes(new_U)
    return parts


def last_head(bundle: ModelBundle, class_id: str) -> tuple[NewModel, HeadArtifact] | None:
    """Return the head that a class has, or had last; None where it never had one."""
    if class_id not in class_specs(bundle):
        return None
    in_use = class_id in bundle.taxonomy.ids
    head = bundle.head(class_id) if in_use else bundle.earlier_head(last_version(bundle, class_id))
    return _model_of(bundle, head), head


def rollback(
    bundle: ModelBundle, out: Path, versions: Sequence[HeadVersion], *, entry: Mapping[str, Any] | None = None
) -> Rewritten:
    """Write the bundle with earlier versions of heads in use again to `out`; a retired class comes back in a further column.

    Raises:
        ArtifactError: a version that the bundle does not keep, or that is in use.
        TaxonomyError: the bundle never had such a class.
    """
    check_change(bundle, out)
    specs = class_specs(bundle)
    _some([each.class_id for each in versions])
    for each in versions:
        check_kept(bundle, each)
    said = {
        "command": "head rollback",
        "classes": [each.class_id for each in versions],
        "versions": [each.version for each in versions],
        **(entry or {}),
    }
    artifacts = {each.class_id: bundle.earlier_head(each) for each in versions}
    return _with_heads(bundle, out, {each.class_id: specs[each.class_id] for each in versions}, artifacts, {}, said, None, None)


def last_version(bundle: ModelBundle, class_id: str) -> HeadVersion:
    """Return the version that a class had before the one in use; of a retired class the one that it had last.

    Raises:
        ArtifactError: there is none.
        TaxonomyError: the bundle never had such a class.
    """
    check_known(bundle, class_id)
    kept = bundle.ledger.versions(class_id)
    before = kept
    if class_id in bundle.taxonomy.ids:
        in_use = bundle.head(class_id).version
        before = [version for version in kept if version < in_use]
        if not before:
            raise ArtifactError(
                f"head {class_id!r} is at version {in_use}, the first that bundle {bundle.path} has; there is none before it to "
                f"roll back to{f' (it keeps {_versions(kept)})' if kept else ''}"
            )
    return HeadVersion(class_id, before[-1])


def check_kept(bundle: ModelBundle, wanted: HeadVersion) -> None:
    """Raise ArtifactError or TaxonomyError unless the bundle keeps that version and does not use it."""
    check_known(bundle, wanted.class_id)
    kept = bundle.ledger.versions(wanted.class_id)
    if wanted.version in kept:
        return
    in_use = [head.version for head in bundle.heads if head.class_id == wanted.class_id]
    if in_use == [wanted.version]:
        raise ArtifactError(f"head {wanted.class_id!r} is at version {wanted.version} already")
    raise ArtifactError(
        f"bundle {bundle.path} keeps no version {wanted.version} of head {wanted.class_id!r}; it has {_versions(kept + in_use)}"
    )


def check_known(bundle: ModelBundle, class_id: str) -> None:
    """Raise TaxonomyError unless the bundle has the class or has had it."""
    if class_id not in class_specs(bundle):
        bundle.taxonomy.column(class_id)


def retire(bundle: ModelBundle, out: Path, class_ids: Sequence[str], *, entry: Mapping[str, Any] | None = None) -> Rewritten:
    """Write the bundle without the answers of these classes to `out`; their heads stay in it as earlier versions.

    Raises:
        ArtifactError: what `put` refuses; no class would be left.
        TaxonomyError: the bundle has no such class in use.
    """
    check_change(bundle, out)
    gone = {bundle.taxonomy.column(class_id) for class_id in _some(class_ids)}
    if len(gone) == len(bundle.heads):
        raise ArtifactError(
            f"a bundle needs at least one head, and {', '.join(map(repr, class_ids))} would be retired of {len(gone)}"
        )
    columns = [k for k in range(len(bundle.heads)) if k not in gone]
    said = {"command": "head retire", "classes": list(class_ids), **(entry or {})}
    reference = load_reference(bundle)
    made, diffs = assembled(
        bundle,
        out,
        taxonomy=Taxonomy(bundle.taxonomy[k] for k in columns),
        heads=[bundle.heads[k] for k in columns],
        new={},
        reference=_chosen(reference, columns, _cohort_columns(bundle, columns)),
        policy=bundle.policy,
        provenance=told(bundle, {**said, **_of_limit(bundle)}, num_changed=len(gone)),
        parts=calibration_parts(bundle, columns, {}, None),
    )
    return Rewritten(made, tuple(bundle.taxonomy[k].id for k in sorted(gone)), diffs)


def respecified(bundle: ModelBundle, out: Path, specs: Sequence[ClassSpec], *, entry: Mapping[str, Any] | None = None) -> Rewritten:
    """Write the bundle with another name, owner or parent of some classes to `out`; no answer changes.

    Raises:
        ArtifactError: what `put` refuses.
        TaxonomyError: the bundle has no such class.
    """
    check_change(bundle, out)
    new = {bundle.taxonomy.column(spec.id): spec for spec in specs}
    taxonomy = Taxonomy(new.get(k, spec) for k, spec in enumerate(bundle.taxonomy))
    said = {"command": "head rename", "classes": [spec.id for spec in specs], **(entry or {})}
    made, diffs = assembled(
        bundle,
        out,
        taxonomy=taxonomy,
        heads=bundle.heads,
        new={},
        reference=load_reference(bundle),
        policy=bundle.policy,
        provenance=told(bundle, said, num_changed=len(new)),
    )
    return Rewritten(made, tuple(spec.id for spec in specs), diffs)


def _with_heads(
    bundle: ModelBundle,
    out: Path,
    specs: Mapping[str, ClassSpec],
    artifacts: Mapping[str, HeadArtifact],
    models: Mapping[str, NewModel],
    entry: Mapping[str, Any],
    rows: AddedRows | None,
    parts: Parts | None,
) -> Rewritten:
    """Write the bundle with these heads in use; those without a model are versions that the bundle keeps."""
    added = [class_id for class_id in artifacts if class_id not in bundle.taxonomy.ids]
    taxonomy = Taxonomy([*(specs.get(spec.id, spec) for spec in bundle.taxonomy), *(specs[class_id] for class_id in added)])
    heads = [artifacts[i] if i in artifacts else bundle.head(i) for i in taxonomy.ids]
    weights = {head.class_id: models.get(head.class_id) or _model_of(bundle, head) for head in artifacts.values()}
    columns = [bundle.taxonomy.column(i) if i in bundle.taxonomy.ids else None for i in taxonomy.ids]
    changed = {taxonomy.column(class_id): model for class_id, model in weights.items()}

    strange = [taxonomy.column(class_id) for class_id in models]
    pooled = [head.calibration for head in heads]
    reference = _chosen(
        load_reference(bundle),
        columns,
        _cohort_columns(bundle, columns, changed={taxonomy.column(i): head for i, head in artifacts.items()}),
    )
    z_ND = bundle_features(bundle, reference.x)
    prob_NK, tolerance_K = reference.prob_NK, tolerances(pooled)
    for k, model in changed.items():
        prob_NK[:, k] = reference_prob(model.kind, model.weights, heads[k], z_ND)
        if reference.logit_NK is not None:
            reference.logit_NK[:, k] = head_logits(model.kind, model.weights, z_ND)
    made, diffs = assembled(
        bundle,
        out,
        taxonomy=taxonomy,
        heads=heads,
        new=dict(models),
        reference=replace(reference, prob_NK=prob_NK, tolerance_K=tolerance_K, class_ids=taxonomy.ids),
        policy=bundle.policy,
        provenance=told(bundle, {**entry, **_of_limit(bundle)}, num_changed=len(artifacts)),
        parts={**calibration_parts(bundle, columns, changed, rows, taxonomy=taxonomy, strange=strange), **(parts or {})},
    )
    return Rewritten(made, tuple(artifacts), diffs)


def _model_of(bundle: ModelBundle, head: HeadArtifact) -> NewModel:
    file = bundle.path / HeadVersion(head.class_id, head.version).directory / "model.onnx"
    kind, constants = head_constants(parsed(file.read_bytes(), what=f"head {head.class_id!r}"))
    return NewModel(kind, weights_of(constants))


def _chosen(reference: Reference, columns: Sequence[int | None], cohorts: CohortCalibrations | None) -> Reference:
    """Return the reference of some columns, None for one that is new: its answers are left 0, to be filled in."""
    prob_NK = columns_of(reference.prob_NK, columns)
    tolerance_K = columns_of(reference.tolerance_K[None], columns)[0]
    ids = tuple("" if k is None else reference.class_ids[k] for k in columns)
    logit_NK = None if reference.logit_NK is None else columns_of(reference.logit_NK, columns)
    return Reference(reference.x, prob_NK, tolerance_K, ids, cohorts, logit_NK)


def _cohort_columns(
    bundle: ModelBundle, columns: Sequence[int | None], *, changed: Mapping[int, HeadArtifact] | None = None
) -> CohortCalibrations | None:
    """Return the cohorts' calibrations of some columns.

    A version that comes back has those that it had; of cohorts that it had none for, and of new heads, the pooled one.
    """
    cohorts = bundle.cohorts
    if cohorts is None:
        return None
    own = {k: _cohorts_of(bundle, head, cohorts) for k, head in (changed or {}).items()}
    tables = {
        name: tuple(
            tuple(
                own[k][c][name] if k in own else getattr(cohorts, name)[c][old]
                for k, old in enumerate(columns)
                if k in own or old is not None
            )
            for c in range(len(cohorts.names))
        )
        for name in TABLES
    }
    return CohortCalibrations(cohorts.column, cohorts.names, **tables)


def _cohorts_of(bundle: ModelBundle, head: HeadArtifact, cohorts: CohortCalibrations) -> list[dict[str, Any]]:
    """Return what a head has for each cohort, by the names of the tables."""
    pooled = {"scale": head.calibration.scale, "bias": head.calibration.bias, "status": "pooled"}
    blank = {name: pooled.get(name, 0) for name in TABLES}
    file = bundle.path / head_directory(head) / COHORTS_FILE
    kept = read_json(file) if file.is_file() else {}
    if kept.get("column") != cohorts.column:
        log.warning("head %r has its pooled calibration in each cohort until `ovr calibrate` fits them", head.class_id)
        kept = {}
    return [{**blank, **kept.get("cohorts", {}).get(name, {})} for name in cohorts.names]


def check_change(bundle: ModelBundle, out: Path) -> None:
    """Raise ArtifactError where a head of the bundle cannot be changed, or not to `out`, before any work."""
    if bundle.shards:
        raise ArtifactError(
            f"bundle {bundle.path} keeps its {len(bundle.heads)} heads in shards; one head changes where each has a file of its own"
        )
    check_out(bundle, out)


def _of_limit(bundle: ModelBundle) -> dict[str, str]:
    """Return what is said from now on of the limit of abstention, if there is one: it was chosen with other heads."""
    if bundle.policy.abstain_below <= 0:
        return {}
    log.warning(
        "abstain_below=%.4f was chosen with other heads; `ovr decide abstention=NAME` chooses it again", bundle.policy.abstain_below
    )
    return {ABSTENTION_STATUS: STALE}


def _some(class_ids: Sequence[str]) -> Sequence[str]:
    if not class_ids:
        raise ConfigError("no class is named; give the class ids of the heads to change")
    if twice := sorted({each for each in class_ids if list(class_ids).count(each) > 1}):
        raise TaxonomyError(f"class {twice[0]!r} is named more than once")
    return class_ids


def _versions(versions: Sequence[int]) -> str:
    return "versions " + ", ".join(map(str, sorted(versions))) if versions else "none"
