"""`ovr sign`: a bundle, single heads of it by the owner of their classes, or an edge export. Needs no torch."""

from pathlib import Path

from omegaconf import DictConfig

from ovr.cli.labelled_rows import class_ids
from ovr.cli.signatures import files
from ovr.errors import ConfigError


def run(cfg: DictConfig) -> None:
    """Sign what is asked for, and print what was signed.

    Raises:
        ConfigError: settings that do not go together, or a key that cannot be used.
        ArtifactError: the bundle cannot be used, has another graph than its heads', or keeps its heads in shards; the edge export
            was changed, or holds other files.
        TaxonomyError: a class id that the bundle does not have.
    """
    from ovr.core.bundle import open_bundle
    from ovr.export.derived import check_derived
    from ovr.runtime.edge_files import is_edge_export, sign_export
    from ovr.serving.head_signatures import carry_signatures, sign_heads
    from ovr.serving.signing import password, sign_bundle

    key, certificate = (None if cfg[name] is None else Path(cfg[name]) for name in ("key", "certificate"))
    if cfg.heads_from is not None and (key or certificate or cfg.sigstore or cfg.heads is not None):
        raise ConfigError("heads_from=BUNDLE takes signatures over that are there and signs nothing; leave key and heads out")
    if cfg.heads is not None and (key is None or certificate or cfg.sigstore):
        raise ConfigError("heads are signed with a key alone: give key=FILE, without certificate or sigstore")
    if is_edge_export(Path(cfg.bundle)):
        if key is None or certificate or cfg.sigstore or cfg.heads is not None or cfg.heads_from is not None:
            raise ConfigError(f"{cfg.bundle} is an edge export, which is signed whole and with a key alone: give key=FILE")
        print(f"signed {cfg.bundle}: {sign_export(Path(cfg.bundle), key, password())}")
        return
    bundle = open_bundle(Path(cfg.bundle))
    if cfg.heads_from is not None:
        num_heads = carry_signatures(open_bundle(Path(cfg.heads_from)), bundle)
        print(f"{num_heads} of {len(bundle.heads)} heads are those of {cfg.heads_from} and keep their signatures")
        return
    check_derived(bundle)
    if cfg.heads is not None:
        ids = None if cfg.heads == "all" else class_ids(cfg.heads, key="heads")
        assert key is not None
        num_heads = sign_heads(bundle, key, password=password(), class_ids=ids)
        print(f"signed {num_heads} heads of {bundle.path}")
    else:
        chain = files(cfg.certificate_chain, "certificate_chain")
        print(f"signed {bundle.path}: {sign_bundle(bundle, key=key, certificate=certificate, chain=chain, sigstore=cfg.sigstore)}")
