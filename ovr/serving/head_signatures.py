"""Signatures of single heads by the owners of their classes, in signatures/heads.json. Knows nothing of whole bundles' signatures.

What is signed of a head is its class, version, backbone, the digests of its two files and its calibrations of cohorts: as long as
these stay, so does the signature, whatever becomes of the other heads. Signatures of a head that goes out of use are kept in the
file, by the digest of what was signed, and it has them again when it comes back. Each is ECDSA over a line of canonical JSON, with
the same keys as a bundle's; model-signing's file a head, each with a Sigstore bundle, would take seconds for a thousand heads.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovr.core.bundle import BACKBONE_ONNX, HEAD_SIGNATURES, MANIFEST, ModelBundle
from ovr.core.cohorts import CohortCalibrations
from ovr.core.ecdsa import fingerprint, private_key, public_key, signature, verifies
from ovr.core.files import canonical_json, read_json, sha256_bytes
from ovr.core.ledger import HeadVersion
from ovr.core.signature_files import HeadSignatures, Signatures, add_head_signatures, head_signatures_in
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError, ConfigError

KIND = "ovr head 1"  # stands in what is signed, so that it can be taken for nothing else
KIND_WITH_COHORTS = "ovr head 2"


def sign_heads(bundle: ModelBundle, key: Path, *, password: bytes | None, class_ids: Sequence[str] | None = None) -> int:
    """Sign heads (by default all) with a private EC key, beside the signatures that are there; return how many.

    Raises:
        ConfigError: the key cannot be used, or cryptography is not installed.
        TaxonomyError: a class id that the bundle does not have.
        ArtifactError: the bundle keeps its heads in shards.
    """
    private = private_key(key, password)
    whose, statements = fingerprint(private.public_key()), _statements(bundle)
    chosen = bundle.taxonomy.ids if class_ids is None else [bundle.head(class_id).class_id for class_id in class_ids]
    made = {class_id: {whose: signature(private, statements[class_id])} for class_id in chosen}
    add_head_signatures(bundle.path, HeadSignatures(made))
    return len(chosen)


def carry_signatures(old: ModelBundle, new: ModelBundle) -> int:
    """Give the heads of `new` that are those of `old`, to what is signed of them, the signatures that they have there; return how
    many have any.
    """
    found = _carried(old, _statements(new))
    if found.heads:
        add_head_signatures(new.path, found)
    return len(found.heads)


def carried_signatures(old: ModelBundle, manifest: Mapping[str, Any]) -> bytes | None:
    """Return signatures/heads.json of a bundle that is made of `old`, by its manifest; None where there are no signatures.

    Signatures of heads that go out of use are kept, and those of heads that come back are theirs again.
    """
    found = _carried(old, _statements_in(manifest))
    return found.to_bytes() if found.heads or found.earlier else None


def _carried(old: ModelBundle, statements: Mapping[str, bytes]) -> HeadSignatures:
    kept = _read(old)
    if not kept.heads and not kept.earlier:
        return kept
    before = _statements(old)
    known = kept.earlier | {sha256_bytes(before[class_id]): row for class_id, row in kept.heads.items() if class_id in before}
    now = {class_id: sha256_bytes(signed) for class_id, signed in statements.items()}
    used = set(now.values())
    heads = {class_id: known[digest] for class_id, digest in now.items() if digest in known}
    return HeadSignatures(heads, {digest: row for digest, row in known.items() if digest not in used})


def check_owners(bundle: ModelBundle, owner_keys: Mapping[str, Path]) -> dict[str, str]:
    """Return the owner of each class whose head carries the signature of its owner's key.

    Raises:
        ArtifactError: a head whose owner has a key does not carry its signature; all are named.
        ConfigError: an owner that no class has, or a key that cannot be used.
    """
    if not owner_keys:
        return {}
    return owners_of(bundle.taxonomy, _statements(bundle), read_signatures(bundle), owner_keys, what=bundle.path)


def owners_of(
    taxonomy: Taxonomy, statements: Mapping[str, bytes], signatures: Signatures, owner_keys: Mapping[str, Path], *, what: Path
) -> dict[str, str]:
    """Return the owner of each class whose statement is signed by its owner's key; see `check_owners`."""
    owners = sorted({spec.owner for spec in taxonomy} - {""})
    if unknown := sorted(set(owner_keys) - set(owners)):
        raise ConfigError(f"owner_keys names {unknown[0]!r}, who owns no class; owners are {', '.join(owners) or 'none'}")
    publics = {owner: public_key(file) for owner, file in owner_keys.items()}
    found, problems = {}, []
    for spec in taxonomy:
        if spec.owner not in publics:
            continue
        public = publics[spec.owner]
        made = signatures.get(spec.id, {}).get(fingerprint(public))
        if made is None:
            problems.append(f"head {spec.id!r} is not signed by its owner {spec.owner}")
        elif verifies(public, made, statements[spec.id]):
            found[spec.id] = spec.owner
        elif verifies(public, made, _without_cohorts(statements[spec.id])):
            problems.append(
                f"the signature of head {spec.id!r} by its owner {spec.owner} does not cover its calibrations of cohorts, which an "
                "earlier ovr left out: sign it again"
            )
        else:
            problems.append(f"head {spec.id!r} is not the one that its owner {spec.owner} signed")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ArtifactError(f"{what}: {'; '.join(problems[:5])}{more}")
    return found


def signers(bundle: ModelBundle, keys: Sequence[Path]) -> dict[str, list[str]]:
    """Return the files of those of `keys` that signed each head, by class id; a signature that does not verify counts as none."""
    publics = {str(file): public_key(file) for file in keys}
    signatures, statements = read_signatures(bundle), _statements(bundle)
    return {
        class_id: [
            name
            for name, public in publics.items()
            if (made := signatures.get(class_id, {}).get(fingerprint(public))) and verifies(public, made, statements[class_id])
        ]
        for class_id in bundle.taxonomy.ids
    }


def read_signatures(bundle: ModelBundle) -> Signatures:
    """Return the signatures that the bundle's heads carry, unverified.

    Raises:
        ArtifactError: the file cannot be read.
    """
    return _read(bundle).heads


def _read(bundle: ModelBundle) -> HeadSignatures:
    file = bundle.path / HEAD_SIGNATURES
    return head_signatures_in(file) if file.is_file() else HeadSignatures()


def statement(
    class_id: str, version: int, backbone_sha256: str, digests: Mapping[str, str], *, cohorts: Mapping[str, Any] | None
) -> bytes:
    """Return what is signed of a head.

    Args:
        digests: those of the bundle's files.
        cohorts: the head's calibrations of cohorts, as `CohortCalibrations.of_head` gives them; None where the bundle has none.

    Raises:
        ArtifactError: the bundle has no files of this head.
    """
    place = HeadVersion(class_id, version).directory
    if f"{place}/head.json" not in digests:
        raise ArtifactError(f"head {class_id!r} has no files of its own that could be signed: the bundle keeps its heads in shards")
    files = {name: digests[f"{place}/{name}"] for name in ("head.json", "model.onnx")}
    signed = {"kind": KIND, "class_id": class_id, "version": version, "backbone_sha256": backbone_sha256, "files": files}
    return canonical_json(signed if cohorts is None else {**signed, "kind": KIND_WITH_COHORTS, "cohorts": cohorts})


def _without_cohorts(signed: bytes) -> bytes:
    """Return what was signed of the same head before its calibrations of cohorts were part of it."""
    said = {name: value for name, value in json.loads(signed).items() if name != "cohorts"}
    return canonical_json({**said, "kind": KIND})


def _statements(bundle: ModelBundle) -> dict[str, bytes]:
    if bundle.shards:
        raise ArtifactError(
            f"bundle {bundle.path} keeps its {len(bundle.heads)} heads in shards, which hold heads of many owners; sign the bundle"
        )
    return _statements_in(read_json(bundle.path / MANIFEST))


def _statements_in(manifest: Mapping[str, Any]) -> dict[str, bytes]:
    digests = {name: row["sha256"] for name, row in manifest["files"].items()}
    cohorts = CohortCalibrations.from_json(manifest["cohorts"]) if "cohorts" in manifest else None
    return {
        row["class_id"]: statement(
            row["class_id"],
            row["version"],
            digests[BACKBONE_ONNX],
            digests,
            cohorts=None if cohorts is None else cohorts.of_head(column),
        )
        for column, row in enumerate(manifest["heads"])
    }
