"""A Merkle tree over the parts of a bundle that answer: one leaf for what all heads share, one for each class it has ever had.

Two roots and one short proof show that a single leaf differs between two bundles: the same path leads from the old leaf to the old
root and from the new leaf to the new one. The tree has a fixed depth and absent leaves, so that a class that is added, retired or
changed is one leaf in another state, never a tree of another shape.

Hashes are SHA-256, of 0x00 and the leaf's canonical JSON, or of 0x01 and two hashes (as in RFC 6962, "Certificate Transparency").
An absent leaf is 32 zero bytes.

L = leaves
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ovr.core.files import canonical_json
from ovr.errors import ArtifactError

DEPTH = 24  # 16.8 million leaves
ABSENT = bytes(32)
SHARED = 0  # the index of the leaf of what all heads share
_FILES = ("backbone/model.onnx", "backbone/weights.npz")


def leaves(manifest: Mapping[str, Any]) -> list[bytes]:
    """Return the hashes (L,) of a manifest's leaves."""
    return [leaf_hash(value) for value in leaf_values(manifest)]


def leaf_values(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a manifest's leaves: that of the shared parts, then a class each in the order of its ledger.

    Args:
        manifest: of a bundle with a file a head.
    """
    files, cohorts = manifest["files"], manifest.get("cohorts")
    tables = {} if cohorts is None else {name: rows for name, rows in cohorts.items() if name not in ("column", "names")}
    shared = {
        "input": manifest["input"],
        "policy": manifest["policy"],
        "files": {name: files[name]["sha256"] for name in _FILES if name in files},
        "cohorts": None if cohorts is None else {name: cohorts[name] for name in ("column", "names")},
    }
    classes, found = manifest["taxonomy"], {}
    if isinstance(classes, dict):
        classes = [dict(zip(classes, row, strict=True)) for row in zip(*classes.values(), strict=True)]
    for column, (spec, head) in enumerate(zip(classes, manifest["heads"], strict=True)):
        names = [f"{head['path']}/{name}" for name in ("head.json", "model.onnx")]
        found[spec["id"]] = {
            "class": spec,
            "version": head["version"],
            "files": {name: files[name]["sha256"] for name in names},
            "cohorts": {name: [row[column] for row in rows] for name, rows in tables.items()},
        }
    for spec in manifest.get("retired", ()):
        found[spec["id"]] = {"class": spec, "retired": True}
    ids = manifest.get("ledger", [spec["id"] for spec in classes])
    return [shared, *(found[class_id] for class_id in ids)]


def leaf_hash(value: Any) -> bytes:
    """Return the hash of a leaf of plain values."""
    return hashlib.sha256(b"\x00" + canonical_json(value)).digest()


def root(leaf_L: Sequence[bytes]) -> str:
    """Return the root of the tree in hexadecimal."""
    level, absent = list(leaf_L), ABSENT
    for _ in range(DEPTH):
        level, absent = _above(level, absent), _node(absent, absent)
    return level[0].hex()


def path(leaf_L: Sequence[bytes], index: int) -> tuple[str, ...]:
    """Return the hashes beside the way from leaf `index`, which may be absent, to the root, from the leaf on."""
    level, absent, found = list(leaf_L), ABSENT, []
    for _ in range(DEPTH):
        beside = index ^ 1
        found.append((level[beside] if beside < len(level) else absent).hex())
        level, absent, index = _above(level, absent), _node(absent, absent), index // 2
    return tuple(found)


def root_over(leaf: bytes, index: int, hashes: Sequence[str]) -> str:
    """Return the root that leaf `index` and the hashes beside its way lead to, in hexadecimal."""
    for beside in hashes:
        other = bytes.fromhex(beside)
        leaf = _node(other, leaf) if index % 2 else _node(leaf, other)
        index //= 2
    return leaf.hex()


@dataclass(frozen=True, slots=True)
class ChangeProof:
    """That leaf `index` alone makes one root another, and what the leaf says before and after; None where it is absent.

    An auditor needs it and the two roots, and not the bundles.
    """

    index: int
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    hashes: tuple[str, ...]

    def root_after(self, before: str) -> str:
        """Return the root of the tree with the new leaf, given the root of the tree with the old one.

        Raises:
            ArtifactError: the proof is not of that tree, or is none.
        """
        if len(self.hashes) != DEPTH or not 0 <= self.index < 2**DEPTH or not all(map(_is_hash, self.hashes)):
            raise ArtifactError(
                f"a proof has the index of a leaf and {DEPTH} hashes of 64 hexadecimal digits; this is another thing"
            )
        old, new = (
            root_over(ABSENT if leaf is None else leaf_hash(leaf), self.index, self.hashes) for leaf in (self.old, self.new)
        )
        if old != before:
            raise ArtifactError(f"the proof is of a tree with root {old[:12]}, not of {before[:12]}")
        return new

    @property
    def class_id(self) -> str:
        """The class that the leaf is of; "" of the shared parts."""
        said = {(leaf or {}).get("class", {}).get("id") for leaf in (self.old, self.new) if leaf is not None}
        if len(said) != 1:
            raise ArtifactError(f"the leaves of a proof are of one class, got {sorted(map(str, said))}")
        return str(said.pop() or "")


def prove_changes(old_L: Sequence[dict[str, Any]], new_L: Sequence[dict[str, Any]]) -> tuple[ChangeProof, ...]:
    """Return a proof for each of the leaves that differ, one after the other: the root after each is the one before the next."""
    size = max(len(old_L), len(new_L))
    old, new = ([*leaf_L, *[None] * (size - len(leaf_L))] for leaf_L in (old_L, new_L))
    tree = [ABSENT if leaf is None else leaf_hash(leaf) for leaf in old]
    target = [ABSENT if leaf is None else leaf_hash(leaf) for leaf in new]
    proofs = []
    for index in differing(tree, target):
        proofs.append(ChangeProof(index, old[index], new[index], path(tree, index)))
        tree[index] = target[index]
    return tuple(proofs)


def check_proof(said: Mapping[str, Any], *, old_root: str, new_root: str) -> tuple[str, ...]:
    """Return the ids of the classes that alone differ between two bundles, "" for the parts that all share, by a proof.

    Args:
        said: as `ovr head verify` writes it: `old_root`, `new_root` and `changes`, a proof each.
        old_root: that of the bundle before, from whom the checker trusts, and not from the proof: anybody can make one between
            roots of his own.
        new_root: likewise.

    Raises:
        ArtifactError: it is of other roots, or does not lead from the one to the other.
    """
    try:
        proofs = [ChangeProof(row["index"], row["old"], row["new"], tuple(row["hashes"])) for row in said["changes"]]
        told = str(said["old_root"]), str(said["new_root"])
        if not all(isinstance(proof.index, int) for proof in proofs):
            raise TypeError("index is no whole number")
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"this is no proof of `ovr head verify`: {type(error).__name__} {error}") from None
    if told != (old_root, new_root):
        raise ArtifactError(
            f"the proof is of roots {told[0][:12]} and {told[1][:12]}; expected {old_root[:12]} and {new_root[:12]}"
        )
    reached, end = told
    for proof in proofs:
        reached = proof.root_after(reached)
    if reached != end:
        raise ArtifactError(f"the changes lead to root {reached[:12]}, and the proof says {end[:12]}")
    return tuple(proof.class_id for proof in proofs)


def differing(old_L: Sequence[bytes], new_L: Sequence[bytes]) -> list[int]:
    """Return the indices of leaves that differ, absent ones included."""
    size = max(len(old_L), len(new_L))
    old, new = ([*leaf_L, *[ABSENT] * (size - len(leaf_L))] for leaf_L in (old_L, new_L))
    return [index for index in range(size) if old[index] != new[index]]


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _above(level: Sequence[bytes], absent: bytes) -> list[bytes]:
    even = [*level, absent] if len(level) % 2 else level
    return [_node(even[i], even[i + 1]) for i in range(0, len(even), 2)] or [_node(absent, absent)]


def _is_hash(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{64}", text) is not None
