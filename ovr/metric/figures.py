"""The figures of every class as plain values for JSON: what is not defined is None. Knows nothing of files.

N = rows, K = heads
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.metric.calibration import brier, ece_equal_mass, nll
from ovr.metric.classification import average_precision, confusion


def class_figures(
    prob_NK: Any, label_NK: Any, target_NK: Any, mask_NK: Any, *, logit_NK: Any = None
) -> list[dict[str, int | float | None]]:
    """Return one dictionary a head, in column order: counts, precision, recall, f1, average_precision, ece, brier, and perhaps nll.

    Args:
        prob_NK: calibrated probabilities.
        label_NK: the decisions, such as `Decision.label_BK`.
        logit_NK: calibrated logits (scale * logit + bias); with them `nll` is there too.

    Raises:
        DataError: probabilities outside [0, 1] or NaN, shapes that differ, decisions, targets or mask other than 0 and 1.
    """
    counts = confusion(label_NK, target_NK, mask_NK)
    columns: dict[str, NDArray[Any]] = {
        "num_rows": counts.num_rows_K,
        "num_positives": counts.num_positives_K,
        "num_decided": counts.num_decided_K,
        "true_positives": counts.true_positives_K,
        "precision": counts.precision_K,
        "recall": counts.recall_K,
        "f1": counts.f1_K,
        "average_precision": average_precision(prob_NK, target_NK, mask_NK),
        "ece": ece_equal_mass(prob_NK, target_NK, mask_NK),
        "brier": brier(prob_NK, target_NK, mask_NK),
    }
    if logit_NK is not None:
        columns["nll"] = nll(logit_NK, target_NK, mask_NK)
    return [{name: plain(value_K[k]) for name, value_K in columns.items()} for k in range(len(counts.num_rows_K))]


def plain(value: float | np.generic) -> int | float | None:
    """Return a Python number, or None for NaN and infinity, which JSON does not have."""
    number = value.item() if isinstance(value, np.generic) else value
    return number if isinstance(number, int) or math.isfinite(number) else None
