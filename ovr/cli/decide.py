"""`ovr decide`: a bundle with thresholds and a policy chosen again. Needs no torch."""

from pathlib import Path
from typing import Any

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
    from ovr.lifecycle.assemble import check_out
    from ovr.lifecycle.decide import redecide
    from ovr.lifecycle.rows import labelled_logits
    from ovr.threshold.fit import rule_for

    ids, threads, out = class_ids(cfg.classes, key="classes"), num_threads(cfg), Path(cfg.out)
    policy = None if cfg.decision is None else build(cfg.decision.policy, cfg.allow_targets)
    threshold, abstention = (
        None if cfg[part] is None else build(cfg[part], cfg.allow_targets) for part in ("threshold", "abstention")
    )
    bundle = open_bundle(Path(cfg.bundle))
    check_out(bundle, out)
    if threshold is not None:
        rule_for(threshold, bundle.taxonomy)  # what it refuses of the classes, before rows are read
    rows = labelled_logits(bundle, read_rows(cfg, bundle, purpose="decided by"), num_threads=threads)
    settings = {
        name: OmegaConf.to_container(cfg[name]) for name in ("decision", "threshold", "abstention") if cfg[name] is not None
    }
    settings |= {"classes": ids}
    rules: dict[str, Any] = {"threshold": threshold, "policy": policy, "abstention": abstention}
    made = redecide(bundle, out, rows, **rules, class_ids=ids, settings=settings)
    print(f"policy {made.bundle.policy.mode}, abstain_below={made.bundle.policy.abstain_below:.4g}")
    print(
        f"thresholds or their statuses of {len(made.changed_ids)} of {len(bundle.heads)} heads changed, on {len(rows.labels)} rows"
    )
    print(f"bundle {made.bundle.bundle_sha256[:12]} in {out}; its parent is {bundle.bundle_sha256[:12]}")
