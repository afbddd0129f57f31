"""Which heads of two bundles differ and which do not, computed anew from their files and their answers, not from what they say.

A head is unchanged where all of this holds: its leaf of the Merkle tree and its files are the same; its own model gives the same
bits; its column of both fused graphs gives a row the same bits, in batches of 1 to 64 whatever the other rows, of each cohort, on
one thread and on all cores (`ovr.lifecycle.same_answers`). A class of which only the description differs is "described": its
answers are held to the same. Both fused graphs are made anew from backbone, heads and card, and must be those. A version that a
bundle keeps, to which its head may be rolled back, has the same files in both.

Knows files and answers, not how they came about.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ovr.core.bundle import MANIFEST, ModelBundle, version_of
from ovr.core.files import read_json
from ovr.core.ledger import HeadVersion
from ovr.core.merkle import SHARED, differing, leaf_hash, leaf_values, prove_changes
from ovr.errors import ArtifactError
from ovr.export.derived import check_derived
from ovr.lifecycle.same_answers import same_answers
from ovr.runtime.reference import load_reference

State = Literal["unchanged", "described", "changed", "added", "retired"]
SAME: tuple[State, ...] = ("unchanged", "described")


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of each class from one bundle to the next."""

    states: dict[str, State]  # by class id, in the order in which the classes came
    shared_changed: bool  # backbone, input or policy: what every answer rests on
    num_answers: int  # of each unchanged head that were compared, bit by bit
    proof: dict[str, Any]  # for an auditor, in plain values: both roots, and a path for each leaf that differs
    kept: tuple[HeadVersion, ...]  # versions that the second keeps, and the first neither uses nor keeps

    def ids(self, *states: State) -> tuple[str, ...]:
        """Return the classes in these states."""
        return tuple(class_id for class_id, state in self.states.items() if state in states)


def verify(old: ModelBundle, new: ModelBundle, *, changed: Collection[str] | None = None) -> Verified:
    """Return which heads differ between two bundles, the second of which is made of the first.

    Args:
        changed: the classes that are to differ; None: any may.

    Raises:
        ArtifactError: bundles of other backbones or with head shards; a head whose files say that it is unchanged, and whose
            answers are not, with the first row; a fused graph that is not that of its heads; a version of a head that is kept has
            other files in the two; other classes differ than `changed` says.
    """
    for bundle in (old, new):
        if bundle.shards:
            raise ArtifactError(f"bundle {bundle.path} keeps its heads in shards; compared are bundles with a file a head")
    if old.backbone_sha256 != new.backbone_sha256:
        raise ArtifactError(
            f"the bundles have other backbones, {old.backbone_sha256[:12]} and {new.backbone_sha256[:12]}: every head differs"
        )
    manifests = [read_json(bundle.path / MANIFEST) for bundle in (old, new)]
    kept = _kept(old, new, [manifest["files"] for manifest in manifests])
    values = [leaf_values(manifest) for manifest in manifests]
    ours, theirs = ([leaf_hash(leaf) for leaf in each] for each in values)
    if new.ledger.class_ids[: len(old.ledger.class_ids)] != old.ledger.class_ids:
        raise ArtifactError(f"bundle {new.path} was not made of {old.path}: its classes came in another order")
    leaves_that_differ = set(differing(ours, theirs))
    states: dict[str, State] = {}
    for index, class_id in enumerate(new.ledger.class_ids, start=1):
        had, has = (class_id in bundle.taxonomy.ids for bundle in (old, new))
        if had and has:
            states[class_id] = "unchanged" if index not in leaves_that_differ else _how(values[0][index], values[1][index])
        elif had or has:
            states[class_id] = "retired" if had else "added"
    same = [class_id for class_id, state in states.items() if state in SAME]
    num_answers = same_answers(old, new, same, load_reference(old).x)
    for bundle in (old, new):
        check_derived(bundle)
    found = Verified(states, SHARED in leaves_that_differ, num_answers, _proof(old, new, values), kept)
    if changed is not None:
        _check_expected(found, changed)
    return found


def _kept(old: ModelBundle, new: ModelBundle, files: list[dict[str, Any]]) -> tuple[HeadVersion, ...]:
    """Return the versions that `new` keeps and `old` has not; raise where one of both, which either keeps, is not the same."""
    used = [{version_of(head) for head in bundle.heads} for bundle in (old, new)]
    has = [{*versions, *bundle.ledger.earlier} for versions, bundle in zip(used, (old, new), strict=True)]
    for each in sorted((has[0] & has[1]) - (used[0] & used[1])):
        said = [{name: row["sha256"] for name, row in of.items() if name.startswith(f"{each.directory}/")} for of in files]
        names = {f"{each.directory}/{name}" for name in ("head.json", "model.onnx")}
        if each not in used[0] | used[1]:
            names |= {*said[0], *said[1]}  # what it had for each cohort is written when it goes out of use
        if differ := sorted(name for name in names if said[0].get(name) != said[1].get(name)):
            raise ArtifactError(
                f"version {each.version} of head {each.class_id!r}, to which it may be rolled back, is another in {new.path} than "
                f"in {old.path}: {', '.join(differ)}; a version never changes"
            )
    return tuple(sorted(set(new.ledger.earlier) - has[0]))


def _check_expected(found: Verified, changed: Collection[str]) -> None:
    differ, expected = set(found.states) - set(found.ids("unchanged")), set(changed)
    problems = []
    if more := [class_id for class_id in found.states if class_id in differ - expected]:
        problems.append(f"{', '.join(map(repr, more[:5]))} differ too")
    if same := sorted(expected - differ):
        problems.append(f"{', '.join(map(repr, same[:5]))} do not differ")
    if found.shared_changed:
        problems.append("input schema or policy differ, which all heads share")
    if problems:
        told = ", ".join(map(repr, sorted(expected)[:5])) or "no head"
        raise ArtifactError(f"expected {told} alone to differ: {'; '.join(problems)}")


def _how(old: dict[str, Any], new: dict[str, Any]) -> State:
    return "described" if all(old[name] == new[name] for name in ("version", "files", "cohorts")) else "changed"


def _proof(old: ModelBundle, new: ModelBundle, values: list[list[dict[str, Any]]]) -> dict[str, Any]:
    changes = [asdict(proof) for proof in prove_changes(*values)]
    return {"old_root": old.merkle_root, "new_root": new.merkle_root, "changes": changes}


def differences(old: ModelBundle, new: ModelBundle) -> list[list[str]]:
    """Return a row (class, what, old, new) for each thing that differs between the heads of two bundles, as text."""
    rows = []
    columns = [{class_id: k for k, class_id in enumerate(bundle.taxonomy.ids)} for bundle in (old, new)]
    for class_id in dict.fromkeys((*old.taxonomy.ids, *new.taxonomy.ids)):
        said = [_said(bundle, column.get(class_id)) for bundle, column in zip((old, new), columns, strict=True)]
        rows += [
            [class_id, name, said[0].get(name, ""), said[1].get(name, "")]
            for name in dict.fromkeys((*said[0], *said[1]))
            if said[0].get(name, "") != said[1].get(name, "")
        ]
    return rows


def _said(bundle: ModelBundle, column: int | None) -> dict[str, str]:
    if column is None:
        return {}
    spec, head = bundle.taxonomy[column], bundle.heads[column]
    calibration = head.calibration
    return {
        "version": str(head.version),
        **{field.name: _text(getattr(spec, field.name)) for field in fields(spec) if field.name != "id"},
        "kind": head.kind,
        "calibration": f"{calibration.kind}, scale {calibration.scale:.6g}, bias {calibration.bias:.6g} ({calibration.status})",
        "threshold": f"{head.threshold:.6g} ({head.threshold_status})",
    }


def _text(value: Any) -> str:
    """Return what a field of a class says; nothing of one that says no more than its default."""
    return "" if value is None or value is False else "true" if value is True else str(value)
