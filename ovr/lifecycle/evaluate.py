"""Figures of a bundle on labelled rows that it was not made from, by ONNX Runtime: the report of a training run, of other rows.

N = rows, K = heads, C = heads of one block
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.cohort import cohort_prob
from ovr.core import scale
from ovr.core.bundle import ModelBundle
from ovr.core.calibrations import Calibrations
from ovr.core.files import canonical_json, place, read_json, staged_directory
from ovr.core.heads import Figures, figures_of
from ovr.core.scale import column_blocks
from ovr.data.card import CARD, CLASSES
from ovr.data.cohorts import Cohorts
from ovr.data.labels import Labels
from ovr.data.lazy import blocks
from ovr.errors import DataError
from ovr.lifecycle.cohorts import cohort_of_rows, numbers_of_rows
from ovr.lifecycle.logits import Logits, StoredLogits, bundle_features
from ovr.lifecycle.rewrite import calibrations_of, thresholds_of
from ovr.lifecycle.rows import NewRows
from ovr.metric.at_k import Propensity
from ovr.metric.tables import csv_text, lines, tables
from ovr.report.files import TABLES
from ovr.runtime.predictor import EdgePredictor
from ovr.runtime.reference import TOLERANCE, tolerances
from ovr.training.evaluate import evaluate
from ovr.training.report_parts import write_bundle_report

log = logging.getLogger(__name__)

PROPENSITY = Propensity(A=0.55, B=1.5)
# Of probabilities alone nothing is known of what they were before they were calibrated.
RANKED = ("argmax_accuracy", "normalized_nll", "normalized_top_label_ece", "mean_prob_none")
BEFORE = ("ece_before", "nll_before", "brier_before", "top_label_ece_before", "temperature", *(f"{name}_before" for name in RANKED))
LEAST_PROB = float(np.finfo(np.float32).tiny)
MOST_PROB = 1 - 2.0**-25  # float32 gives 1 from here on


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of a bundle on some rows, and what they were made from.

    `report` is what a training run keeps as report/metrics.json (see `ovr.training.evaluate`). `prob_NK` are the probabilities that
    it is of, None from `LARGE_K` heads on, whose report has no figures a class either: `figures` has them, (K,) each.
    """

    report: dict[str, Any]
    figures: Figures
    prob_NK: NDArray[np.float32] | None
    labels: Labels
    cohorts: Cohorts = field(default_factory=dict)


def evaluate_rows(
    bundle: ModelBundle,
    prob_NK: NDArray[np.float32] | None,
    labels: Labels,
    cohorts: Cohorts | None = None,
    *,
    logits: Logits | None = None,
    propensity: Propensity = PROPENSITY,
    num_small: int = 1,
) -> Evaluation:
    """Return the figures of rows whose probabilities were served, by whatever runtime.

    Args:
        prob_NK: calibrated probabilities (N, K), in [0, 1], in the taxonomy's order; None with `logits` of very many heads.
        labels: of the same rows, in the taxonomy's order.
        cohorts: of the same rows; the report has figures of each, and gaps.
        logits: of the same rows, where they are known: the report then tells what calibration changed, and its likelihoods lose no
            digit of a probability near 0 or 1. Without them a probability of 1 counts as 1 - 2^-25, and there is no `*_before`.
        propensity: of the training rows' counts, for PSP@k.
        num_small: positive rows below which a class is marked as small, as are those that were small in training.

    Raises:
        DataError: neither probabilities nor logits; shapes that differ; probabilities outside [0, 1].
    """
    num_heads = len(bundle.heads)
    known: Any = logits
    if prob_NK is not None:
        shape = np.asarray(prob_NK).shape
        known = _ProbLogits(prob_NK) if logits is None else logits
    elif logits is not None:
        shape = (len(logits), logits.num_heads)
    else:
        raise DataError("neither probabilities nor logits are given; expected either")
    if shape != (len(labels), num_heads) or labels.num_heads != num_heads:
        raise DataError(
            f"{'logits' if prob_NK is None else 'probabilities'} are {shape} and labels ({len(labels)}, {labels.num_heads}); "
            f"expected as many rows, and {num_heads} heads"
        )
    if logits is not None and bundle.cohorts is not None:
        cohort_of_rows(bundle.cohorts.column, cohorts or {})  # or say that it is missing
    calibrations = Calibrations.identity(num_heads) if logits is None else calibrations_of(bundle)
    num_train, num_rows, small_K = _counts(bundle)
    evaluated = evaluate(
        known,
        labels,
        calibrations=calibrations,
        threshold_K=np.array(bundle.card.thresholds, np.float64),
        policy=bundle.policy,
        small_K=small_K | (labels.num_positives_K() < num_small),
        propensity_K=propensity.of(num_train, num_rows=num_rows),
        cohorts=cohorts or None,
        cohort_calibrations=None if logits is None else bundle.cohorts,
    )
    thresholds = thresholds_of(bundle)
    evaluated.tell_of_decisions(bundle.policy, thresholds, abstention_status=bundle.provenance.get("abstention_status"))
    report = evaluated.summary
    if num_heads < scale.LARGE_K:
        report = evaluated.report(bundle.taxonomy, calibrations_of(bundle), thresholds)
    figures = dict(evaluated.figures)
    if logits is None:
        report, figures = _without(report, BEFORE), _without(figures, BEFORE)
    return Evaluation(report, figures, prob_NK, labels, cohorts or {})


def evaluate_bundle(bundle: ModelBundle, new: NewRows, *, propensity: Propensity = PROPENSITY, num_threads: int = 1) -> Evaluation:
    """Return the figures of a bundle on new rows: its report, and the probabilities that its fused graph gives.

    The report is of the heads' logits by ONNX Runtime and their calibrations; what the fused graph gives is compared with that, and
    a difference above what an export may have is logged. `max_abs_diff` of the report is the largest one.
    """
    rows = new.rows
    z_ND = bundle_features(bundle, rows.x, num_threads=num_threads)
    logits = StoredLogits(bundle, z_ND, num_threads=num_threads)
    prob_NK = None
    if not bundle.shards and bundle.has_fused:
        predictor = EdgePredictor(bundle.path, num_threads=num_threads)
        cohort_N = None if bundle.cohorts is None else cohort_of_rows(bundle.cohorts.column, rows.cohorts)
        parts = [
            predictor.predict_proba(np.asarray(rows.x[block]), encoded=True, cohort=None if cohort_N is None else cohort_N[block])
            for block in blocks(rows.x)
        ]
        prob_NK = np.concatenate(parts)
    made = evaluate_rows(bundle, prob_NK, rows.labels, rows.cohorts, logits=logits, propensity=propensity)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    report = {**made.report, "bundle_sha256": bundle.bundle_sha256, "measured_at": now, "data": new.record}
    if prob_NK is not None:
        report["max_abs_diff"] = _check_same(bundle, prob_NK, logits, rows.cohorts)
    return Evaluation(report, made.figures, prob_NK, rows.labels, rows.cohorts)


def write_evaluation(
    out: Path, evaluation: Evaluation, bundle: ModelBundle, new: NewRows | None = None, more: Mapping[str, bytes] | None = None
) -> None:
    """Write metrics.json and a CSV a table, such as tables/classes.csv with a line a class, into a new directory.

    Args:
        new: the rows that were measured: report.html, report.json and the tables that only these have are then written too.
        more: further files, by their names.

    Raises:
        ArtifactError: `out` exists.
    """
    found = tables(evaluation.report) if new is None else {}  # else the report writes them
    if "classes" not in evaluation.report:  # from `LARGE_K` heads on: the report has the worst alone
        found["classes"] = lines(_rows(bundle, evaluation.figures))
    with staged_directory(out) as staging:
        place(staging, {"metrics.json": canonical_json(evaluation.report), **(more or {})})
        if new is not None:
            write_bundle_report(
                staging,
                bundle,
                new.rows,
                report=evaluation.report,
                prob_NK=evaluation.prob_NK,
                shown=new.shown,
                row_number_N=new.row_number_N,
                measured={"at": evaluation.report["measured_at"], **new.record},
                title=f"Report of {bundle.path.name} on new rows",
            )
        place(staging, {f"{TABLES}/{name}.csv": csv_text(table).encode() for name, table in found.items()})


class _ProbLogits:
    """Log-odds of probabilities, for which the identity calibration gives these back."""

    def __init__(self, prob_NK: NDArray[np.float32]) -> None:
        self.prob_NK, self.num_heads = prob_NK, prob_NK.shape[1]
        wrong = ~((prob_NK >= 0) & (prob_NK <= 1))
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            raise DataError(f"probability of row {row}, head column {column} is {prob_NK[row, column]}; expected 0 to 1")

    def __len__(self) -> int:
        return len(self.prob_NK)

    def __iter__(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        for columns in column_blocks(len(self), self.num_heads):
            prob_NC = np.clip(self.prob_NK[:, columns].astype(np.float64), LEAST_PROB, MOST_PROB)
            yield columns, np.log(prob_NC) - np.log1p(-prob_NC)


def _check_same(bundle: ModelBundle, prob_NK: NDArray[np.float32], logits: Logits, cohorts: Cohorts) -> float:
    """Return the largest difference of the fused graph's probabilities from those of the heads' logits and calibrations."""
    calibrations = calibrations_of(bundle)
    tolerance_K, largest, wrong = tolerances(calibrations), 0.0, []
    number_N = numbers_of_rows(bundle.cohorts, cohorts)
    if bundle.cohorts is not None:
        tolerance_K = np.maximum(tolerance_K, TOLERANCE * bundle.cohorts.scale_CK.max(axis=0))
    for columns, logit_NC in logits:
        expected_NC = cohort_prob(logit_NC, calibrations[columns], bundle.cohorts, number_N, columns=columns)
        diff_C = np.abs(expected_NC - prob_NK[:, columns]).max(axis=0)
        largest = max(largest, float(diff_C.max()))
        wrong += [bundle.taxonomy[columns.start + int(c)].id for c in np.flatnonzero(diff_C > tolerance_K[columns])]
    if wrong:
        log.warning("the fused graph differs from the heads by up to %.1e, for %d heads (%r first)", largest, len(wrong), wrong[0])
    return largest


def _counts(bundle: ModelBundle) -> tuple[NDArray[np.int64], int, NDArray[np.bool_]]:
    """Return the positive training rows of each class (K,), the number of training rows, and which classes were small."""
    num_heads = len(bundle.heads)
    card = read_json(bundle.path / CARD) if (bundle.path / CARD).is_file() else {}
    num_rows = int(card.get("splits", {}).get("train", {}).get("rows", 0))
    if (bundle.path / CLASSES).is_file():
        with np.load(bundle.path / CLASSES, allow_pickle=False) as arrays:
            return arrays["train_positives"], num_rows, arrays["small"]
    if "classes" in card:  # those of training: heads that came later have rows of their own
        rows = {row["class_id"]: row for row in card["classes"]}
        known = [rows.get(class_id, {"train_positives": 0, "small": False}) for class_id in bundle.taxonomy.ids]
        return np.array([row["train_positives"] for row in known]), num_rows, np.array([row["small"] for row in known], np.bool_)
    return np.zeros(num_heads, np.int64), num_rows, np.zeros(num_heads, np.bool_)


def _rows(bundle: ModelBundle, figures: Figures) -> list[dict[str, Any]]:
    return [{"class_id": spec.id, "name": spec.name, **figures_of(figures, column)} for column, spec in enumerate(bundle.taxonomy)]


def _without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if not any(f"{name}_".startswith(f"{each}_") for each in names)}
    if "classes" in kept:
        kept["classes"] = [_without(row, names) for row in kept["classes"]]
    return kept
