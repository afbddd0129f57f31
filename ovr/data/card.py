"""What a model was made from, as files of its bundle: rows and classes of every split, source files, rule, equal rows.

data/train_rows.npy and data/calib_rows.npy hold digests of the training and calibration rows, by which `ovr calibrate` and
`ovr evaluate` tell them (see `overlap`).

From `LARGE_K` classes on there is no list of classes but data/classes.npz with a column of counts a split, in taxonomy order.

K = heads
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core import scale
from ovr.core.bundle import DATA_CARD
from ovr.core.files import canonical_json
from ovr.core.shards import npy_bytes, npz_bytes
from ovr.data.leakage import Leakage
from ovr.data.overlap import CALIB_ROWS, TRAIN_ROWS
from ovr.data.splits import SPLIT_NAMES, Rows, Splits

CARD = DATA_CARD
CLASSES = "data/classes.npz"
SCHEMA_VERSION = 1


def card_parts(
    splits: Splits,
    *,
    leakage: Leakage | None,
    num_left_out: int = 0,
    max_leakage: float | None,
    min_positives: Mapping[str, int],
    small_K: NDArray[np.bool_],
) -> dict[str, bytes]:
    """Return the data card's files by their place in the bundle; the same splits give the same bytes.

    Args:
        leakage: None where it was not looked for; the digests of the training and calibration rows are kept with it.
        num_left_out: calibration rows that `splits` lack because they are training rows too.
        small_K: classes below `min_positives`.
    """
    counts: dict[str, NDArray[Any]] = {"small": small_K}
    for name in SPLIT_NAMES:
        labels = getattr(splits, name).labels
        counts[f"{name}_positives"] = labels.num_positives_K()
        counts[f"{name}_unknown"] = np.bincount(labels.unknowns.column_P, minlength=labels.num_heads)
    card: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **splits.origin.to_json(),
        "input": {
            "shape": list(splits.input.shape),
            "dtype": splits.input.dtype,
            "columns": list(splits.input.columns),
            "raw_kind": splits.input.raw_kind,
        },
        "splits": {name: _split(getattr(splits, name)) for name in SPLIT_NAMES},
        "num_classes": len(splits.taxonomy),
        "min_positives": dict(min_positives),
        "num_small_classes": int(small_K.sum()),
        "max_leakage": max_leakage,
        "leakage": None,
    }
    if leakage is not None:
        for name in SPLIT_NAMES:
            card["splits"][name]["repeated_rows"] = leakage.num_repeated[name]
        card["splits"]["calib"]["left_out"] = num_left_out
        card["leakage"] = [
            {"earlier": leak.earlier, "later": leak.later, "rows": leak.num_rows, "share": leak.share} for leak in leakage.leaks
        ]
    rows = {} if leakage is None else {TRAIN_ROWS: npy_bytes(leakage.train_rows), CALIB_ROWS: npy_bytes(leakage.calib_rows)}
    if len(splits.taxonomy) >= scale.LARGE_K:
        return {CARD: canonical_json(card), CLASSES: npz_bytes(counts), **rows}
    card["classes"] = [
        {"class_id": spec.id, **{name: value_K[k].item() for name, value_K in counts.items()}}
        for k, spec in enumerate(splits.taxonomy)
    ]
    return {CARD: canonical_json(card), **rows}


def _split(rows: Rows) -> dict[str, Any]:
    num_labels_N = np.diff(rows.labels.positives.start_N1)
    return {
        "rows": len(rows),
        "positives": int(num_labels_N.sum()),
        "unknown": len(rows.labels.unknowns.column_P),
        "rows_without_label": int((num_labels_N == 0).sum()),
        "most_labels_of_a_row": int(num_labels_N.max()),
    }
