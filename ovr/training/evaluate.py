"""The report of a model on one split: figures a class with their counts, and their means. Knows logits and labels only.

N = rows, K = heads, C = heads of one block
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_logit, calibrated_prob
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.calibrations import Calibrations
from ovr.core.heads import Figures, figures_of, plain
from ovr.core.taxonomy import Taxonomy
from ovr.core.top import RunningTop
from ovr.data.labels import Labels
from ovr.decision.decide import abstains, labels_decided
from ovr.metric.at_k import PrecisionAt
from ovr.metric.calibration import TopLabel, brier, ece_equal_mass, nll
from ovr.metric.classification import RowAccuracy, average_precision, confusion, mean_defined
from ovr.training.blocks import LogitBlocks

AT = (1, 3, 5)  # top classes that multi-label reports tell of


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Counts and means as plain values for JSON, and the figures of each class (K,). Undefined (no positive row, say) is None
    there, NaN here."""

    summary: dict[str, Any]
    figures: Figures

    def report(self, taxonomy: Taxonomy, calibrations: Sequence[Calibration]) -> dict[str, Any]:
        """Return the summary with a dictionary a class."""
        return {
            **self.summary,
            "classes": [
                {
                    "class_id": spec.id,
                    "name": spec.name,
                    "calibration_kind": calibrations[column].kind,
                    "calibration_status": calibrations[column].status,
                    **figures_of(self.figures, column),
                }
                for column, spec in enumerate(taxonomy)
            ],
        }


def evaluate(
    logits: LogitBlocks,
    labels: Labels,
    *,
    calibrations: Sequence[Calibration],
    threshold_K: NDArray[np.float64],
    policy: DecisionPolicy,
    small_K: NDArray[np.bool_],
    propensity_K: NDArray[np.float64],
) -> Evaluation:
    """Return the figures of all rows.

    "before" is the sigmoid of the logit itself, "after" is with the head's calibration. Precision, recall and F1 are of the
    policy's decisions, the ECE is class-wise with 15 bins of equal mass, NLL is in nats. With a multilabel policy P@k and PSP@k of
    the calibrated probabilities are told too; see `PrecisionAt`. Classes of `small_K` (K,) have too few rows for their
    figures to say much, and are marked.
    """
    calibrations = Calibrations.of(calibrations)
    top = RunningTop(len(logits))
    for columns, logit_NC in logits:
        top.update(calibrated_prob(logit_NC, calibrations[columns]).astype(np.float32), first_column=columns.start)
    abstained_N = abstains(top.score_N, policy)

    accuracy, top_before, top_after = RowAccuracy(len(logits)), TopLabel(len(logits)), TopLabel(len(logits))
    at = PrecisionAt(len(logits), propensity_K, most=max(AT)) if policy.mode == "multilabel" else None
    blocks: list[dict[str, NDArray[Any]]] = []
    for columns, logit_NC in logits:
        target_NC, mask_NC = labels.columns(columns)
        here = calibrations[columns]
        before_NC = calibrated_prob(logit_NC, Calibrations.identity(len(here)))
        prob_NC = calibrated_prob(logit_NC, here)
        label_NC = labels_decided(
            prob_NC.astype(np.float32),
            first_column=columns.start,
            top_B=top.column_N,
            abstained_B=abstained_N,
            threshold_C=threshold_K[columns].astype(np.float32),
            policy=policy,
        )
        accuracy.update(label_NC, target_NC, mask_NC)
        top_before.update(before_NC, target_NC, mask_NC)
        top_after.update(prob_NC, target_NC, mask_NC)
        if at is not None:
            at.update(prob_NC, target_NC, mask_NC, first_column=columns.start)
        counts = confusion(label_NC, target_NC, mask_NC)
        blocks.append(
            {
                "rows": counts.num_rows_K,
                "positives": counts.num_positives_K,
                "precision": counts.precision_K,
                "recall": counts.recall_K,
                "f1": counts.f1_K,
                "average_precision": average_precision(logit_NC, target_NC, mask_NC),
                "temperature": np.where(here.affine_K, 1 / here.scale_K, np.nan),
                "ece_before": ece_equal_mass(before_NC, target_NC, mask_NC),
                "ece_after": ece_equal_mass(prob_NC, target_NC, mask_NC),
                "nll_before": nll(logit_NC, target_NC, mask_NC),
                "nll_after": nll(calibrated_logit(logit_NC, here), target_NC, mask_NC),
                "brier_before": brier(before_NC, target_NC, mask_NC),
                "brier_after": brier(prob_NC, target_NC, mask_NC),
                "threshold": threshold_K[columns],
            }
        )
    figures_K = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]} | {"small": small_K}
    means = ("f1", "average_precision", "ece_before", "ece_after", "nll_before", "nll_after", "brier_before", "brier_after")
    names = {"f1": "macro_f1", "average_precision": "macro_average_precision"}
    summary = {
        "num_rows": len(logits),
        "accuracy": plain(accuracy.result()),
        "abstained": int(abstained_N.sum()),
        "num_small_classes": int(small_K.sum()),
        **{names.get(name, name): plain(mean_defined(figures_K[name])) for name in means},
        "top_label_ece_before": plain(ece_equal_mass(*top_before.result())[0]),
        "top_label_ece_after": plain(ece_equal_mass(*top_after.result())[0]),
    }
    if at is not None:
        summary |= {f"precision_at_{k}": plain(at.precision(k)) for k in AT}
        summary |= {f"ps_precision_at_{k}": plain(at.ps_precision(k)) for k in AT}
    return Evaluation(summary, figures_K)
