"""`ovr decide`: a bundle with thresholds and a policy chosen again. Needs no torch."""

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
    from ovr.lifecycle.decide import redecide
    from ovr.lifecycle.rewrite import check_out
    from ovr.lifecycle.rows import labelled_logits

    ids, threads, out = class_ids(cfg.classes, key="classes"), num_threads(cfg), Path(cfg.out)
    policy, threshold = (build(cfg.decision[name], cfg.allow_targets) for name in ("policy", "threshold"))
    bundle = open_bundle(Path(cfg.bundle))
    check_out(bundle, out)
    rows = labelled_logits(bundle, read_rows(cfg, bundle, purpose="decided by"), num_threads=threads)
    settings = {"decision": OmegaConf.to_container(cfg.decision), "classes": ids}
    made = redecide(bundle, out, rows, threshold=threshold, policy=policy, class_ids=ids, settings=settings)
    print(f"policy {policy.mode}")
    print(f"thresholds of {len(made.changed_ids)} of {len(bundle.heads)} heads changed, on {len(rows.labels)} rows")
    print(f"bundle {made.bundle.bundle_sha256[:12]} in {out}; its parent is {bundle.bundle_sha256[:12]}")
