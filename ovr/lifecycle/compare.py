"""Two bundles on the same rows: the one in use and one that may replace it, class by class, with paired tests.

N = rows, K = heads
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.bundle import ModelBundle
from ovr.core.files import canonical_json, place, staged_directory
from ovr.core.heads import plain
from ovr.decision.decide import decide
from ovr.errors import ArtifactError, DataError
from ovr.lifecycle.evaluate import Evaluation, evaluate_bundle
from ovr.lifecycle.rows import NewRows
from ovr.metric.compare import Comparison, compare
from ovr.metric.intervals import CONFIDENCE
from ovr.metric.tables import csv_text, lines

VERDICTS = ("better", "same", "worse")
FIGURES = ("f1", "ece_after")  # of each bundle's own evaluation, told beside what is tested


@dataclass(frozen=True, slots=True)
class BundleComparison:
    """What two bundles differ in, in the order of the first one's classes; `report` holds all of it in plain values."""

    first: Evaluation
    second: Evaluation
    comparison: Comparison
    report: dict[str, Any]


def check_comparable(first: ModelBundle, second: ModelBundle) -> None:
    """Raise ArtifactError unless the bundles have the same classes, in whatever order, and each a file a head."""
    for bundle in (first, second):
        if bundle.shards or not bundle.has_fused:
            raise ArtifactError(
                f"bundle {bundle.path} keeps its {len(bundle.heads)} heads in shards; compared are bundles with a file a head: "
                "evaluate each with `ovr evaluate`"
            )
    ours, theirs = set(first.taxonomy.ids), set(second.taxonomy.ids)
    if ours != theirs:
        sides = [(first.path, sorted(ours - theirs)), (second.path, sorted(theirs - ours))]
        told = "; ".join(f"{path} alone has {', '.join(map(repr, ids[:5]))}" for path, ids in sides if ids)
        raise ArtifactError(f"bundles of other classes cannot be compared: {told}")


def compare_bundles(
    first: ModelBundle,
    second: ModelBundle,
    rows_first: NewRows,
    rows_second: NewRows,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    num_threads: int = 1,
) -> BundleComparison:
    """Return what differs between the bundle in use, `first`, and one that may replace it.

    Args:
        rows_first, rows_second: the same rows, read for each bundle, as encoders and order of classes may differ.
        confidence: that no class is called better or worse by chance (see `ovr.metric.compare`).
        seed: of the bootstrap's draws.

    Raises:
        ArtifactError: as `check_comparable`.
        ConfigError: a confidence that is none.
        DataError: the rows are not the same in number or labels.
    """
    check_comparable(first, second)
    order_K = np.array([second.taxonomy.column(class_id) for class_id in first.taxonomy.ids])
    target_NK, mask_NK = rows_first.rows.labels.dense()
    other_target_NK, other_mask_NK = rows_second.rows.labels.dense()
    if target_NK.shape != other_target_NK.shape:
        raise DataError(f"the bundles are given {len(target_NK)} and {len(other_target_NK)} rows; expected the same rows")
    wrong_N = ((target_NK != other_target_NK[:, order_K]) | (mask_NK != other_mask_NK[:, order_K])).any(axis=1)
    if wrong_N.any():
        raise DataError(f"row {int(np.argmax(wrong_N))} has other labels for the second bundle; expected the same rows")
    made = [evaluate_bundle(bundle, rows, num_threads=num_threads) for bundle, rows in ((first, rows_first), (second, rows_second))]
    prob = [_prob(evaluation) for evaluation in made]
    label = [
        decide(prob_NK, threshold_K=bundle.card.thresholds, policy=bundle.policy).label_BK
        for prob_NK, bundle in zip(prob, (first, second), strict=True)
    ]
    found = compare(
        prob[0],
        prob[1][:, order_K],
        label[0],
        label[1][:, order_K],
        target_NK,
        mask_NK,
        confidence=confidence,
        seed=seed,
    )
    report = {
        "num_rows": len(target_NK),
        "confidence": confidence,
        "data": rows_first.record,
        "first": _summary(first, made[0]),
        "second": _summary(second, made[1]),
        "verdicts": {verdict: int((found.verdict_K == verdict).sum()) for verdict in VERDICTS},
        "classes": [_line(first, k, found, made, order_K) for k in range(len(order_K))],
    }
    return BundleComparison(made[0], made[1], found, report)


def write_comparison(out: Path, comparison: BundleComparison) -> None:
    """Write comparison.json and classes.csv (a line a class) into a new directory.

    Raises:
        ArtifactError: `out` exists.
    """
    with staged_directory(out) as staging:
        text = csv_text(lines(comparison.report["classes"]))
        place(staging, {"comparison.json": canonical_json(comparison.report), "classes.csv": text.encode()})


def _prob(evaluation: Evaluation) -> NDArray[np.float32]:
    assert evaluation.prob_NK is not None  # both bundles have a fused graph
    return evaluation.prob_NK


def _summary(bundle: ModelBundle, evaluation: Evaluation) -> dict[str, Any]:
    return {"bundle_sha256": bundle.bundle_sha256, **{k: v for k, v in evaluation.report.items() if k not in ("classes", "data")}}


def _line(bundle: ModelBundle, k: int, found: Comparison, made: list[Evaluation], order_K: NDArray[np.int64]) -> dict[str, Any]:
    spec = bundle.taxonomy[k]
    line: dict[str, Any] = {
        "class_id": spec.id,
        "name": spec.name,
        "verdict": str(found.verdict_K[k]),
        "positives": int(made[0].labels.num_positives_K()[k]),
        "first_only_right": int(found.first_only_K[k]),
        "second_only_right": int(found.second_only_K[k]),
        "decision_p": plain(found.decision_p_K[k]),
        "nll_p": plain(found.nll_p_K[k]),
    }
    for name in ("nll", "brier", "average_precision"):
        figure = getattr(found, name)
        line |= {f"{name}_first": plain(figure.first_K[k]), f"{name}_second": plain(figure.second_K[k])}
        line |= {f"{name}_difference_low": plain(figure.low_K[k]), f"{name}_difference_high": plain(figure.high_K[k])}
    for name in FIGURES:
        first, second = (evaluation.figures[name] for evaluation in made)
        line |= {f"{name}_first": plain(first[k]), f"{name}_second": plain(second[order_K[k]])}
    return line
