"""`ovr calibrate`: a bundle whose heads are calibrated again. Needs no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ovr.cli.instantiate import build, build_recorded
from ovr.cli.labelled_rows import class_ids, num_threads, read_rows
from ovr.errors import ConfigError


def run(cfg: DictConfig) -> None:
    """Write the new bundle and print what changed.

    Raises:
        ConfigError: a setting that cannot be used.
        ArtifactError: the bundle cannot be used, or `out` exists.
        DataError: rows that cannot be read, do not fit the bundle, or were trained on.
    """
    from ovr.core.bundle import open_bundle
    from ovr.lifecycle.assemble import check_out
    from ovr.lifecycle.calibrate import calibrate, check_rows, check_settings
    from ovr.lifecycle.rows import labelled_logits

    ids, threads, out = class_ids(cfg.classes, key="classes"), num_threads(cfg), Path(cfg.out)
    bundle = open_bundle(Path(cfg.bundle))
    if cfg.calibrator is None:
        cfg.calibrator = trained_calibrator(bundle.provenance)
        calibrator = build_recorded(cfg.calibrator, "calibrator", cfg.allow_targets)
    else:
        calibrator = build(cfg.calibrator, cfg.allow_targets)
    cohort = None if cfg.cohort is None else build(cfg.cohort, cfg.allow_targets)
    check_out(bundle, out)
    cohort = check_settings(bundle, calibrator, cohort)
    new = read_rows(cfg, bundle, purpose="calibrated on", retired=True)
    if new is not None:
        check_rows(new.rows.labels, new.rows.cohorts, calibrator, cohort)
    rows = labelled_logits(bundle, new, num_threads=threads, with_cohorts=cohort is not None)
    settings = {name: cfg[name] and OmegaConf.to_container(cfg[name]) for name in ("calibrator", "cohort")} | {"classes": ids}
    made = calibrate(
        bundle, out, rows, calibrator=calibrator, class_ids=ids, thresholds=cfg.thresholds, cohort=cohort, settings=settings
    )
    kind = cfg.calibrator._target_.rpartition(".")[2]
    print(f"{kind}: {len(made.changed_ids)} of {len(bundle.heads)} heads changed, on {len(rows.labels)} rows")
    print(f"bundle {made.bundle.bundle_sha256[:12]} in {out}; its parent is {bundle.bundle_sha256[:12]}")


def trained_calibrator(provenance: Mapping[str, Any]) -> DictConfig:
    """Return the settings of the calibrator that the bundle's training was given.

    Raises:
        ConfigError: the provenance does not tell them.
    """
    settings = provenance.get("config", {}).get("calibrator")
    if not isinstance(settings, Mapping):
        raise ConfigError("the bundle does not tell how it was calibrated; give calibrator=NAME, such as calibrator=temperature")
    return OmegaConf.create(dict(settings))
