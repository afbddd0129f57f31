"""The settings of signatures that commands share. Imports nothing heavy."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig

from ovr.errors import ConfigError

if TYPE_CHECKING:
    from ovr.core.bundle import ModelBundle
    from ovr.serving.signing import Trust


def trust_of(cfg: DictConfig) -> "Trust":
    """Return who is trusted by trusted_keys, trusted_certificates, sigstore_identity with sigstore_issuer, and owner_keys."""
    from ovr.serving.signing import Trust

    return Trust(
        keys=files(cfg.trusted_keys, "trusted_keys"),
        certificates=files(cfg.trusted_certificates, "trusted_certificates"),
        sigstore_identity=cfg.sigstore_identity,
        sigstore_issuer=cfg.sigstore_issuer,
        owner_keys=_owner_keys(cfg),
    )


def required_trust(cfg: DictConfig) -> "Trust | None":
    """Return who is trusted where signatures are required, None where they are not.

    Raises:
        ConfigError: somebody is trusted, and nothing would be checked; or signatures are required, and nobody is trusted.
    """
    if cfg.require_signature:
        trust = trust_of(cfg)
        if not trust.whole:
            raise ConfigError(
                "require_signature=true trusts nobody; add trusted_keys=[FILE], trusted_certificates=[FILE], or "
                "sigstore_identity=WHO with sigstore_issuer=URL"
            )
        return trust
    for key in ("trusted_keys", "trusted_certificates", "sigstore_identity", "sigstore_issuer", "owner_keys"):
        if cfg[key]:
            raise ConfigError(f"{key} is given, but nothing is checked without require_signature=true")
    return None


def check_bundle(bundle: "ModelBundle", cfg: DictConfig) -> None:
    """Raise ArtifactError where signatures are required and the bundle does not carry them."""
    trust = required_trust(cfg)
    if trust is not None:
        from ovr.serving.signing import check_signatures

        check_signatures(bundle, trust)


def _owner_keys(cfg: DictConfig) -> dict[str, Path]:
    if isinstance(cfg.owner_keys, str | list | ListConfig):
        raise ConfigError(f"owner_keys={cfg.owner_keys} must name a key for each owner: owner_keys={{OWNER: FILE}}")
    return {str(owner): Path(str(file)) for owner, file in (cfg.owner_keys or {}).items()}


def files(value: object, key: str) -> tuple[Path, ...]:
    """Return a list of files from the configuration."""
    if isinstance(value, str):
        raise ConfigError(f"{key}={value} must be a list: {key}=[{value}]")
    return tuple(Path(str(file)) for file in value or ())  # type: ignore[attr-defined]
