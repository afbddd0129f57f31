"""`ovr evaluate`: the figures of a bundle on labelled rows."""

from pathlib import Path

from omegaconf import DictConfig

from ovr.cli.instantiate import build
from ovr.cli.labelled_rows import num_threads, read_rows
from ovr.errors import ConfigError

SHOWN = ("accuracy", "macro_f1", "macro_average_precision", "ece_before", "ece_after", "nll_before", "nll_after")


def run(cfg: DictConfig) -> None:
    """Write the report and print its summary.

    Raises:
        ConfigError: no rows are given, or a setting that cannot be used.
        ArtifactError: the bundle cannot be used, or `out` exists.
        DataError: rows that cannot be read, do not fit the bundle, or were trained on.
    """
    from ovr.core.bundle import open_bundle
    from ovr.lifecycle.evaluate import evaluate_bundle, write_evaluation
    from ovr.lifecycle.rewrite import check_out

    threads, out = num_threads(cfg), Path(cfg.out)
    if cfg.data is None:
        raise ConfigError(
            "data is not given: a bundle keeps no test rows. Name labelled rows that it was not trained on, such as data=table "
            "data.path=FILE data.target=COLUMN; or the training run's own data with rows=test"
        )
    propensity = build(cfg.propensity, cfg.allow_targets)
    bundle = open_bundle(Path(cfg.bundle))
    check_out(bundle, out)
    rows = read_rows(cfg, bundle, purpose="measured on")
    assert rows is not None
    evaluation = evaluate_bundle(bundle, rows, propensity=propensity, num_threads=threads)
    write_evaluation(out, evaluation, bundle)
    print(f"bundle {bundle.bundle_sha256[:12]}, {len(bundle.heads)} heads, {evaluation.report['num_rows']} rows")
    for name in SHOWN:
        if (value := evaluation.report.get(name)) is not None:
            print(f"  {name.ljust(24)} {value:.4f}")
    print(f"{out / 'metrics.json'} and {out / 'classes.csv'} hold all of it")
