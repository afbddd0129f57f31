"""`ovr data check`: what looks wrong with the rows of a data source, as tables."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ovr.cli.instantiate import build
from ovr.cli.tables import table
from ovr.errors import ConfigError

if TYPE_CHECKING:
    from ovr.data.splits import Splits
    from ovr.training.data_check import DataReport

KINDS = {"label_error": "likely label errors", "conflict": "equal rows with other labels", "near_duplicate": "near-duplicates"}
COUNTS = ("train", "val", "calib", "test", "label_error", "conflict", "near_duplicate")


def run(cfg: DictConfig) -> None:
    """Print the tables, and write them where `out` says.

    Raises:
        ConfigError: a setting that cannot be used; `out` exists.
        DataError: what is wrong with the source, before any work.
    """
    from ovr.training.data_check import check_data

    out = None if cfg.out is None else Path(cfg.out).expanduser()
    if out is not None and out.exists():
        raise ConfigError(f"out={cfg.out} exists; expected a directory that does not")
    splits: Splits = build(cfg.data.source, cfg.allow_targets)
    settings = {name: cfg[name] for name in ("folds", "max_rows", "min_cosine", "max_difference", "seed")}
    report = check_data(splits, min_positives=OmegaConf.to_container(cfg.min_positives), **settings)  # type: ignore[arg-type]
    _print(report, splits, cfg)
    if out is not None:
        out.mkdir(parents=True)
        _write(out / "classes.csv", class_lines(report, splits))
        _write(out / "rows.csv", row_lines(report, splits))
        print(f"{out / 'classes.csv'} and {out / 'rows.csv'} hold all of it")


def class_lines(report: "DataReport", splits: "Splits") -> list[list[Any]]:
    """Return the header and a line a class."""
    header = ["class_id", *COUNTS[:4], "small", "out_of_fold_average_precision", *COUNTS[4:]]
    columns = [report.classes[name].tolist() for name in (*COUNTS[:4], "small", "average_precision", *COUNTS[4:])]
    return [header, *(list(line) for line in zip(splits.taxonomy.ids, *columns, strict=True))]


def row_lines(report: "DataReport", splits: "Splits") -> list[list[Any]]:
    """Return the header and a line a finding; rows are counted from 0 in their split, and in the source where it tells.

    `where` is the file and the line, the row or the image, where the source tells.
    """
    place = ("split", "row", "source_row", "where")
    header = ["kind", *place, "score", "given", "suggested", *(f"other_{name}" for name in place)]
    lines = []
    for finding in report.findings:
        other = ["", "", "", ""] if finding.other is None else _place(report, splits, finding.other)
        lines.append(
            [finding.kind, *_place(report, splits, finding.row), f"{finding.score:.6f}", finding.given, finding.suggested, *other]
        )
    return [header, *lines]


def _place(report: "DataReport", splits: "Splits", row: int) -> list[Any]:
    from ovr.data.splits import SPLIT_NAMES

    name, number = SPLIT_NAMES[report.split_N[row]], int(report.number_N[row])
    numbers = splits.origin.row_numbers.get(name)
    where = splits.origin.where.get(name)
    return [name, number, "" if numbers is None else int(numbers[number]), "" if where is None else where(number)]


def _print(report: "DataReport", splits: "Splits", cfg: DictConfig) -> None:
    classes, rows = class_lines(report, splits), row_lines(report, splits)
    some = "" if report.num_looked_at == report.num_rows else f" (errors and near-duplicates: {report.num_looked_at} of them)"
    print(
        f"{report.num_rows} rows{some}, {len(splits.taxonomy)} classes, {sum(line[5] for line in classes[1:])} below min_positives"
    )
    for leak in report.leakage.leaks:
        if leak.num_rows:
            allowed = "left out of calib" if (leak.earlier, leak.later) == ("train", "calib") else "allowed"
            verdict = f"more than max_leakage={cfg.max_leakage}" if leak.share > (cfg.max_leakage or 1) else allowed
            print(f"{leak.num_rows} rows of {leak.later} ({leak.share:.2%}) are also in {leak.earlier}: {verdict}")
    for name, count in report.leakage.num_repeated.items():
        if count:
            print(f"{count} rows of {name} repeat another row of it")
    print()
    # The classes to look at first: too small, then those with the most findings.
    ranked = sorted(classes[1:], key=lambda line: (not line[5], -sum(line[7:])))
    print(table([classes[0], *ranked[: cfg.max_lines]]))
    _more(len(ranked), cfg.max_lines)
    for kind, title in KINDS.items():
        found = [line[1:] for line in rows[1:] if line[0] == kind]
        print(f"\n{title}: {len(found)}")
        if found:
            shown = [rows[0][1:], *found[: cfg.max_lines]]
            used = [any(line[c] != "" for line in shown[1:]) for c in range(len(shown[0]))]
            print(table([[value for value, use in zip(line, used, strict=True) if use] for line in shown]))
            _more(len(found), cfg.max_lines)


def _more(num: int, shown: int) -> None:
    if num > shown:
        print(f"and {num - shown} more; out=DIR writes all of them")


def _write(path: Path, lines: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
