"""The report of a model on one split: figures a class with their counts, and their means. Knows logits and labels only.

N = rows, K = heads, C = heads of one block
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.calibrator.cohort import cohort_logit, cohort_prob
from ovr.core import scale
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.calibrations import Calibrations
from ovr.core.cohorts import CohortCalibrations
from ovr.core.heads import Figures, figures_of, plain
from ovr.core.taxonomy import Taxonomy
from ovr.core.thresholds import Thresholds
from ovr.core.top import RunningTop
from ovr.data.labels import Labels
from ovr.decision.decide import abstains, labels_decided
from ovr.metric.at_k import PrecisionAt
from ovr.metric.binned import ece
from ovr.metric.bins import bin_sums
from ovr.metric.calibration import TopLabel
from ovr.metric.calibration_bound import ece_interval
from ovr.metric.classification import RowAccuracy, mean_defined
from ovr.metric.cohort_report import CohortFigures
from ovr.metric.comparability import Comparability
from ovr.metric.figures import HeadFigures, ends
from ovr.metric.intervals import wilson
from ovr.metric.pairs import ConfusedPairs, Confusions, Pairs
from ovr.metric.risk_coverage import risk_coverage
from ovr.training.blocks import LogitBlocks

AT = (1, 3, 5)  # top classes that multi-label reports tell of
MAX_PAIRS = 1000  # confused pairs that a report tells of: all of 32 classes


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Counts and means as plain values for JSON, and the figures of each class (K,). Undefined (no positive row, say) is None
    there, NaN here."""

    summary: dict[str, Any]
    figures: Figures
    confusions: Confusions | None = None  # None from `LARGE_K` heads on
    cohorts: CohortFigures | None = None  # likewise, and without cohorts

    def tell_of_decisions(self, policy: DecisionPolicy, thresholds: Thresholds, *, abstention_status: str | None) -> None:
        """Add to the summary what is to be said of the limit of abstention and of promised thresholds; None: nothing is known."""
        told = {"abstain_below": policy.abstain_below, "abstention_status": abstention_status}
        self.summary.update(told, num_unpromised_thresholds=len(thresholds.columns_without_promise()))

    def report(
        self, taxonomy: Taxonomy, calibrations: Sequence[Calibration], thresholds: Thresholds | None = None
    ) -> dict[str, Any]:
        """Return the summary with a dictionary a class, the confused pairs and the cohorts; see docs/metrics.md."""
        parts: dict[str, Any] = {}
        if self.confusions is not None:
            parts["confused_pairs"] = _pairs(self.confusions, taxonomy.ids, self.figures)
        if self.cohorts is not None:
            parts["cohorts"] = self.cohorts.report(taxonomy.ids)
        return {
            **self.summary,
            **parts,
            "classes": [
                {
                    "class_id": spec.id,
                    "name": spec.name,
                    "calibration_kind": calibrations[column].kind,
                    "calibration_status": calibrations[column].status,
                    **({} if thresholds is None else {"threshold_status": thresholds.status_K[column]}),
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
    cohorts: Mapping[str, NDArray[Any]] | None = None,
    seed: int = 0,
    cohort_calibrations: CohortCalibrations | None = None,
) -> Evaluation:
    """Return the figures of all rows; docs/metrics.md tells what each is.

    "before" is the sigmoid of the logit itself, "after" is with the head's calibration. Precision, recall and F1 are of the
    policy's decisions. With a multilabel policy P@k and PSP@k of the calibrated probabilities are told too, see `PrecisionAt`; with
    argmax, how the heads rank against each other, see `Comparability`. `aurc` is the area under the risk-coverage curve of each
    row's highest probability. Classes of `small_K` (K,) have too few rows for their figures to say much, and are marked. From
    `LARGE_K` heads on there are no intervals, confused pairs and cohorts.

    Args:
        cohorts: name of a column -> the cohort of each row (N,).
        seed: of the draws that some intervals come from.
        cohort_calibrations: those of a bundle that has them; "after" is then with each row's own, by `cohorts`.

    Raises:
        DataError: a cohort column that has not one value a row.
    """
    calibrations = Calibrations.of(calibrations)
    detailed = logits.num_heads < scale.LARGE_K
    number_N = None
    if cohort_calibrations is not None:
        number_N = cohort_calibrations.numbers((cohorts or {})[cohort_calibrations.column])
    top = RunningTop(len(logits))
    for columns, logit_NC in logits:
        prob_NC = cohort_prob(logit_NC, calibrations[columns], cohort_calibrations, number_N, columns=columns)
        top.update(prob_NC.astype(np.float32), first_column=columns.start)
    abstained_N = abstains(top.score_N, policy)

    accuracy, top_before, top_after = RowAccuracy(len(logits)), TopLabel(len(logits)), TopLabel(len(logits))
    at = PrecisionAt(len(logits), propensity_K, most=max(AT)) if policy.mode == "multilabel" else None
    heads = HeadFigures(len(logits), detailed=detailed, seed=seed)
    ranked = {when: Comparability(len(logits)) for when in ("before", "after") if policy.mode == "argmax"}
    pairs = ConfusedPairs(len(logits)) if detailed else None
    sliced = CohortFigures(cohorts, num_rows=len(logits)) if detailed and cohorts else None
    blocks: list[dict[str, NDArray[Any]]] = []
    for columns, logit_NC in logits:
        target_NC, mask_NC = labels.columns(columns)
        here = calibrations[columns]
        before_NC = calibrated_prob(logit_NC, Calibrations.identity(len(here)))
        prob_NC = cohort_prob(logit_NC, here, cohort_calibrations, number_N, columns=columns)
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
        log_odds_NC = cohort_logit(logit_NC, here, cohort_calibrations, number_N, columns=columns)
        for when, rows in ranked.items():
            rows.update(logit_NC if when == "before" else log_odds_NC, target_NC, mask_NC, first_column=columns.start)
        if pairs is not None:
            pairs.update(label_NC, target_NC, mask_NC)
        if sliced is not None:
            sliced.update(label_NC, prob_NC, target_NC, mask_NC)
        figures = heads.update(
            logit_NC=logit_NC,
            calibrated_NC=log_odds_NC,
            before_NC=before_NC,
            prob_NC=prob_NC,
            label_NC=label_NC,
            target_NC=target_NC,
            mask_NC=mask_NC,
            ranked_NC=None if cohort_calibrations is None else log_odds_NC,
        )
        figures |= {"temperature": np.where(here.affine_K, 1 / here.scale_K, np.nan), "threshold": threshold_K[columns]}
        blocks.append(figures)
    figures_K = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]} | {"small": small_K}
    means = ("ece_before", "ece_after", "nll_before", "nll_after", "brier_before", "brier_after")
    summary = {
        "num_rows": len(logits),
        "accuracy": plain(accuracy.result()),
        "abstained": int(abstained_N.sum()),
        "num_small_classes": int(small_K.sum()),
        **{name: plain(mean_defined(figures_K[name])) for name in means},
        **{name: plain(value) for name, value in heads.summary(figures_K).items()},
        **{f"{name}_{when}": plain(value) for when, rows in ranked.items() for name, value in rows.result().items()},
        "aurc": plain(risk_coverage(*(values_N1[:, 0] for values_N1 in top_after.result())).aurc),
    }
    for name, (confidence_N1, right_N1, known_N1) in (("before", top_before.result()), ("after", top_after.result())):
        sums = bin_sums(confidence_N1, right_N1, known_N1)
        intervals = {f"top_label_ece_{name}": ece_interval(sums)} if name == "after" and detailed else {}
        summary |= {
            figure: plain(value_1[0]) for figure, value_1 in {f"top_label_ece_{name}": ece(sums), **ends(intervals)}.items()
        }
    if detailed:
        right_N, known_N = accuracy.rows()
        low, high = wilson(right_N.sum(), known_N.sum())
        summary |= {"accuracy_low": plain(low), "accuracy_high": plain(high)}
    if at is not None:
        found = {f"precision_at_{k}": (at.precision(k), at.precision_rows(k)) for k in AT}
        found |= {f"ps_precision_at_{k}": (at.ps_precision(k), at.ps_precision_rows(k)) for k in AT}
        summary |= {name: plain(value) for name, (value, _) in found.items()}
        if heads.draws is not None:
            drawn = ends({name: heads.draws.ratio_interval(*rows) for name, (_, rows) in found.items()})
            summary |= {name: plain(value_1[0]) for name, value_1 in drawn.items()}
    return Evaluation(summary, figures_K, None if pairs is None else pairs.result(), sliced)


def _pairs(confusions: Confusions, class_ids: Sequence[str], figures: Figures) -> dict[str, Any]:
    positives_K, found_K = figures["positives"], figures["true_positives"]

    def told(pairs: Pairs, whole_K: NDArray[np.int64]) -> list[dict[str, Any]]:
        top = pairs.top(MAX_PAIRS)
        return [
            {"class_id": class_ids[k], "decided_id": class_ids[other], "rows": rows, "share": rows / int(whole_K[k])}
            for k, other, rows in zip(top.true_P.tolist(), top.decided_P.tolist(), top.count_P.tolist(), strict=True)
        ]

    return {
        "instead": told(confusions.instead, positives_K),
        "num_instead": len(confusions.instead),
        "beside": told(confusions.beside, found_K),
        "num_beside": len(confusions.beside),
        "nothing": int(confusions.nothing_K.sum()),
        "num_rows_left_out": confusions.num_left_out,
    }
