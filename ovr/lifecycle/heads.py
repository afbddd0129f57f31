"""The life of a head: one class is added, replaced, retired, renamed or rolled back; every other head stays, to the bit.

Each step makes a new bundle of an old one. A class id is for ever, and a version number is never given twice: rolling back brings
an earlier version's very files into use again.

K = heads
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ovr.core.artifact import HeadArtifact
from ovr.core.bundle import ModelBundle, check_fits
from ovr.core.ledger import HeadVersion
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.data.overlap import FILES, read_digests, rows_of_step
from ovr.errors import ArtifactError
from ovr.export.stored import stored_weights
from ovr.lifecycle.assemble import (
    NewModel,
    Parts,
    Rewritten,
    assembled,
    class_specs,
    named_once,
    told,
)
from ovr.lifecycle.calibration_rows import calibration_parts
from ovr.lifecycle.gate import Gate, check_passed
from ovr.lifecycle.gate_stored import judge_stored
from ovr.lifecycle.put import NewHead, check_change, chosen, cohort_columns, model_of, of_limit, put, same_weights, with_heads
from ovr.lifecycle.rewrite import calibrations_of, of_critical, rewritten, thresholds_of
from ovr.lifecycle.rows import steps_of
from ovr.runtime.reference import load_reference

log = logging.getLogger(__name__)


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

    Heads with the weights that the bundle has, calibrated or decided otherwise, pass no gate, as those of `ovr calibrate`: the
    history says so (`ungated`), and names those of critical classes. They keep their calibration rows.

    Args:
        gate: judges them on the calibration rows of `source`; None: nobody does.
        force: take heads that it refuses, or that the bundle has already; the history says so.

    Raises:
        ArtifactError: the backbones differ; a head is the one in use (asked with a `gate`, without `force`); what `put` and
            `judge_stored` refuse.
        GateError: the gate refuses a head, and `force` is false. Nothing is written then.
        TaxonomyError: `source` has no such class, or one whose id looks like that of another class that the bundle has or has had.
    """
    check_change(bundle, out)
    columns = [source.taxonomy.column(class_id) for class_id in named_once(class_ids)]
    for column in columns:
        check_fits(source.heads[column], bundle.backbone_sha256)
    found = {column: NewModel(kind, weights) for column, kind, weights in stored_weights(source, columns)}
    specs = {i: class_specs(bundle).get(i, source.taxonomy[column]) for i, column in zip(class_ids, columns, strict=True)}
    Taxonomy({**class_specs(bundle), **specs}.values())  # ids that look alike, those of retired classes too
    before = {class_id: last_head(bundle, class_id) for class_id in class_ids}
    kept = {source.heads[k].class_id for k, new in found.items() if _has_weights(before[source.heads[k].class_id], new)}
    if gate is not None and not force:
        _check_other(bundle, source, [class_id for class_id in class_ids if class_id in kept])
    asked = [] if gate is None else [class_id for class_id in class_ids if class_id not in kept]
    judged = [judge_stored(gate, source, specs[i], bundle, before[i]) for i in asked if gate is not None]
    verdicts = {each.class_id: each.to_json() for each in judged}
    elsewhere = (
        f": as rows that the head is calibrated on in {source.path} (`ovr head retrain` there), or as a reason to force, by `ovr "
        f"compare bundle={bundle.path} candidate={source.path} data=...`"
    )
    forced = check_passed(judged, force=force, more_rows=elsewhere)
    heads = []
    for column in columns:
        head = source.heads[column]
        origin = {**head.provenance, "from_bundle_sha256": source.bundle_sha256, "from_version": head.version}
        origin |= {"gate": verdicts[head.class_id]} if head.class_id in verdicts else {}
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
    if judged:
        said |= {"gate": verdicts, "forced": forced}
    if ungated := [class_id for class_id in class_ids if class_id in kept]:
        said |= {"ungated": ungated, **of_critical([specs[class_id] for class_id in ungated])}
    return put(bundle, out, heads, entry=said, parts=_rows_of_source(bundle, source, class_ids))


def _has_weights(last: tuple[NewModel, HeadArtifact] | None, new: NewModel) -> bool:
    return last is not None and last[0].kind == new.kind and same_weights(last[0], new)


def _check_other(bundle: ModelBundle, source: ModelBundle, class_ids: Sequence[str]) -> None:
    """Raise ArtifactError where one of these heads, whose weights both bundles have, answers and decides as the one in use."""
    parts = ("calibration", "threshold", "threshold_status")
    for class_id in class_ids:
        if class_id in bundle.taxonomy.ids:
            ours, theirs = bundle.head(class_id), source.head(class_id)
            if all(getattr(ours, part) == getattr(theirs, part) for part in parts):
                raise ArtifactError(
                    f"head {class_id!r} of {source.path} is the one that {bundle.path} has already as version {ours.version}: "
                    "weights, calibration and threshold are the same; leave it out"
                )


def _rows_of_source(bundle: ModelBundle, source: ModelBundle, class_ids: Sequence[str]) -> Parts:
    """Return digests of the rows that these heads of `source` have seen, but for those that all heads of `bundle` have.

    Rows that `bundle` knows of another class are among them: they are new to these.
    """
    parts: Parts = {}
    for kind in FILES:
        theirs_U = read_digests(source.path, kind, steps=steps_of(source, class_ids))
        ours_U = read_digests(bundle.path, kind, steps=())
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
    return model_of(bundle, head), head


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
    named_once([each.class_id for each in versions])
    for each in versions:
        check_kept(bundle, each)
    said = {
        "command": "head rollback",
        "classes": [each.class_id for each in versions],
        "versions": [each.version for each in versions],
        **(entry or {}),
    }
    artifacts = {each.class_id: bundle.earlier_head(each) for each in versions}
    return with_heads(bundle, out, {each.class_id: specs[each.class_id] for each in versions}, artifacts, {}, said, None, None)


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
    gone = {bundle.taxonomy.column(class_id) for class_id in named_once(class_ids)}
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
        reference=chosen(reference, columns, cohort_columns(bundle, columns)),
        policy=bundle.policy,
        provenance=told(bundle, {**said, **of_limit(bundle)}, num_changed=len(gone)),
        parts=calibration_parts(bundle, columns, {}, None),
    )
    return Rewritten(made, tuple(bundle.taxonomy[k].id for k in sorted(gone)), diffs)


def respecified(bundle: ModelBundle, out: Path, specs: Sequence[ClassSpec], *, entry: Mapping[str, Any] | None = None) -> Rewritten:
    """Write the bundle with another name, owner or parent of some classes to `out`; no answer changes. It may have head shards.

    Raises:
        ArtifactError: `out` exists, or lies within the bundle.
        TaxonomyError: the bundle has no such class.
    """
    named_once([spec.id for spec in specs])
    new = {bundle.taxonomy.column(spec.id): spec for spec in specs}
    ids = tuple(spec.id for spec in specs)
    # What a class is held to is part of it, and the gate goes by it: the history tells what it was.
    described = {
        spec.id: {
            field.name: [getattr(old, field.name), getattr(spec, field.name)]
            for field in fields(spec)
            if getattr(old, field.name) != getattr(spec, field.name)
        }
        for old, spec in ((bundle.taxonomy[k], spec) for k, spec in new.items())
    }
    thresholds = thresholds_of(bundle)
    made = rewritten(
        bundle,
        out,
        calibrations=calibrations_of(bundle),
        threshold_K=thresholds.threshold_K,
        policy=bundle.policy,
        cohorts=bundle.cohorts,
        entry={"command": "head rename", "classes": list(ids), "described": described, **(entry or {})},
        taxonomy=Taxonomy(new.get(k, spec) for k, spec in enumerate(bundle.taxonomy)),
    )
    return Rewritten(made.bundle, ids, made.max_abs_diff)


def _versions(versions: Sequence[int]) -> str:
    return "versions " + ", ".join(map(str, sorted(versions))) if versions else "none"
