"""The tables of a report as lines for CSV files: classes, confused pairs, cohorts, gaps. Knows no files."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Lines = list[list[Any]]


def tables(report: Mapping[str, Any]) -> dict[str, Lines]:
    """Return the lines of each table that the report has, by name; the first line names the columns, None is an empty cell.

    Names are "classes", "confused_pairs", "cohorts" and "gaps". A figure that only some lines have is a column of all.

    Args:
        report: of `ovr train` or `ovr evaluate`, as in report/metrics.json.
    """
    cohorts = report.get("cohorts", {})
    rows = {
        "classes": list(report.get("classes", ())),
        "confused_pairs": [
            {"kind": kind, **pair} for kind in ("instead", "beside") for pair in report.get("confused_pairs", {}).get(kind, ())
        ],
        "cohorts": [
            {"column": column, "cohort": cohort["cohort"], **row}
            for column, part in cohorts.items()
            for cohort in part["cohorts"]
            for row in cohort["classes"]
        ],
        "gaps": [{"column": column, **row} for column, part in cohorts.items() for row in part["gaps"]],
    }
    return {name: lines(found) for name, found in rows.items() if found}


def lines(rows: Sequence[Mapping[str, Any]]) -> Lines:
    """Return a line of names, in the order in which they first occur, and a line a row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [names, *([row.get(name) for name in names] for row in rows)]


def csv_text(table: Lines) -> str:
    """Return the lines as RFC 4180 has them, with "\\n" at their ends; numbers keep all their digits."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()
