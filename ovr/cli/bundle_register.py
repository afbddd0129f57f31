"""`ovr bundle register`: a bundle as the next version of a model. Needs no torch."""

from pathlib import Path

from omegaconf import DictConfig

from ovr.cli.registry import store_of, text, who


def run(cfg: DictConfig) -> None:
    """Keep the bundle and print its version.

    Raises:
        ConfigError: a setting that cannot be used.
        ArtifactError: the bundle cannot be used, or the registry cannot be read.
    """
    from ovr.core.bundle import open_bundle

    store = store_of(cfg)
    bundle = open_bundle(Path(cfg.bundle))
    model = text(cfg, "model")
    known = {version.bundle_sha256 for version in store.versions(model)}
    version = store.register(bundle, model, who=who(cfg), why=text(cfg, "why"))
    how = "is" if version.bundle_sha256 in known else "is now"
    print(f"bundle {version.bundle_sha256[:12]} {how} version {version.version} of {version.model}, in {store.name}")
