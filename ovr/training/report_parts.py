"""What a report is given beside figures: the worst of very many classes, and rows as a person may read them. Knows no pages.

K = heads
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ovr.core.heads import HeadColumns, plain
from ovr.core.schema import InputSchema
from ovr.data.lazy import Inputs
from ovr.data.origin import RowOf
from ovr.input.records import TEXTS

WORST = 100  # classes that a report of very many tells of


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
