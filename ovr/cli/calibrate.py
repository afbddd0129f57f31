"""`ovr calibrate`: a bundle whose heads are calibrated again. Needs no torch."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ovr.cli.instantiate import build
from ovr.cli.labelled_rows import class_ids, num_threads, read_rows


def run(cfg: DictConfig) -> None:
    """Write the new bundle and print what changed.

    Raises:
        ConfigError: a setting that cannot be used.
        ArtifactError: the bundle cannot be used, or `out` exists.
        DataError: rows that cannot be read, do not fit the bundle, or were trained on.
    """
    from ovr.core.bundle import open_bundle
    from ovr.lifecycle.calibrate import calibrate
    from ovr.lifecycle.rewrite import check_out
    from ovr.lifecycle.rows import labelled_logits

    ids, threads, out = class_ids(cfg.classes, key="classes"), num_threads(cfg), Path(cfg.out)
    calibrator, cohort = build(cfg.calibrator, cfg.allow_targets), build(cfg.cohort, cfg.allow_targets)
    bundle = open_bundle(Path(cfg.bundle))
    check_out(bundle, out)
    rows = labelled_logits(bundle, read_rows(cfg, bundle, purpose="calibrated on"), num_threads=threads)
    settings = {name: OmegaConf.to_container(cfg[name]) for name in ("calibrator", "cohort")} | {"classes": ids}
    made = calibrate(
        bundle, out, rows, calibrator=calibrator, class_ids=ids, thresholds=cfg.thresholds, cohort=cohort, settings=settings
    )
    print(f"{len(made.changed_ids)} of {len(bundle.heads)} heads changed, on {len(rows.labels)} rows")
    print(f"bundle {made.bundle.bundle_sha256[:12]} in {out}; its parent is {bundle.bundle_sha256[:12]}")
