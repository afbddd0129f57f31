"""Everything that a report tells, as plain values: what the page shows and report.json holds. Knows nothing of HTML.

N = rows, K = heads, G = bins, P = points of a curve
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.abstention.fit import CONSTANT
from ovr.core import scale
from ovr.core.artifact import DecisionPolicy
from ovr.core.targets import check_probs
from ovr.core.taxonomy import Taxonomy
from ovr.core.thresholds import NOT_PROMISED, OK
from ovr.errors import DataError
from ovr.metric.calibration import top_label
from ovr.metric.curves import Reliability, precision_recall, reliability
from ovr.metric.risk_coverage import risk_coverage
from ovr.report.mistakes import Confused, Example, confused, decisions, thinned, worst_examples
from ovr.report.parts import CONFUSED_PAIRS, pairs_of

SCHEMA_VERSION = 1
ALL_DETAILED = 12  # up to so many heads, each has its own charts
LOWEST, LEAST_CALIBRATED = 8, 4  # of more heads: those with the lowest average precision, then those with the largest ECE
ROWS_A_POSITIVE, LEAST_ROWS = 10, 300  # that reliability plots are drawn of
MAX_PAIRS = 30  # confused pairs that are listed
MAX_CONFUSED = 24  # classes of the heat map
MAX_EXAMPLES = 24
MAX_POINTS = 200  # of a precision-recall curve
MAX_NAMED = 8  # classes of a remark
COVERAGES = (0.5, 0.8, 0.9, 0.95)  # whose risk is told of

F64 = NDArray[np.float64]
RowOf = Callable[[int], Any]  # number of a row -> what the user has for it


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision and recall of one head at falling recall."""

    threshold_P: F64
    precision_P: F64
    recall_P: F64


@dataclass(frozen=True, slots=True)
class Contents:
    """What a report is made from; all that needs probabilities is None where there were none."""

    taxonomy: Taxonomy
    policy: DecisionPolicy | None
    summary: dict[str, Any]
    classes: list[dict[str, Any]]  # of all classes, or of the worst of very many
    parts: dict[str, Any]  # what else the report dictionary holds
    num_rows: int | None = None
    detailed: tuple[int, ...] = ()  # columns
    reliability: Reliability | None = None  # of all rows: what the calibration error is made of
    upper: Reliability | None = None  # of the rows that `likely_rows` keeps: what is drawn
    top_label: Reliability | None = None
    share_K: F64 | None = None  # of positives among the known rows
    curves: Mapping[int, Curve] = field(default_factory=dict)
    confused: Confused | None = None
    risk_coverage: tuple[F64, ...] | None = None  # coverage, risk and confidence (P,) of the most probable class
    risk_at: Mapping[float, float] = field(default_factory=dict)  # coverage -> risk
    examples: Sequence[Example] = ()
    rows: RowOf | None = None
    row_number_N: NDArray[np.int64] | None = None
    data_card: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)  # which rows these are and when they were measured

    def to_json(self) -> dict[str, Any]:
        """Return what docs/report.md describes; figures that are not defined are None."""
        ids = self.taxonomy.ids
        value: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "num_classes": len(ids),
            "num_rows": self.num_rows,
            "decision": None if self.policy is None else {"mode": self.policy.mode, "abstain_below": self.policy.abstain_below},
            "summary": self.summary,
            "classes": self.classes,
            **{name: part for name, part in self.parts.items() if name not in RESERVED},
            "data_card": dict(self.data_card),
            "provenance": dict(self.provenance),
            "measured": dict(self.measured),
            "remarks": self.remarks(),
        }
        if self.reliability is not None and self.top_label is not None:
            value["reliability"] = [{"class_id": ids[k], **bins(self.reliability, k)} for k in range(len(ids))]
            value["top_label_reliability"] = bins(self.top_label, 0)
        value["precision_recall"] = [
            {
                "class_id": ids[k],
                "threshold": plain(curve.threshold_P),
                "precision": plain(curve.precision_P),
                "recall": plain(curve.recall_P),
            }
            for k, curve in self.curves.items()
        ]
        if self.confused is not None:
            value["confused"] = self.pairs()
        if self.risk_coverage is not None:
            value["risk_coverage"] = dict(zip(("coverage", "risk", "confidence"), map(plain, self.risk_coverage), strict=True))
            value["risk_at"] = [{"coverage": coverage, "risk": float(f"{risk:.6g}")} for coverage, risk in self.risk_at.items()]
        value["examples"] = [self.example(example) for example in self.examples]
        return value

    def pairs(self) -> list[dict[str, Any]]:
        """Return the most confused pairs: given class, the class decided on instead, rows, and their share of the given class."""
        told = pairs_of(self.parts.get(CONFUSED_PAIRS))
        if told is not None:
            return [
                {"given": row["class_id"], "decided": row["decided_id"], "rows": row["rows"], "share_of_given": row["share"]}
                for row in told[:MAX_PAIRS]
            ]
        if self.confused is None:
            return []
        ids, num_given_K, top = self.taxonomy.ids, self.confused.num_given_K, self.confused.instead.top(MAX_PAIRS)
        return [
            {"given": ids[given], "decided": ids[taken], "rows": count, "share_of_given": count / int(num_given_K[given])}
            for given, taken, count in zip(top.true_P.tolist(), top.decided_P.tolist(), top.count_P.tolist(), strict=True)
        ]

    def remarks(self) -> list[dict[str, Any]]:
        """Return what should be known before the figures are believed: `about` what, its `status`, and of how many classes and
        which first, where it is one of classes."""
        found: dict[tuple[str, str], list[str]] = {}
        for row in self.classes:
            for about in ("calibration_status", "threshold_status"):
                status = str(row.get(about) or OK).partition(":")[0]
                if status != OK:
                    found.setdefault((about, status), []).append(row["class_id"])
            if row.get("positives") == 0:
                found.setdefault(("positives", "none"), []).append(row["class_id"])
        num = {
            ("threshold_status", NOT_PROMISED): self.summary.get("num_unpromised_thresholds", 0)
        }  # of all, where some are told of
        if num["threshold_status", NOT_PROMISED]:
            found.setdefault(("threshold_status", NOT_PROMISED), [])
        remarks: list[dict[str, Any]] = [
            {
                "about": about,
                "status": status,
                "num_classes": max(len(ids), num.get((about, status), 0)),
                "class_ids": ids[:MAX_NAMED],
            }
            for (about, status), ids in sorted(found.items())
        ]
        limit, said = self.summary.get("abstain_below"), self.summary.get("abstention_status")
        if limit or said not in (None, CONSTANT):
            remarks.append({"about": "abstention_status", "status": said, "abstain_below": limit})
        return remarks

    def example(self, example: Example) -> dict[str, Any]:
        """Return an example by class ids."""
        ids = self.taxonomy.ids
        return {
            "row": example.row,
            "source_row": None if self.row_number_N is None else int(self.row_number_N[example.row]),
            "given": [ids[k] for k in example.given],
            "decided": [ids[k] for k in example.decided],
            "worst_class": ids[example.column],
            "prob_of_truth": example.prob,
            "top": [{"class": ids[k], "prob": prob} for k, prob in example.top],
        }


RESERVED = frozenset(Contents.__slots__) | {
    "schema_version",
    "num_classes",
    "decision",
    "precision_recall",
    "top_label_reliability",
    "remarks",
}


def contents(
    *,
    report: Mapping[str, Any],
    taxonomy: Taxonomy,
    prob_NK: Any,
    target_NK: Any,
    mask_NK: Any,
    policy: DecisionPolicy | None,
    rows: Sequence[Any] | RowOf | None,
    row_number_N: NDArray[np.int64] | None,
    data_card: Mapping[str, Any] | None,
    provenance: Mapping[str, Any] | None,
    measured: Mapping[str, Any] | None,
) -> Contents:
    """Return all of a report.

    Raises:
        DataError: as `write_report`.
    """
    classes = [dict(row) for row in report.get("classes", ())]
    if unknown := [row.get("class_id") for row in classes if row.get("class_id") not in set(taxonomy.ids)]:
        raise DataError(
            f"the report has figures of classes {unknown[:5]}, which are not in the taxonomy of {len(taxonomy)} classes"
        )
    summary = {name: value for name, value in report.items() if not isinstance(value, list | tuple | dict)}
    common: dict[str, Any] = {
        "taxonomy": taxonomy,
        "policy": policy,
        "summary": summary,
        "classes": classes,
        "parts": {name: value for name, value in report.items() if name not in summary and name != "classes"},
        "data_card": data_card or {},
        "provenance": provenance or {},
        "measured": measured or {},
    }
    given = [array is not None for array in (prob_NK, target_NK, mask_NK)]
    if not all(given) or len(taxonomy) >= scale.LARGE_K:
        if any(given) and not all(given):
            raise DataError("the report was given some of prob_NK, target_NK and mask_NK; expected all three, or none")
        return Contents(**common)
    prob_NK, target_NK, mask_NK = check_probs(prob_NK, target_NK, mask_NK)
    num_rows, num_heads = prob_NK.shape
    if num_heads != len(taxonomy):
        raise DataError(f"probabilities have {num_heads} columns; the taxonomy has {len(taxonomy)} classes")
    if rows is not None and not callable(rows) and len(rows) != num_rows:
        raise DataError(f"{len(rows)} rows were given with probabilities of {num_rows}; expected as many")
    if row_number_N is not None and len(row_number_N) != num_rows:
        raise DataError(f"{len(row_number_N)} row numbers were given with probabilities of {num_rows} rows; expected as many")
    threshold_K = np.full(num_heads, 0.5)
    for row in classes:
        if row.get("threshold") is not None:
            threshold_K[taxonomy.column(row["class_id"])] = row["threshold"]
    decided_NK = decisions(prob_NK, threshold_K, policy or DecisionPolicy())
    confidence_N1, right_N1, known_N1 = top_label(prob_NK, target_NK, mask_NK)
    curve = risk_coverage(confidence_N1[:, 0], right_N1[:, 0], known_N1[:, 0])
    kept_P = thinned(len(curve.coverage_P), MAX_POINTS)
    detailed = _detailed(classes, taxonomy)
    known_K = mask_NK.sum(axis=0)
    columns = list(detailed)
    lines = (
        precision_recall(prob_NK[:, columns], target_NK[:, columns], mask_NK[:, columns], max_points=MAX_POINTS) if columns else []
    )
    return Contents(
        **common,
        num_rows=num_rows,
        detailed=detailed,
        reliability=reliability(prob_NK, target_NK, mask_NK),
        upper=reliability(prob_NK, target_NK, likely_rows(prob_NK, target_NK, mask_NK)),
        top_label=reliability(confidence_N1, right_N1, known_N1),
        share_K=(target_NK & mask_NK).sum(axis=0) / np.maximum(1, known_K),
        curves={k: Curve(*line) for k, line in zip(columns, lines, strict=True)},
        confused=confused(decided_NK, target_NK, mask_NK),
        risk_coverage=tuple(values_P[kept_P] for values_P in (curve.coverage_P, curve.risk_P, curve.confidence_P)),
        risk_at={coverage: curve.risk_at(coverage) for coverage in COVERAGES} if len(kept_P) else {},
        examples=worst_examples(prob_NK, decided_NK, target_NK, mask_NK, most=MAX_EXAMPLES),
        rows=rows if rows is None or callable(rows) else rows.__getitem__,
        row_number_N=row_number_N,
    )


def likely_rows(prob_NK: NDArray[Any], target_NK: NDArray[np.bool_], mask_NK: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the known rows (N, K) with the highest probabilities of each head: `ROWS_A_POSITIVE` for each positive, and ties.

    Of a class that one row in a thousand has, nearly all bins of equal mass lie at 0; these rows are those that it is about.
    """
    num_rows = len(prob_NK)
    kept_K = np.clip(ROWS_A_POSITIVE * (target_NK & mask_NK).sum(axis=0), LEAST_ROWS, num_rows)
    if num_rows <= LEAST_ROWS or (kept_K == num_rows).all():
        return mask_NK
    likely_NK = np.empty_like(mask_NK)
    for columns in scale.column_blocks(num_rows, prob_NK.shape[1]):
        known_NC = np.where(mask_NK[:, columns], prob_NK[:, columns], -1.0)
        limit_C = np.take_along_axis(np.sort(known_NC, axis=0), num_rows - kept_K[None, columns], axis=0)
        likely_NK[:, columns] = mask_NK[:, columns] & (known_NC >= limit_C)
    return likely_NK


def bins(curve: Reliability, column: int) -> dict[str, list[Any]]:
    """Return the bins of one head, without those that are absent."""
    known_G = ~np.isnan(curve.mean_prob_KG[column])
    arrays = {
        "rows": curve.count_KG,
        "mean_prob": curve.mean_prob_KG,
        "share": curve.share_KG,
        "low": curve.low_KG,
        "high": curve.high_KG,
    }
    return {name: plain(array_KG[column][known_G]) for name, array_KG in arrays.items()}


def plain(array: NDArray[Any]) -> list[Any]:
    """Return an array as a list of numbers that JSON can hold, floats with six digits; None for NaN and infinity."""
    if array.dtype.kind != "f":
        return list(array.tolist())
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in array.tolist()]


def _detailed(classes: Sequence[Mapping[str, Any]], taxonomy: Taxonomy) -> tuple[int, ...]:
    """Return the columns of the heads that have charts of their own, in the order of their charts."""
    if len(taxonomy) <= ALL_DETAILED:
        return tuple(range(len(taxonomy)))

    def ranked(figure: str, sign: int) -> list[int]:
        known = [(sign * row[figure], taxonomy.column(row["class_id"])) for row in classes if row.get(figure) is not None]
        return [column for _, column in sorted(known)]

    lowest = ranked("average_precision", 1)[:LOWEST]
    return tuple(
        dict.fromkeys([*lowest, *(k for k in ranked("ece_after", -1) if k not in lowest)][: len(lowest) + LEAST_CALIBRATED])
    )
