"""`ovr compare`: the bundle in use and one that may replace it, on the same rows."""

from pathlib import Path

from omegaconf import DictConfig

from ovr.cli.labelled_rows import num_threads, read_rows
from ovr.cli.tables import table
from ovr.errors import ConfigError

COLUMNS = ("verdict", "positives", "first_only_right", "second_only_right", "f1_first", "f1_second", "nll_first", "nll_second")


def run(cfg: DictConfig) -> None:
    """Print a line a class, worse ones first, and write all of it where `out` says.

    Raises:
        ConfigError: no rows are given, or a setting that cannot be used.
        ArtifactError: a bundle cannot be used, they have other classes, or `out` exists.
        DataError: rows that cannot be read, do not fit the bundles, or that they were made from.
    """
    from ovr.core.bundle import open_bundle
    from ovr.lifecycle.assemble import check_out
    from ovr.lifecycle.compare import VERDICTS, check_comparable, compare_bundles, write_comparison

    threads, out = num_threads(cfg), None if cfg.out is None else Path(cfg.out)
    if not isinstance(cfg.max_lines, int) or isinstance(cfg.max_lines, bool) or cfg.max_lines < 0:
        raise ConfigError(f"max_lines is {cfg.max_lines!r}; expected a whole number of at least 0")
    if cfg.data is None:
        raise ConfigError(
            "data is not given: name labelled rows that neither bundle was made from, such as data=table data.path=FILE "
            "data.target=COLUMN"
        )
    first, second = (open_bundle(Path(cfg[name])) for name in ("bundle", "candidate"))
    check_comparable(first, second)
    if out is not None:
        check_out(first, out)
        check_out(second, out)
    rows = [read_rows(cfg, bundle, purpose="compared on", unseen=True) for bundle in (first, second)]
    assert rows[0] is not None
    assert rows[1] is not None
    found = compare_bundles(first, second, rows[0], rows[1], confidence=cfg.confidence, seed=cfg.seed, num_threads=threads)
    if out is not None:
        write_comparison(out, found)
    lines = sorted(found.report["classes"], key=lambda line: (-VERDICTS.index(line["verdict"]), line["decision_p"]))
    print(f"{found.report['num_rows']} rows; first: bundle {first.bundle_sha256[:12]}, second: {second.bundle_sha256[:12]}\n")
    shown = [["" if line[name] is None else line[name] for name in ("class_id", *COLUMNS)] for line in lines[: cfg.max_lines]]
    print(table([["class", *COLUMNS], *shown]))
    if len(lines) > cfg.max_lines:
        print(f"and {len(lines) - cfg.max_lines} more; out=DIR writes all of them")
    print("\nthe second is " + ", ".join(f"{found.report['verdicts'][verdict]} {verdict}" for verdict in VERDICTS))
    if out is not None:
        print(f"{out / 'comparison.json'} and {out / 'classes.csv'} hold all of it")
