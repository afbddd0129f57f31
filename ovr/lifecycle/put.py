"""A bundle with other heads in use: new ones, or versions that it keeps; what they need besides their own files.

K = heads
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ovr.core.artifact import Calibration, HeadArtifact
from ovr.core.bundle import ModelBundle, head_directory
from ovr.core.cohorts import TABLES, CohortCalibrations
from ovr.core.files import read_json
from ovr.core.ledger import HeadVersion
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.errors import ArtifactError
from ovr.export.calibrated import weights_of
from ovr.export.head import head_constants
from ovr.export.stored import parsed
from ovr.lifecycle.assemble import (
    ABSTENTION_STATUS,
    COHORTS_FILE,
    NewModel,
    Parts,
    Rewritten,
    assembled,
    check_out,
    head_logits,
    reference_prob,
    told,
)
from ovr.lifecycle.calibration_rows import MASK, AddedRows, Column, calibration_parts, column_of, columns_of
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
    return with_heads(bundle, out, {new.spec.id: new.spec for new in heads}, artifacts, models, entry, rows, parts)


def with_heads(
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
    weights = {head.class_id: models.get(head.class_id) or model_of(bundle, head) for head in artifacts.values()}
    columns = [bundle.taxonomy.column(i) if i in bundle.taxonomy.ids else None for i in taxonomy.ids]
    changed = {taxonomy.column(class_id): model for class_id, model in weights.items()}

    # Heads with the weights that are in use, calibrated otherwise, have their rows as before.
    steady = [
        head.class_id
        for head in bundle.heads
        if rows is None and head.class_id in models and same_weights(weights[head.class_id], model_of(bundle, head))
    ]
    strange = [taxonomy.column(class_id) for class_id in models if class_id not in steady]
    back = {
        taxonomy.column(i): _column(bundle, head, weights[i]) for i, head in artifacts.items() if i not in models or i in steady
    }
    pooled = [head.calibration for head in heads]
    reference = chosen(
        load_reference(bundle),
        columns,
        cohort_columns(bundle, columns, changed={taxonomy.column(i): head for i, head in artifacts.items()}),
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
        provenance=told(bundle, {**entry, **of_limit(bundle)}, num_changed=len(artifacts)),
        parts={
            **calibration_parts(bundle, columns, changed, rows, taxonomy=taxonomy, strange=strange, back=back),
            **(parts or {}),
        },
    )
    return Rewritten(made, tuple(artifacts), diffs)


def model_of(bundle: ModelBundle, head: HeadArtifact) -> NewModel:
    """Return kind and weights of a head that the bundle uses or keeps."""
    file = bundle.path / HeadVersion(head.class_id, head.version).directory / "model.onnx"
    kind, constants = head_constants(parsed(file.read_bytes(), what=f"head {head.class_id!r}"))
    return NewModel(kind, weights_of(constants))


def _column(bundle: ModelBundle, head: HeadArtifact, model: NewModel) -> Column | None:
    """Return the calibration rows of a version that the bundle keeps; None where they are not known, which a warning says.

    They are of its weights: a version that went when its calibration or threshold changed left none, and has those of the next one.
    """
    in_use = [each for each in bundle.heads if each.class_id == head.class_id]
    later = [bundle.earlier_head(HeadVersion(head.class_id, v)) for v in bundle.ledger.versions(head.class_id) if v > head.version]
    for each in (head, *in_use, *later):
        if each is not head and not same_weights(model_of(bundle, each), model):
            continue
        column = column_of(bundle, each)
        if column is not None:
            return column
    if (bundle.path / MASK).is_file():
        log.warning(
            "bundle %s does not say which of its calibration rows version %d of head %r was fitted on: none of them counts for it",
            bundle.path,
            head.version,
            head.class_id,
        )
    return None


def same_weights(a: NewModel, b: NewModel) -> bool:
    """Return whether two heads give the same logits by the same constants."""
    same = a.weights.keys() == b.weights.keys()
    return same and all(np.array_equal(value, b.weights[name]) for name, value in a.weights.items())


def chosen(reference: Reference, columns: Sequence[int | None], cohorts: CohortCalibrations | None) -> Reference:
    """Return the reference of some columns, None for one that is new: its answers are left 0, to be filled in."""
    prob_NK = columns_of(reference.prob_NK, columns)
    tolerance_K = columns_of(reference.tolerance_K[None], columns)[0]
    ids = tuple("" if k is None else reference.class_ids[k] for k in columns)
    logit_NK = None if reference.logit_NK is None else columns_of(reference.logit_NK, columns)
    return Reference(reference.x, prob_NK, tolerance_K, ids, cohorts, logit_NK)


def cohort_columns(
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
    kept = read_json(file, beside_bytes=0) if file.is_file() else {}
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


def of_limit(bundle: ModelBundle) -> dict[str, str]:
    """Return what is said from now on of the limit of abstention, if there is one: it was chosen with other heads."""
    if bundle.policy.abstain_below <= 0:
        return {}
    log.warning(
        "abstain_below=%.4f was chosen with other heads; `ovr decide abstention=NAME` chooses it again", bundle.policy.abstain_below
    )
    return {ABSTENTION_STATUS: STALE}
