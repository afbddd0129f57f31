"""`ovr verify`: who signed a bundle and its heads, or an edge export, and whether they are what was signed. Needs no torch."""

from pathlib import Path

from omegaconf import DictConfig

from ovr.cli.signatures import files, trust_of
from ovr.errors import ConfigError


def run(cfg: DictConfig) -> None:
    """Check every digest and signature and the fused graph, and print who signed what.

    Raises:
        ConfigError: neither or both of bundle and repository, or nobody is trusted.
        ArtifactError: what is damaged, not signed, or not what was signed, naming the files and heads.
    """
    from ovr.core.bundle import open_bundle
    from ovr.export.derived import check_derived
    from ovr.runtime.edge_files import EXPORT_CARD, check_whole, is_edge_export, is_page
    from ovr.runtime.edge_signatures import check_export_signature
    from ovr.serving.head_signatures import signers
    from ovr.serving.signed_repository import check_repository
    from ovr.serving.signing import check_signatures

    if (cfg.bundle is None) == (cfg.repository is None):
        raise ConfigError("verify bundle=DIR or repository=DIR, one of them")
    trust = trust_of(cfg)
    if cfg.repository is not None:
        for name, signer in check_repository(Path(cfg.repository), trust).items():
            print(f"{name}: of a bundle signed by {signer}")
        return
    if is_edge_export(directory := Path(cfg.bundle)):
        if not trust.keys or trust.certificates or trust.sigstore_identity or trust.owner_keys or cfg.head_keys:
            raise ConfigError(f"{directory} is an edge export, whose signatures are of keys alone: give trusted_keys=[FILE]")
        check_whole(directory)
        key = check_export_signature(directory, directory / EXPORT_CARD, trust.keys)
        print(f"{directory}: {f'its model and {EXPORT_CARD}, not its page, are ' if is_page(directory) else ''}signed by {key}")
        return
    bundle = open_bundle(Path(cfg.bundle))
    signer, owners = check_signatures(bundle, trust)
    check_derived(bundle)
    print(f"{bundle.path}: signed by {signer}; its fused graph is that of its heads")
    keys = [*files(cfg.head_keys, "head_keys"), *trust.owner_keys.values()]
    if keys:
        for class_id, names in signers(bundle, list(dict.fromkeys(keys))).items():
            owner = f" (its owner {owners[class_id]})" if class_id in owners else ""
            print(f"head {class_id}: signed by {', '.join(names) or 'none of the keys'}{owner}")
