"""A report as files: report.html, report.json and tables/*.csv. Knows the contents, not the page.

N = rows, K = heads
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ovr.core.artifact import DecisionPolicy
from ovr.core.files import write_file
from ovr.core.taxonomy import Taxonomy
from ovr.metric.tables import Lines, csv_text, lines
from ovr.metric.tables import tables as report_tables
from ovr.report import charts
from ovr.report.contents import Contents, RowOf, bins, contents
from ovr.report.page import NO_CHARTS, page
from ovr.report.parts import CONFUSED_PAIRS, is_table

log = logging.getLogger(__name__)

HTML, JSON, TABLES = "report.html", "report.json", "tables"


def write_report(
    folder: Path,
    *,
    report: Mapping[str, Any],
    taxonomy: Taxonomy,
    prob_NK: NDArray[Any] | None = None,
    target_NK: NDArray[Any] | None = None,
    mask_NK: NDArray[Any] | None = None,
    policy: DecisionPolicy | None = None,
    rows: Sequence[Any] | RowOf | None = None,
    row_number_N: NDArray[Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    data_card: Mapping[str, Any] | None = None,
    title: str = "Report",
) -> Path:
    """Write report.html, report.json and tables/*.csv into `folder`, which is made if it is missing, and return the HTML file.

    Files of an earlier report there are replaced. Without matplotlib there are no charts, and the log says what to install. From
    `LARGE_K` classes on there is the summary and the classes of `report` alone, whatever arrays are given.

    Args:
        report: what `report/metrics.json` of a bundle holds: figures by name, and in `classes` a dictionary a class; any further
            tables in it are shown as they are.
        prob_NK: calibrated probabilities (N, K) of the rows reported on, with `target_NK` and `mask_NK`; or none of the three.
        policy: how the model decides; None: by the most probable class.
        rows: what the user has for each row, or a function of its number: a text, a mapping of cells, an image as bytes, path or
            array (C, H, W), or numbers.
        row_number_N: the number (N,) of each row in its source.
        measured: which rows these are and when they were measured: `rows` the name of a split, or "all"; `files`, with a `name`
            each; `at`.
        provenance, data_card: of the bundle.

    Raises:
        DataError: some of the three arrays without the others, arrays that do not belong together or to the taxonomy, figures of a
            class that it does not have.
    """
    made = contents(
        report=report,
        taxonomy=taxonomy,
        prob_NK=prob_NK,
        target_NK=target_NK,
        mask_NK=mask_NK,
        policy=policy,
        rows=rows,
        row_number_N=row_number_N,
        data_card=data_card,
        provenance=provenance,
        measured=measured,
    )
    if not charts.is_available():
        log.warning("%s", NO_CHARTS)
    (folder / TABLES).mkdir(parents=True, exist_ok=True)
    for name, table in tables(made).items():
        write_file(folder / TABLES / f"{name}.csv", csv_text(table).encode())
    # NaN is no JSON: figures that are not defined are null by now.
    text = json.dumps(made.to_json(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_file(folder / JSON, text.encode())
    write_file(folder / HTML, page(made, title=title).encode())
    return folder / HTML


def tables(made: Contents) -> dict[str, Lines]:
    """Return each table by its name, a header and a line a row; those that would be empty are left out."""
    summary = [["figure", "value"], *map(list, made.summary.items())]
    found: dict[str, Lines] = report_tables({"classes": made.classes, **made.parts}) | {"summary": summary}
    value = made.to_json()
    for name, part in made.parts.items():
        if is_table(part):
            found[name] = lines(part)
    if made.reliability is not None:
        header = ["class_id", "bin", "rows", "mean_prob", "share", "low", "high"]
        found["reliability"] = [header]
        for k, class_id in enumerate(made.taxonomy.ids):
            columns = bins(made.reliability, k)
            of_bins = zip(*(columns[name] for name in header[2:]), strict=True)
            found["reliability"] += [[class_id, number, *of_bin] for number, of_bin in enumerate(of_bins)]
    found["precision_recall"] = [["class_id", "threshold", "precision", "recall"]]
    for curve in value["precision_recall"]:
        points = zip(curve["threshold"], curve["precision"], curve["recall"], strict=True)
        found["precision_recall"] += [[curve["class_id"], *point] for point in points]
    if "confused" in value and CONFUSED_PAIRS not in made.parts:
        found["confused"] = lines(value["confused"])
    if "risk_coverage" in value:
        curve = value["risk_coverage"]
        found["risk_coverage"] = [list(curve), *map(list, zip(*curve.values(), strict=True))]
        found["risk_at"] = lines(value["risk_at"])
    found["examples"] = lines(
        [
            {**row, "given": _ids(row["given"]), "decided": _ids(row["decided"]), "top": json.dumps(row["top"], ensure_ascii=False)}
            for row in value["examples"]
        ]
    )
    return {name: table for name, table in found.items() if len(table) > 1}


def _ids(class_ids: Sequence[str]) -> str:
    """Return class ids as one cell; a JSON array, since an id may hold any character."""
    return json.dumps(class_ids, ensure_ascii=False)
