"""The model bundle: an immutable, hashed directory from which everything that is served is generated.

Knows where things lie in it and how they are proven, not how ONNX or Triton work.

    manifest.json                          taxonomy, heads, input, policy, digest and size of every file, provenance
    backbone/model.onnx                    raw input -> features
    backbone/weights.npz                   the same weights for torch
    heads/<slug>/<version>/model.onnx      features -> calibrated probability; head.json beside it. Versions that are not in use,
                                           those of retired classes included, stay beside those that are, with what they knew
                                           of the calibration rows (calibration.npz) and had for cohorts (cohorts.json)
    fused/model.onnx                       generated from the above: raw input -> all probabilities, with the model card inside
    calibration/                           logits, targets, mask and, within 256 MiB, features of the calibration rows (.npy)
    reference/                             some rows and torch's probabilities for them (.npy), and of models with cohorts its
                                           logits: what every export is checked against
    report/metrics.json                    per-class figures on the test split
    data/card.json                         source files, how they were split, counts a class and split, rows that are in two splits
    data/train_rows.npy                    digests of the training rows: rows that the model was trained on are told by them
    data/calib_rows.npy                    likewise of the calibration rows; those of rows that came to it later lie beside them, in
                                           calib_rows_1.npy for the first step of the provenance's history
    signatures/                            bundle.sig and heads.json, if it was signed; the one thing that may come later

From `LARGE_K` heads on, a bundle has head shards (see `shards`) in place of a directory a head, report/classes.npz and
data/classes.npz with figures and counts a class, and features and lists of labels in place of logits, targets and mask. A fused
graph too large for one file is left out.
"""

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovr.core.artifact import CARD_VERSIONS, DecisionPolicy, HeadArtifact, ModelCard, check_cohorts, check_schema_version
from ovr.core.cohorts import CohortCalibrations
from ovr.core.files import FOREIGN_JSON_VALUES, canonical_json, read_json, sha256_bytes, sha256_file
from ovr.core.heads import HeadColumns
from ovr.core.ledger import HeadVersion, Ledger
from ovr.core.merkle import leaves, root
from ovr.core.onnx_file import GRAPH_OPS, HEAD_OPS, SHARD_OPS, check_onnx_file
from ovr.core.packed import check_arrays
from ovr.core.schema import InputSchema
from ovr.core.shards import FIGURES, Shard, paths, read_columns
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError

MANIFEST = "manifest.json"
BACKBONE_ONNX = "backbone/model.onnx"
BACKBONE_WEIGHTS = "backbone/weights.npz"
FUSED_ONNX = "fused/model.onnx"
DATA_CARD = "data/card.json"
SIGNATURES = "signatures"
BUNDLE_SIGNATURE = f"{SIGNATURES}/bundle.sig"
HEAD_SIGNATURES = f"{SIGNATURES}/heads.json"
KINDS = (".json", ".onnx", ".npy", ".npz")  # of files that the manifest names


def version_of(head: HeadArtifact) -> HeadVersion:
    """Return which version of which head it is."""
    return HeadVersion(head.class_id, head.version)


def head_directory(head: HeadArtifact) -> str:
    """Return where the head lies in a bundle, relative to its root."""
    return version_of(head).directory


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """An opened bundle; `open_bundle` has checked every digest."""

    path: Path
    taxonomy: Taxonomy
    heads: Sequence[HeadArtifact]  # in column order; `HeadColumns` where there are shards
    input: InputSchema
    policy: DecisionPolicy
    backbone_sha256: str
    bundle_sha256: str
    provenance: dict[str, Any]
    shards: tuple[Shard, ...] = ()
    has_fused: bool = True
    cohorts: CohortCalibrations | None = None
    ledger: Ledger = Ledger(())  # noqa: RUF009  # frozen
    merkle_root: str = ""  # over what all heads share and each head (see `merkle`); "" where there are shards

    def head(self, class_id: str) -> HeadArtifact:
        """Return the head of a class.

        Raises:
            TaxonomyError: it is not one of the classes.
        """
        return self.heads[self.taxonomy.column(class_id)]

    def next_version(self, class_id: str) -> int:
        """Return the version that a new head of a class gets: above all that it has or keeps; 1 of a new class."""
        used = [head.version for head in self.heads if head.class_id == class_id]
        return 1 + max([*used, *self.ledger.versions(class_id)], default=0)

    def earlier_head(self, version: HeadVersion) -> HeadArtifact:
        """Return a head that is kept and not in use.

        Raises:
            ArtifactError: it is not among those.
        """
        if version not in self.ledger.earlier:
            raise ArtifactError(f"bundle {self.path} keeps no version {version.version} of head {version.class_id!r}")
        return HeadArtifact.from_json(read_json(self.path / version.directory / "head.json", beside_bytes=0))

    @property
    def card(self) -> ModelCard:
        """What a runtime must know besides the weights."""
        if isinstance(self.heads, HeadColumns):
            versions, thresholds = self.heads.version_K.tolist(), self.heads.threshold_K.tolist()
        else:
            versions, thresholds = [head.version for head in self.heads], [head.threshold for head in self.heads]
        return ModelCard(
            taxonomy=self.taxonomy,
            head_versions=tuple(versions),
            thresholds=tuple(thresholds),
            policy=self.policy,
            input=self.input,
            backbone_sha256=self.backbone_sha256,
            bundle_sha256=self.bundle_sha256,
            cohorts=self.cohorts,
        )

    @property
    def backbone_onnx(self) -> Path:
        """Raw input (B, *shape) -> features (B, D)."""
        return self.path / BACKBONE_ONNX

    @property
    def fused_onnx(self) -> Path:
        """Raw input (B, *shape) -> probabilities (B, K).

        Raises:
            ArtifactError: the bundle has none.
        """
        if not self.has_fused:
            raise ArtifactError(
                f"bundle {self.path} has no fused graph: with {len(self.heads)} heads it does not fit one ONNX file; "
                f"use {BACKBONE_ONNX} and the {len(self.shards)} models of its head shards"
            )
        return self.path / FUSED_ONNX

    def head_onnx(self, head: HeadArtifact) -> Path:
        """Features (B, D) -> probability (B, 1).

        Raises:
            ArtifactError: the bundle keeps its heads in shards.
        """
        if self.shards:
            raise ArtifactError(
                f"bundle {self.path} keeps its {len(self.heads)} heads in shards, and no file of head {head.class_id!r} alone; "
                "`ovr export` makes one with heads=[ID]"
            )
        return self.path / head_directory(head) / "model.onnx"


def open_bundle(path: Path) -> ModelBundle:
    """Return the bundle at `path` after checking its version, every digest and what every file is made of, before any is parsed.

    Raises:
        ArtifactError: it is not a bundle, of another schema version, changed, incomplete, holds a file that the manifest
            does not name, or a head of another backbone (all damaged files are named in one error); an ONNX file of more than a
            plain graph of known operators, or arrays that are pickled or not as large as they say.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise ArtifactError(f"{path} is not a bundle: it has no {MANIFEST}")
    manifest = read_json(file, beside_bytes=_bytes_described(file))
    check_schema_version(manifest, f"{file}", versions=CARD_VERSIONS)
    try:
        # Its own digest leaves out how it is spelled: other blanks, or 1e2 for 1E2, are changes too.
        if canonical_json(manifest) != file.read_bytes():
            raise ArtifactError(f"{file} was changed after it was written: it is not spelled as ovr spells it")
        recorded = manifest.pop("bundle_sha256")
        derived = manifest.pop("derived")
        if sha256_bytes(canonical_json(manifest)) != recorded:
            raise ArtifactError(f"{file} was changed after it was written: its digest is not {recorded[:12]}")
        # Its own digest leaves these out: they may not stand in for a file that it covers.
        if set(derived) != {FUSED_ONNX} and (derived or "shards" not in manifest):
            raise ArtifactError(f"{file} was changed after it was written: only {FUSED_ONNX} is derived, got {sorted(derived)}")
        _check_files(path, {**manifest["files"], **derived})
        backbone_sha256 = manifest["files"][BACKBONE_ONNX]["sha256"]
        taxonomy = Taxonomy.from_json(manifest["taxonomy"])
        shards = tuple(Shard(**row) for row in manifest.get("shards", ()))
        heads = (
            _read_shards(path, shards, taxonomy, manifest["files"], backbone_sha256)
            if shards
            else _read_heads(path, manifest, taxonomy, backbone_sha256)
        )
        cohorts = CohortCalibrations.from_json(manifest["cohorts"]) if "cohorts" in manifest else None
        check_cohorts(cohorts, taxonomy)
        ledger = Ledger(()) if shards else Ledger.from_json(manifest, taxonomy)
        _check_earlier(path, ledger, heads, manifest["files"])
        merkle_root = "" if shards else root(leaves(manifest))
        if manifest.get("merkle_root", merkle_root) != merkle_root:
            raise ArtifactError(f"{file} was changed after it was written: its Merkle root is not that of its heads")
        return ModelBundle(
            path=path,
            taxonomy=taxonomy,
            heads=heads,
            input=InputSchema.from_json(manifest["input"]),
            policy=DecisionPolicy(**manifest["policy"]),
            backbone_sha256=backbone_sha256,
            bundle_sha256=recorded,
            provenance=manifest["provenance"],
            shards=shards,
            has_fused=FUSED_ONNX in derived,
            cohorts=cohorts,
            ledger=ledger,
            merkle_root=merkle_root,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read: {type(error).__name__} {error}") from None


def check_columns(heads: Sequence[HeadArtifact], taxonomy: Taxonomy) -> None:
    """Raise ArtifactError unless there is one head a class, in column order."""
    if tuple(head.class_id for head in heads) != taxonomy.ids:
        raise ArtifactError(f"the heads are of classes {[h.class_id for h in heads]}; the taxonomy has {list(taxonomy.ids)}")


def check_fits(head: HeadArtifact, backbone_sha256: str) -> None:
    """Raise ArtifactError unless the head was trained on this backbone."""
    if head.backbone_sha256 != backbone_sha256:
        raise ArtifactError(
            f"head {head.class_id!r} v{head.version} was trained on backbone {head.backbone_sha256[:12]}, "
            f"this bundle has {backbone_sha256[:12]}; train the head on this bundle's features"
        )


def _bytes_described(manifest: Path) -> int:
    """Return what the bundle's other files take on the disk, where holes take nothing; 0 where the manifest is small anyway."""
    if manifest.is_symlink() or manifest.stat().st_size <= FOREIGN_JSON_VALUES:
        return 0
    found = [file.lstat() for file in manifest.parent.rglob("*") if file != manifest]
    return sum(min(each.st_size, 512 * each.st_blocks) for each in found if stat.S_ISREG(each.st_mode))


def _check_files(root: Path, files: Mapping[str, dict[str, Any]]) -> None:
    problems: list[str] = []
    present = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_symlink() or not p.is_dir()}
    for relative, recorded in files.items():
        file = root / relative
        if file.suffix not in KINDS:
            problems.append(f"{relative} is of no kind that bundles have ({', '.join(KINDS)})")
        elif relative not in present or file.is_symlink():
            problems.append(f"{relative} is missing" if relative not in present else f"{relative} is a symbolic link")
        elif not file.is_file():
            problems.append(f"{relative} is no regular file")
        elif file.stat().st_size != recorded["size_bytes"] or sha256_file(file) != recorded["sha256"]:
            problems.append(f"{relative} was changed")
    signed = {relative for relative in (BUNDLE_SIGNATURE, HEAD_SIGNATURES) if relative in present}
    problems += [f"{relative} is no regular file" for relative in signed if (root / relative).is_symlink()]
    if (root / MANIFEST).is_symlink():
        problems.append(f"{MANIFEST} is a symbolic link")
    problems += [f"{relative} is not named in the manifest" for relative in sorted(present - {*files, MANIFEST} - signed)]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ArtifactError(f"bundle {root} is damaged: {'; '.join(problems[:5])}{more}")
    for relative in files:
        _check_content(root, relative)


def _check_content(root: Path, relative: str) -> None:
    """Check what a file is made of before any parser sees it: its digest tells only that it is the one that was meant.

    Raises:
        ArtifactError: an ONNX file of more than a plain graph of known operators; arrays that are pickled, or not as large as they
            say.
    """
    file = root / relative
    if relative.endswith(".onnx"):
        allowed_ops = HEAD_OPS | SHARD_OPS if relative.startswith("heads/") else GRAPH_OPS
        check_onnx_file(file, allowed_ops=allowed_ops, what=f"{relative} of bundle {root}")
    elif relative.endswith((".npy", ".npz")):
        try:
            check_arrays(file)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{relative} of bundle {root} is not read: {error}") from None


def _check_earlier(path: Path, ledger: Ledger, heads: Sequence[HeadArtifact], files: Mapping[str, Any]) -> None:
    for each in ledger.earlier:
        if missing := [name for name in ("head.json", "model.onnx") if f"{each.directory}/{name}" not in files]:
            raise ArtifactError(f"bundle {path} keeps {each.directory}, but has no digest of its {missing[0]}")
    if ledger.earlier and (twice := {version_of(head) for head in heads} & {*ledger.earlier}):
        raise ArtifactError(f"bundle {path} both uses and keeps version {min(twice).version} of head {min(twice).class_id!r}")


def _read_heads(root: Path, manifest: dict[str, Any], taxonomy: Taxonomy, backbone_sha256: str) -> Sequence[HeadArtifact]:
    heads = tuple(_read_head(root, row, manifest["files"]) for row in manifest["heads"])
    for head in heads:
        check_fits(head, backbone_sha256)
    check_columns(heads, taxonomy)
    return heads


def _read_shards(
    root: Path, shards: Sequence[Shard], taxonomy: Taxonomy, files: Mapping[str, Any], backbone_sha256: str
) -> HeadColumns:
    for relative in (*paths(shards), FIGURES):
        if relative not in files:  # and with that, not proven
            raise ArtifactError(f"bundle {root} has head shards, but no digest of {relative}")
    return read_columns(root, shards, taxonomy.ids, backbone_sha256=backbone_sha256)


def _read_head(root: Path, row: dict[str, Any], files: Mapping[str, Any]) -> HeadArtifact:
    relative = f"{row['path']}/head.json"
    if relative not in files:  # and with that, not proven
        raise ArtifactError(f"bundle {root} names a head at {row['path']}, but has no digest of {relative}")
    head = HeadArtifact.from_json(read_json(root / relative, beside_bytes=0))
    if head_directory(head) != row["path"]:
        raise ArtifactError(f"bundle {root} has head {head.class_id!r} at {row['path']}; expected {head_directory(head)}")
    return head
