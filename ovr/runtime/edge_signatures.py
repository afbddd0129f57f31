"""Who signed an edge export, or a patch of one. Needs `cryptography` where a key is used, and nothing else beyond numpy's layer.

    signatures/export.json    {"schema_version": 1, "signatures": {SHA-256 of a public key: signature in base64}}

What is signed is a line of canonical JSON that names its kind, so that it can be taken for nothing else, and a digest: of an export
that of card.json, which has the model's. Signatures are as those of heads: ECDSA, with the same keys.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovr.core.bundle import SIGNATURES
from ovr.core.ecdsa import fingerprint, private_key, signature, signed_by
from ovr.core.files import canonical_json, read_json, sha256_bytes, sha256_file, strict_json, write_file
from ovr.errors import ArtifactError

EXPORT_SIGNATURE = f"{SIGNATURES}/export.json"
EXPORT_KIND, PATCH_KIND = "ovr edge export 1", "ovr edge patch 1"
SCHEMA_VERSION = 1
MAX_READS = 3  # of an export that is replaced while it is read


def signatures_json(signatures: dict[str, str]) -> bytes:
    """Return the content of a file of signatures."""
    return canonical_json({"schema_version": SCHEMA_VERSION, "signatures": signatures})


def signatures_of(value: Any, what: str) -> dict[str, str]:
    """Return the signatures in a JSON value, unverified.

    Raises:
        ArtifactError: it holds none, or is of another schema version.
    """
    found = value.get("signatures") if isinstance(value, dict) and value.get("schema_version") == SCHEMA_VERSION else None
    if not isinstance(found, dict) or not all(isinstance(made, str) for made in found.values()):
        raise ArtifactError(f"{what} holds no signatures that this ovr reads; sign it again")
    return found


def sign(kind: str, digest: str, key: Path, password: bytes | None) -> dict[str, str]:
    """Return the signature of something of this kind with this digest.

    Raises:
        ConfigError: the key cannot be used, or cryptography is not installed.
    """
    private = private_key(key, password)
    return {fingerprint(private.public_key()): signature(private, _statement(kind, digest))}


def check_signed(kind: str, digest: str, signatures: dict[str, str], keys: Sequence[Path], *, what: str) -> Path:
    """Return the first of the public keys that signed something of this kind with this digest.

    Raises:
        ArtifactError: none did.
        ConfigError: a key cannot be used, or cryptography is not installed.
    """
    signer = signed_by(keys, signatures, _statement(kind, digest))
    if signer is None:
        why = f"its {len(signatures)} signatures are of other keys, or of something else" if signatures else "it has no signature"
        raise ArtifactError(f"{what} is not signed by {' or '.join(map(str, keys))}: {why}")
    return signer


def add_export_signature(directory: Path, card: Path, key: Path, password: bytes | None) -> Path:
    """Sign a card of an export and return the file with the signature, which comes beside those of other keys; see `sign`."""
    file = directory / EXPORT_SIGNATURE
    there = _signatures_in(file)
    made = sign(EXPORT_KIND, sha256_file(card), key, password)
    file.parent.mkdir(exist_ok=True)
    write_file(file, signatures_json(there | made))
    return file


def check_export_signature(directory: Path, card: Path, keys: Sequence[Path]) -> Path:
    """Return the first of the public keys that signed the card of an export; see `check_signed`."""
    file = directory / EXPORT_SIGNATURE
    return check_signed(EXPORT_KIND, sha256_file(card), _signatures_in(file), keys, what=str(directory))


def signed_model(file: Path, card: Path, keys: Sequence[Path]) -> bytes:
    """Return the bytes of a model whose card one of the public keys signed, each read once: what is opened is what was signed.

    Raises:
        ArtifactError: no key signed the card, or the model is not the one that it names, such as one that took its place since.
        ConfigError: a key cannot be used, or cryptography is not installed.
    """
    for attempt in range(1, MAX_READS + 1):
        try:
            said, data = card.read_bytes(), file.read_bytes()
            signatures = _signatures_in(card.parent / EXPORT_SIGNATURE)
            check_signed(EXPORT_KIND, sha256_bytes(said), signatures, keys, what=str(card.parent))
            if strict_json(said)["model"]["sha256"] == sha256_bytes(data):
                return data
            problem = f"{file} was changed while it was opened: its digest is not the one in {card.name}; open it again"
        except FileNotFoundError as error:
            problem = f"{error.filename} was removed while it was opened; open it again"
        except ArtifactError:
            if attempt == MAX_READS:  # else a patch may have been applied meanwhile
                raise
    raise ArtifactError(problem)


def _signatures_in(file: Path) -> dict[str, str]:
    return signatures_of(read_json(file, beside_bytes=0), str(file)) if file.is_file() else {}


def _statement(kind: str, digest: str) -> bytes:
    return canonical_json({"kind": kind, "sha256": digest})
