"""The report of a bundle on some rows, of `ovr train` and `ovr evaluate`: what it is given beside figures. Knows no pages.

N = rows, K = heads
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.bundle import ModelBundle
from ovr.core.files import read_json
from ovr.core.heads import HeadColumns, plain
from ovr.core.schema import InputSchema
from ovr.data.card import CARD
from ovr.data.lazy import Inputs
from ovr.data.origin import RowOf
from ovr.data.splits import Rows
from ovr.input.records import TEXTS
from ovr.report import write_report

WORST = 100  # classes that a report of very many tells of


def write_bundle_report(
    folder: Path,
    bundle: ModelBundle,
    rows: Rows,
    *,
    report: dict[str, Any],
    prob_NK: NDArray[Any] | None,
    shown: RowOf | None,
    row_number_N: NDArray[Any] | None,
    measured: Mapping[str, Any],
    title: str,
    seconds: Mapping[str, float] | None = None,
) -> Path:
    """Write report.html, report.json and tables/ of a bundle's figures on some rows into `folder`, and return the first.

    Args:
        report: the figures, as report/metrics.json has them.
        prob_NK: what they are of; None from `LARGE_K` heads on.
        shown: rows as their source keeps them (`Origin.shown`); else they are shown as the network is given them.
        row_number_N, measured: as `ovr.report.write_report` takes them.
        seconds: what training took, where it was just done.
    """
    target_NK, mask_NK = rows.labels.dense() if prob_NK is not None else (None, None)
    card = bundle.path / CARD
    return write_report(
        folder,
        report=with_worst(report, bundle.heads),
        taxonomy=bundle.taxonomy,
        prob_NK=prob_NK,
        target_NK=target_NK,
        mask_NK=mask_NK,
        policy=bundle.policy,
        rows=readable(rows.x, bundle.input, shown),
        row_number_N=row_number_N,
        measured=measured,
        provenance={
            **bundle.provenance,
            "bundle_sha256": bundle.bundle_sha256,
            **({} if seconds is None else {"seconds": dict(seconds)}),
        },
        data_card=read_json(card) if card.is_file() else {},
        title=title,
    )


def with_worst(report: dict[str, Any], heads: Any) -> Mapping[str, Any]:
    """Return the report with the figures of the classes of lowest average precision, where the bundle keeps them as columns."""
    if not isinstance(heads, HeadColumns) or "average_precision" not in heads.figures:
        return report
    worst = np.argsort(heads.figures["average_precision"], kind="stable")[:WORST].tolist()  # NaN is last
    statuses = heads.calibrations
    classes = [
        {
            "class_id": heads.class_ids[k],
            "calibration_status": statuses[k].status,
            "threshold_status": heads.threshold_status_K[k],
            **{name: plain(value_K[k]) for name, value_K in heads.figures.items()},
        }
        for k in worst
    ]
    return {**report, "classes": classes}


def readable(x: Inputs, input: InputSchema, shown: RowOf | None) -> RowOf | None:
    """Return what gives a row as a person may read it: `shown`, what the source keeps, or else the row as the network is given it.

    None of texts that the source does not keep: their tokens' numbers tell nobody anything.
    """
    kind = input.raw_kind
    if shown is not None:
        return shown
    if kind in TEXTS:
        return None

    def row_of(row: int) -> Any:
        values = np.asarray(x[row : row + 1])[0]
        if kind == "sparse":
            return {str(int(number)): float(value) for number, value in values if value}
        if kind == "table":
            return dict(zip(input.columns, values.tolist(), strict=True))
        return values.astype(np.uint8) if kind == "image" else values

    return row_of
