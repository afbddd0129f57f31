"""The report of a finished run, from what the run leaves. Knows files of a bundle and of a run directory, not how a page is made.

K = heads
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ovr.core.heads import HeadColumns, plain
from ovr.core.schema import InputSchema
from ovr.data.card import CARD
from ovr.data.lazy import Inputs
from ovr.data.origin import RowOf
from ovr.data.splits import Splits
from ovr.input.records import TEXTS
from ovr.report import write_report
from ovr.training.run import TrainResult

log = logging.getLogger(__name__)

WORST = 100  # classes that a report of very many tells of


def write_run_report(result: TrainResult, splits: Splits, run_dir: Path) -> Path:
    """Write report.html, report.json and tables/ of the test rows into `run_dir`, and return the first.

    Rows are shown as their source keeps them (`Origin.shown`), or else as the network is given them.
    """
    bundle = result.bundle
    target_NK, mask_NK = splits.test.labels.dense() if result.test_prob_NK is not None else (None, None)
    path = write_report(
        run_dir,
        report=with_worst(result.report, bundle.heads),
        taxonomy=splits.taxonomy,
        prob_NK=result.test_prob_NK,
        target_NK=target_NK,
        mask_NK=mask_NK,
        policy=bundle.policy,
        rows=readable(splits.test.x, splits.input, splits.origin.shown.get("test")),
        row_number_N=splits.origin.row_numbers.get("test"),
        provenance={**bundle.provenance, "bundle_sha256": bundle.bundle_sha256, "seconds": result.seconds},
        data_card=json.loads((bundle.path / CARD).read_bytes()),
        title=f"Test report of {run_dir.name}",
    )
    log.info("report %s", path)
    return path


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
