"""The report of a model on one split: figures a class with their counts, and their means. Knows logits and labels only.

N = rows, K = heads
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob, scale_and_bias
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.taxonomy import Taxonomy
from ovr.decision.decide import decide
from ovr.metric.calibration import brier, ece_equal_mass, nll, top_label_ece
from ovr.metric.classification import accuracy, average_precision, confusion, mean_defined


def evaluate(
    logit_NK: NDArray[np.float32],
    target_NK: NDArray[np.bool_],
    mask_NK: NDArray[np.bool_],
    *,
    taxonomy: Taxonomy,
    calibrations: Sequence[Calibration],
    threshold_K: NDArray[np.float64],
    policy: DecisionPolicy,
) -> dict[str, Any]:
    """Return plain values for JSON; a figure that is undefined (no positive row, say) is None.

    "before" is the sigmoid of the logit itself, "after" is with the head's calibration. Precision, recall and F1 are of the
    policy's decisions, the ECE is class-wise with 15 bins of equal mass, NLL is in nats.
    """
    scale_K, bias_K = scale_and_bias(calibrations)
    before_NK = calibrated_prob(logit_NK, np.ones_like(scale_K), np.zeros_like(bias_K))
    prob_NK = calibrated_prob(logit_NK, scale_K, bias_K)
    decision = decide(prob_NK.astype(np.float32), threshold_K=threshold_K, policy=policy)
    counts = confusion(decision.label_BK, target_NK, mask_NK)
    figures_K: dict[str, NDArray[np.float64]] = {
        "precision": counts.precision_K,
        "recall": counts.recall_K,
        "f1": counts.f1_K,
        "average_precision": average_precision(logit_NK, target_NK, mask_NK),
        "temperature": 1 / scale_K,
        "ece_before": ece_equal_mass(before_NK, target_NK, mask_NK),
        "ece_after": ece_equal_mass(prob_NK, target_NK, mask_NK),
        "nll_before": nll(logit_NK, target_NK, mask_NK),
        "nll_after": nll(logit_NK, target_NK, mask_NK, scale_K=scale_K, bias_K=bias_K),
        "brier_before": brier(before_NK, target_NK, mask_NK),
        "brier_after": brier(prob_NK, target_NK, mask_NK),
        "threshold": threshold_K,
    }
    classes = [
        {
            "class_id": spec.id,
            "name": spec.name,
            "rows": int(counts.num_rows_K[k]),
            "positives": int(counts.num_positives_K[k]),
            "calibration_status": calibrations[k].status,
            **{name: _plain(value_K[k]) for name, value_K in figures_K.items()},
        }
        for k, spec in enumerate(taxonomy)
    ]
    means = ("f1", "average_precision", "ece_before", "ece_after", "nll_before", "nll_after", "brier_before", "brier_after")
    names = {"f1": "macro_f1", "average_precision": "macro_average_precision"}
    return {
        "num_rows": len(logit_NK),
        "accuracy": _plain(accuracy(decision.label_BK, target_NK, mask_NK)),
        "abstained": int(decision.abstained_B.sum()),
        **{names.get(name, name): _plain(mean_defined(figures_K[name])) for name in means},
        "top_label_ece_before": _plain(top_label_ece(before_NK, target_NK, mask_NK)),
        "top_label_ece_after": _plain(top_label_ece(prob_NK, target_NK, mask_NK)),
        "classes": classes,
    }


def _plain(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
