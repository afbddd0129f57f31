"""Signatures of bundles, and who is trusted: made and checked with OpenSSF model-signing. Knows nothing of servers.

    signatures/bundle.sig    a Sigstore bundle (DSSE, in-toto) over the digest of every file, as the `model_signing` tool writes it
    signatures/heads.json    signatures of single heads (see `head_signatures`)

They lie in the bundle and go with it wherever it is copied; its digest and its manifest leave them out, so that signing changes
nothing of what is signed.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovr.core.bundle import BUNDLE_SIGNATURE, MANIFEST, SIGNATURES, ModelBundle
from ovr.core.files import read_json, sha256_file, write_file
from ovr.errors import ArtifactError, ConfigError
from ovr.serving.head_signatures import check_owners

MAX_SIGNATURE_BYTES = 1 << 28  # a million files
PASSWORD = "OVR_KEY_PASSWORD"  # environment variable: the password of a private key


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose signatures count."""

    keys: Sequence[Path] = ()  # public keys (PEM) for whole bundles
    certificates: Sequence[Path] = ()  # root certificates (PEM), likewise
    sigstore_identity: str | None = None  # who signed with Sigstore, such as an e-mail address or a workflow
    sigstore_issuer: str | None = None  # who vouches for that identity
    owner_keys: Mapping[str, Path] = field(default_factory=dict)  # owner of classes -> public key that their heads must carry

    def __post_init__(self) -> None:
        if (self.sigstore_identity is None) != (self.sigstore_issuer is None):
            raise ConfigError("sigstore_identity and sigstore_issuer belong together; give both or none")
        files = [*self.keys, *self.certificates, *self.owner_keys.values()]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise ConfigError(f"no such key or certificate: {', '.join(missing)}")

    @property
    def whole(self) -> bool:
        """Whether it says who may sign a bundle."""
        return bool(self.keys or self.certificates or self.sigstore_identity)


def sign_bundle(
    bundle: ModelBundle, *, key: Path | None, certificate: Path | None = None, chain: Sequence[Path] = (), sigstore: bool = False
) -> Path:
    """Sign every file of the bundle and return the signature's file, in place of an earlier one.

    Args:
        key: private EC key (PEM, of P-256, P-384 or P-521); its password, if any, stands in OVR_KEY_PASSWORD.
        certificate: of the key (PEM), whose `chain` leads to what verifiers trust.
        sigstore: without a key, by Sigstore: it needs the network, and an identity that a browser or the environment gives.

    Raises:
        ConfigError: not one of key and sigstore, or a key or certificate that cannot be used; model-signing is not installed.
        ArtifactError: Sigstore did not sign.
    """
    if (key is None) != sigstore:
        raise ConfigError("sign with key=FILE or with sigstore=true, one of them")
    if certificate is not None and key is None:
        raise ConfigError("certificate= belongs to a key: add key=FILE")
    signing, hashing = _model_signing("signing"), _model_signing("hashing")
    try:
        if key is None:
            config = signing.Config().use_sigstore_signer()
        elif certificate is None:
            config = signing.Config().use_elliptic_key_signer(private_key=key, password=password())
        else:
            config = signing.Config().use_certificate_signer(
                private_key=key, signing_certificate=certificate, certificate_chain=list(chain)
            )
    except Exception as error:  # of cryptography, pydantic and OpenSSL, without a common base
        raise ConfigError(f"{key or 'Sigstore'} cannot sign: {_said(error)}; expected {EXPECTED_KEY}") from None
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURES], ignore_git_paths=False))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "bundle.sig"
        try:
            config.sign(bundle.path, made)
        except Exception as error:
            raise ArtifactError(f"bundle {bundle.path} was not signed: {_said(error)}") from None
        target = bundle.path / BUNDLE_SIGNATURE
        target.parent.mkdir(exist_ok=True)
        write_file(target, made.read_bytes())
    return target


def check_signatures(bundle: ModelBundle, trust: Trust) -> tuple[str, dict[str, str]]:
    """Return who signed the bundle, and the owner of each class whose head carries its signature.

    Raises:
        ArtifactError: the bundle, or a head whose owner has a key, is not signed by one who is trusted, or a file is not the one
            that was signed. All are named.
        ConfigError: nobody is trusted, or model-signing is not installed.
    """
    if not trust.whole:
        raise ConfigError("no signer of bundles is trusted; give trusted_keys=[FILE] or trusted_certificates=[FILE]")
    signer, signed = signed_files(bundle.path / BUNDLE_SIGNATURE, trust, what=f"bundle {bundle.path}")
    found = file_digests(bundle)
    problems = [f"{name} is not signed" for name in sorted(found.keys() - signed.keys())]
    problems += [f"{name} is signed and is not there" for name in sorted(signed.keys() - found.keys())]
    problems += [f"{name} is not the one that was signed" for name in sorted(found) if signed.get(name, found[name]) != found[name]]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ArtifactError(f"bundle {bundle.path} is not what {signer} signed: {'; '.join(problems[:5])}{more}")
    return signer, check_owners(bundle, trust.owner_keys)


def signed_files(signature: Path, trust: Trust, *, what: str) -> tuple[str, dict[str, str]]:
    """Return who signed, and the SHA-256 of each file that was signed, by its path.

    Raises:
        ArtifactError: there is no signature, or none of those who are trusted made it.
    """
    if signature.is_symlink() or not signature.is_file():
        raise ArtifactError(f"{what} is not signed: it has no {signature.name}; sign it with `ovr sign`")
    if (size_bytes := signature.stat().st_size) > MAX_SIGNATURE_BYTES:
        raise ArtifactError(f"{signature} is {size_bytes} bytes; at most {MAX_SIGNATURE_BYTES} are read as a signature")
    problems = []
    for name, config in _verifiers(trust):
        recorder = _Recorder()
        try:
            config.set_hashing_config(recorder).verify(signature.parent, signature)
        except Exception as error:  # of cryptography, pydantic, OpenSSL and sigstore, without a common base
            problems.append(f"{name}: {_said(error)}")
        else:
            return name, recorder.digests
    raise ArtifactError(f"{what} is not signed by one who is trusted ({'; '.join(problems)})")


def file_digests(bundle: ModelBundle) -> dict[str, str]:
    """Return the SHA-256 of every file of the bundle, as `open_bundle` has checked them."""
    manifest = read_json(bundle.path / MANIFEST)
    files = {**manifest["files"], **manifest["derived"]}
    return {MANIFEST: sha256_file(bundle.path / MANIFEST), **{name: str(file["sha256"]) for name, file in files.items()}}


def password() -> bytes | None:
    """Return the password of the private key, if the environment has one."""
    value = os.environ.get(PASSWORD)
    return value.encode() if value else None


EXPECTED_KEY = f"a private EC key (PEM) of P-256, P-384 or P-521, with its password, if any, in {PASSWORD}"


class _Recorder:
    """Takes the place of model-signing's hashing, and keeps what was signed instead of comparing it with files."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    def add_ignored_paths(self, **_: Any) -> None:
        """What the signature wants ignored is compared all the same."""

    def hash(self, *_: Any, **__: Any) -> "_Recorder":
        return self

    def __ne__(self, signed: object) -> bool:
        descriptors = list(signed.resource_descriptors())  # type: ignore[attr-defined]
        if wrong := [d.identifier for d in descriptors if d.digest.algorithm != "sha256"]:
            raise ValueError(f"{wrong[0]} is signed by another digest than SHA-256")
        self.digests = {str(d.identifier): str(d.digest.digest_hex) for d in descriptors}
        return False


def _verifiers(trust: Trust) -> Iterator[tuple[str, Any]]:
    verifying = _model_signing("verifying")
    for key in trust.keys:
        yield str(key), _configured(str(key), lambda: verifying.Config().use_elliptic_key_verifier(public_key=key))  # noqa: B023
    if trust.certificates:
        name = f"certificates below {', '.join(map(str, trust.certificates))}"
        yield name, _configured(name, lambda: verifying.Config().use_certificate_verifier(certificate_chain=trust.certificates))
    if trust.sigstore_identity is not None:
        name = f"{trust.sigstore_identity} by way of {trust.sigstore_issuer}"
        settings = {"identity": trust.sigstore_identity, "oidc_issuer": trust.sigstore_issuer}
        yield name, _configured(name, lambda: verifying.Config().use_sigstore_verifier(**settings))


def _configured(name: str, make: Any) -> Any:
    try:
        return make()
    except Exception as error:
        raise ConfigError(f"{name} cannot verify signatures: {_said(error)}") from None


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if len(text) <= 200 else f"{text[:197]}...") or type(error).__name__


def _model_signing(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise ConfigError(f"signatures need model-signing, which is not installed ({error}); pip install 'ovr[sign]'") from None
