"""`ovr publish`: a bundle into a Triton model repository, and into a running server when one is named. Needs no torch."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ovr.cli.signatures import check_bundle


def run(cfg: DictConfig) -> None:
    """Publish and print the versions that are served now: of a bundle that the repository holds already, its earlier ones.

    Raises:
        ArtifactError: the bundle cannot be used, is not signed as it must be, or has another graph than its heads'; or the
            repository serves it already or holds other heads of its versions.
        ConfigError: a setting of `serving` or a key file that cannot be used.
        ServingError: the server is not there, cannot load what was published, or does not give the bundle's recorded answers.
    """
    from ovr.core.bundle import open_bundle
    from ovr.core.class_metrics import ClassMetricsSettings
    from ovr.core.faults import Faults
    from ovr.core.request_log import RequestLogSettings
    from ovr.export.derived import check_derived
    from ovr.serving import keys
    from ovr.serving.control import authorized
    from ovr.serving.repository import publish

    settings = {str(key): value for key, value in OmegaConf.to_object(cfg.serving).items()}  # type: ignore[union-attr]
    fallback_of = {
        str(class_id): fallback for class_id, fallback in (settings["faults"]["fallback_of"] or {}).items()
    }  # ids like 3
    settings["faults"] = Faults(**{**settings["faults"], "fallback_of": fallback_of})
    settings["class_metrics"] = ClassMetricsSettings(**settings["class_metrics"])
    settings["request_log"] = RequestLogSettings(**settings["request_log"])
    bundle = open_bundle(Path(cfg.bundle))
    check_bundle(bundle, cfg)
    check_derived(bundle)
    with authorized(None if cfg.key_file is None else keys.read(Path(cfg.key_file))):
        published = publish(bundle, Path(cfg.repository), server=cfg.server, wait=cfg.wait, exist_ok=cfg.exist_ok, **settings)
    for name, version in published.versions.items():
        print(f"{name} version {version}")
    print(f"published into {published.repository}" + (f" and loaded at {cfg.server}" if cfg.server else ""))
