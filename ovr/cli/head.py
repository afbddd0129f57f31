"""`ovr head ...`: one class changes, nothing else does. Each change makes a new bundle of an old one. Needs no torch."""

import getpass
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ovr.cli.bundle import text
from ovr.cli.head_gate import gate_of, print_verdict
from ovr.cli.labelled_rows import class_ids
from ovr.cli.tables import table
from ovr.core.nearest import nearest
from ovr.errors import ConfigError, TaxonomyError

if TYPE_CHECKING:
    from ovr.core.bundle import ModelBundle
    from ovr.lifecycle.assemble import Rewritten

log = logging.getLogger(__name__)

PROOF_BYTES = 1 << 22  # taken as what a proof describes: ten thousand changes fit


def list_head(cfg: DictConfig) -> None:
    """Print a line a head, and one for each class that is retired; of those that are asked for."""
    from ovr.core.bundle import open_bundle

    bundle = open_bundle(Path(cfg.bundle))
    asked = _asked_for(cfg, bundle)
    header = ["class", "name", "owner", "version", "kept", "calibration", "threshold", "positives"]
    rows = [
        [
            spec.id,
            spec.name,
            spec.owner,
            str(head.version),
            _kept(bundle, spec.id),
            f"{head.calibration.kind} ({head.calibration.status})",
            f"{head.threshold:.4f}",
            str(head.calibration.num_positives),
        ]
        for spec, head in zip(bundle.taxonomy, bundle.heads, strict=True)
    ]
    rows += [[spec.id, spec.name, spec.owner, "retired", _kept(bundle, spec.id), "", "", ""] for spec in bundle.ledger.retired]
    print(table([header, *(row for row in rows if row[0] in asked)]))


def show_head(cfg: DictConfig) -> None:
    """Print what the bundle says of a head, or of an earlier version, and the steps of its history that name it, as JSON.

    Of several, named by `classes`, a list.

    Raises:
        ConfigError: `version` is no whole number.
    """
    from ovr.core.bundle import open_bundle

    bundle = open_bundle(Path(cfg.bundle))
    ids = known_ids(bundle, class_ids_of(cfg), retired=True)
    version = _version(cfg)
    said = [_shown(bundle, class_id, version) for class_id in ids]
    print(json.dumps(said[0] if cfg.classes is None else said, indent=1, ensure_ascii=False))


def _shown(bundle: "ModelBundle", class_id: str, version: int | None) -> dict[str, Any]:
    from dataclasses import asdict

    from ovr.core.ledger import HeadVersion
    from ovr.lifecycle.assemble import class_specs

    in_use = bundle.head(class_id) if class_id in bundle.taxonomy.ids else None
    if version is None:
        version = in_use.version if in_use else bundle.ledger.versions(class_id)[-1]
    head = in_use if in_use is not None and in_use.version == version else bundle.earlier_head(HeadVersion(class_id, version))
    spec = class_specs(bundle)[class_id]
    return {
        "class": {name: value for name, value in asdict(spec).items() if value is not None},
        "in_use": None if in_use is None else in_use.version,
        "kept": bundle.ledger.versions(class_id),
        "head": head.to_json(),
        "history": [step for step in bundle.provenance.get("history", []) if _names(step, class_id)],
    }


def diff_head(cfg: DictConfig) -> None:
    """Print what differs between two bundles, a line a head; of the classes that are asked for."""
    from ovr.core.bundle import open_bundle
    from ovr.lifecycle.verify import differences

    old, new = open_bundle(Path(cfg.old)), open_bundle(Path(cfg.new))
    asked = _asked_for(cfg, old, new)
    rows = [row for row in differences(old, new) if row[0] in asked]
    print(table([["class", "what", "old", "new"], *rows]) if rows else "the bundles' heads are the same")


def verify_head(cfg: DictConfig) -> None:
    """Print which heads differ and which do not, and write the proof where `proof` says; with `check`, read one instead.

    Raises:
        ArtifactError: other heads differ than `changed` says; a head says that it is unchanged, and its answers are not; a fused
            graph that is not that of its heads; a version that is kept is another.
        ConfigError: `proof` exists, or the roots that `check` needs are not given.
    """
    from ovr.core.bundle import open_bundle
    from ovr.core.files import canonical_json, read_json, write_file
    from ovr.core.merkle import check_proof
    from ovr.lifecycle.verify import SAME, verify

    if cfg.check is not None:
        if cfg.old_root is None or cfg.new_root is None:
            raise ConfigError(
                "check=FILE needs old_root=ROOT new_root=ROOT, the Merkle roots of the two bundles as you know them yourself"
            )
        ids = check_proof(
            read_json(Path(cfg.check), beside_bytes=PROOF_BYTES), old_root=str(cfg.old_root), new_root=str(cfg.new_root)
        )
        print(f"the proof holds: {', '.join(i or 'what all heads share' for i in ids) or 'nothing'} alone differs")
        return
    if cfg.old is None or cfg.new is None:
        raise ConfigError("give two bundles, `ovr head verify OLD NEW`, or check=FILE, a proof")
    proof = None if cfg.proof is None else Path(cfg.proof)
    if proof is not None and proof.exists():
        raise ConfigError(f"proof={cfg.proof} exists; expected a file that does not")
    old, new = (open_bundle(Path(cfg[name])) for name in ("old", "new"))
    changed = [cfg.changed] if isinstance(cfg.changed, str | int) else cfg.changed
    found = verify(old, new, changed=class_ids(OmegaConf.create(changed), key="changed"))
    if proof is not None and not cfg.dry_run:
        write_file(proof, canonical_json(found.proof))
    for state in ("changed", "added", "retired", "described"):
        for class_id in found.ids(state):
            print(f"{state}: {class_id}")
    if found.shared_changed:
        print("changed: input schema or policy, which all heads share")
    for kept in found.kept:
        print(f"kept for rollback, and not in {cfg.old}: {kept.class_id} version {kept.version}")
    same = found.ids(*SAME)
    print(f"unchanged: {len(same)} heads, {found.num_answers} answers of each equal to the bit, their files byte for byte")
    print("both fused graphs are those of their heads")
    print(f"{len(found.proof['changes'])} leaves differ\nold_root={old.merkle_root}\nnew_root={new.merkle_root}")


def replace_head(cfg: DictConfig) -> None:
    """Write the bundle with heads of another one."""
    from ovr.core.bundle import open_bundle
    from ovr.lifecycle.heads import replace_heads

    bundle, source = open_bundle(Path(cfg.bundle)), open_bundle(Path(cfg["from"]))
    ids, gate = known_ids(source, class_ids_of(cfg)), gate_of(cfg)
    with out_of(cfg) as out:
        made = replace_heads(bundle, out, source, ids, gate=gate, force=cfg.force, entry=entry_of(cfg))
        step = made.bundle.provenance["history"][-1]
        for class_id, verdict in step.get("gate", {}).items():
            print(f"{class_id}: judged on the calibration rows of {source.path}")
            print_verdict(verdict)
        for class_id in step.get("ungated", []):
            print(f"{class_id}: the weights are those that {bundle.path} has; no gate, as of `ovr calibrate`")
        print_change(cfg, bundle, made)


def rollback_head(cfg: DictConfig) -> None:
    """Write the bundle with earlier versions in use again: `version`, or the one before.

    Raises:
        ConfigError: `version` is no whole number.
    """
    from ovr.core.bundle import open_bundle
    from ovr.core.ledger import HeadVersion
    from ovr.lifecycle.heads import last_version, rollback

    version, bundle = _version(cfg), open_bundle(Path(cfg.bundle))
    ids = known_ids(bundle, class_ids_of(cfg), retired=True)
    versions = [last_version(bundle, i) if version is None else HeadVersion(i, version) for i in ids]
    with out_of(cfg) as out:
        print_change(cfg, bundle, rollback(bundle, out, versions, entry=entry_of(cfg)))


def rename_head(cfg: DictConfig) -> None:
    """Write the bundle with another name or owner of some classes, or what else its taxonomy says of them.

    Raises:
        ConfigError: nothing is given.
    """
    from dataclasses import asdict, replace

    from ovr.core.bundle import open_bundle
    from ovr.lifecycle.heads import respecified

    bundle = open_bundle(Path(cfg.bundle))
    ids = known_ids(bundle, class_ids_of(cfg))
    specs = {spec.id: spec for spec in bundle.taxonomy}
    new = {name: cfg[name] for name in asdict(specs[ids[0]]) if name not in ("id", "name") and cfg[name] is not None}
    named = names_of(cfg, ids)
    if not new and not any(named.values()):
        raise ConfigError("neither name nor owner nor anything else is given; say what is to be another")
    changed = [replace(specs[class_id], **new, **named[class_id]) for class_id in ids]
    with out_of(cfg) as out:
        print_change(cfg, bundle, respecified(bundle, out, changed, entry=entry_of(cfg)))


def retire_head(cfg: DictConfig) -> None:
    """Write the bundle without the answers of some classes."""
    from ovr.core.bundle import open_bundle
    from ovr.lifecycle.heads import retire

    bundle = open_bundle(Path(cfg.bundle))
    ids = known_ids(bundle, class_ids_of(cfg))
    with out_of(cfg) as out:
        print_change(cfg, bundle, retire(bundle, out, ids, entry=entry_of(cfg)))


def class_ids_of(cfg: DictConfig) -> list[str]:
    """Return `classes`, or the one `class`.

    Raises:
        ConfigError: both or neither is given, or `classes` is empty.
    """
    if (cfg["class"] is None) == (cfg.classes is None):
        raise ConfigError("give class=ID or classes=[ID,...], and not both")
    ids = [text(cfg, "class")] if cfg.classes is None else class_ids(cfg.classes, key="classes")
    if not ids:
        raise ConfigError("classes is an empty list; name the class ids of the heads to change")
    return ids


def _asked_for(cfg: DictConfig, *bundles: "ModelBundle") -> set[str]:
    """Return the classes that are asked for by `class` or `classes`, which one of the bundles has or had; all where neither is."""
    from ovr.lifecycle.assemble import class_specs

    every = {class_id: None for bundle in bundles for class_id in class_specs(bundle)}
    if cfg["class"] is None and cfg.classes is None:
        return set(every)
    ids = class_ids_of(cfg)
    if unknown := [class_id for class_id in ids if class_id not in every]:
        near = nearest(unknown[0], every)
        where = " and ".join(str(bundle.path) for bundle in bundles)
        raise TaxonomyError(f"class {unknown[0]!r} is none of those of {where}" + (near and f"; {near}"))
    return set(ids)


def names_of(cfg: DictConfig, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Return {"name": NAME} for each class id, by `name` or `names`; an empty one where neither is given.

    Raises:
        ConfigError: both are given, `name` is given for several classes, or `names` are of another number.
    """
    if cfg.name is not None and cfg.names is not None:
        raise ConfigError("give name=NAME or names=[NAME,...], and not both")
    if cfg.name is not None and len(ids) > 1:
        raise ConfigError(f"name={cfg.name} is of one class, got {len(ids)}; give names=[NAME,...] in the order of the classes")
    names = class_ids(cfg.names, key="names") if cfg.name is None else [text(cfg, "name")]
    if names is not None and len(names) != len(ids):
        raise ConfigError(f"names has {len(names)} for {len(ids)} classes; expected one for each, in their order")
    return {class_id: {} if names is None else {"name": names[i]} for i, class_id in enumerate(ids)}


def known_ids(bundle: "ModelBundle", ids: list[str], *, retired: bool = False) -> list[str]:
    """Return the ids; raise TaxonomyError, with the nearest names, where one is no class of the bundle."""
    known = [*bundle.taxonomy.ids, *((spec.id for spec in bundle.ledger.retired) if retired else ())]
    for class_id in ids:
        if class_id not in known:
            was = "; it is retired" if any(spec.id == class_id for spec in bundle.ledger.retired) else ""
            raise TaxonomyError(
                f"bundle {bundle.path} has no class {class_id!r}{was}; {nearest(class_id, known) or 'see ovr head list'}"
            )
    return ids


@contextmanager
def out_of(cfg: DictConfig) -> Iterator[Path]:
    """Yield where the new bundle is written: `out`, or with `dry_run` a place that is gone afterwards."""
    if cfg.dry_run:
        from ovr.core.bundle import open_bundle
        from ovr.lifecycle.assemble import check_out

        if cfg.out is not None:
            check_out(open_bundle(Path(cfg.bundle)), Path(cfg.out))
        with TemporaryDirectory() as directory:
            yield Path(directory) / "bundle"
    elif cfg.out is None:
        raise ConfigError("out is not given; add out=DIR, or dry_run=true to see what would change")
    else:
        yield Path(cfg.out)


def entry_of(cfg: DictConfig) -> dict[str, Any]:
    try:
        who = str(cfg.who or getpass.getuser())
    except (KeyError, OSError):  # a user id without a name
        who = ""
    return {"who": who, "why": "" if cfg.why is None else str(cfg.why)}


def print_change(cfg: DictConfig, bundle: "ModelBundle", made: "Rewritten") -> None:
    from ovr.lifecycle.verify import differences

    print(table([["class", "what", "old", "new"], *differences(bundle, made.bundle)]))
    if cfg.dry_run:
        print("dry run: nothing was written")
    else:
        print(f"bundle {made.bundle.bundle_sha256[:12]} in {cfg.out}; its parent is {bundle.bundle_sha256[:12]}")


def _version(cfg: DictConfig) -> int | None:
    """Return `version`, None where it is null: 1.0 and true are equal to 1, and no version's number."""
    version: Any = cfg.version
    if version is not None and type(version) is not int:
        raise ConfigError(f"version is {version!r}; expected the whole number of a version, as `ovr head list` tells them")
    return version


def _kept(bundle: "ModelBundle", class_id: str) -> str:
    return ", ".join(map(str, bundle.ledger.versions(class_id)))


def _names(step: dict[str, Any], class_id: str) -> bool:
    return class_id in (step.get("classes") or [class_id])
