"""`ovr bundle path`: where a version's bundle lies. Needs no torch."""

from omegaconf import DictConfig

from ovr.cli.registry import store_of, text


def run(cfg: DictConfig) -> None:
    """Print the directory.

    Raises:
        ConfigError: no such model, version or alias.
        ArtifactError: the bundle cannot be fetched.
    """
    from ovr.registry.aliases import bundle_path

    class_id = None if cfg["class"] is None else text(cfg, "class")
    print(bundle_path(store_of(cfg), text(cfg, "model"), cfg.version, class_id=class_id))
