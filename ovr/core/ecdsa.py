"""ECDSA signatures of bytes by keys in PEM files. Knows not what is signed, nor who is trusted.

Needs `cryptography`, which is imported where a key is first used.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovr.core.files import sha256_bytes
from ovr.errors import ConfigError


def private_key(file: Path, password: bytes | None) -> Any:
    """Return the private key in a file.

    Raises:
        ConfigError: it is no EC key (PEM) of P-256, P-384 or P-521, the password is wrong, or cryptography is not installed.
    """
    serialization = _cryptography("serialization")
    try:
        private = serialization.load_pem_private_key(file.read_bytes(), password)
        _algorithm(private.public_key())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file} is no private EC key that can be used: {error}") from None
    return private


def public_key(file: Path) -> Any:
    """Return the public key in a file.

    Raises:
        ConfigError: it is no EC key (PEM) of P-256, P-384 or P-521, or cryptography is not installed.
    """
    serialization = _cryptography("serialization")
    try:
        public = serialization.load_pem_public_key(file.read_bytes())
        _algorithm(public)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file} is no public EC key that can be used: {error}") from None
    return public


def signature(private: Any, data: bytes) -> str:
    """Return the signature of `data` in base64."""
    return base64.b64encode(private.sign(data, _algorithm(private.public_key()))).decode()


def verifies(public: Any, made: str, data: bytes) -> bool:
    """Return whether `made` is the key's signature of `data`."""
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(base64.b64decode(made, validate=True), data, _algorithm(public))
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public: Any) -> str:
    """Return the SHA-256 of a public key."""
    serialization = _cryptography("serialization")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256_bytes(public.public_bytes(serialization.Encoding.DER, form))


def signed_by(keys: Sequence[Path], signatures: Mapping[str, str], data: bytes) -> Path | None:
    """Return the first of these public keys that signed `data`, None where none did.

    Args:
        signatures: by the fingerprint of their key.

    Raises:
        ConfigError: as `public_key`.
    """
    publics = [(file, public_key(file)) for file in keys]
    made = ((file, public, signatures.get(fingerprint(public))) for file, public in publics)
    return next((file for file, public, found in made if found is not None and verifies(public, found, data)), None)


def _algorithm(public: Any) -> Any:
    """Return ECDSA with the digest that goes with the curve."""
    ec, hashes = _cryptography("asymmetric.ec"), _cryptography("hashes")
    digests = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384, "secp521r1": hashes.SHA512}
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in digests:
        raise ValueError("expected a key of P-256, P-384 or P-521")
    return ec.ECDSA(digests[public.curve.name]())


def _cryptography(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"cryptography.hazmat.primitives.{module}")
    except ImportError as error:
        raise ConfigError(
            f"signatures need cryptography, which is not installed ({error}); pip install 'ovr[sign]', or 'ovr[verify]' on a device"
        ) from None
