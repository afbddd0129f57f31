"""What looks wrong with labelled rows: too few of a class, rows in two splits, labels that contradict each other or are likely
wrong, rows that are almost equal. Knows splits; trains nothing that is kept.

Rows that are equal to the model are found among all rows. The rest looks at `max_rows` of them at most, drawn at random, as vectors
(see `ovr.data.sketch`): confident learning on out-of-fold probabilities of logistic regressions, one head a class at its
optimum (of up to `MAX_WAVE_VALUES` values a row with random features of a Gaussian kernel), and each row's nearest earlier one.

N = all rows, M = rows looked at, K = classes
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.data.entries import Entries
from ovr.data.labels import Labels
from ovr.data.leakage import Leakage, find_leakage, row_digests
from ovr.data.near_duplicates import nearest_before
from ovr.data.sketch import TOKEN_KINDS, WIDTH, token_sketch, value_sketch, with_waves
from ovr.data.splits import SPLIT_NAMES, Splits
from ovr.data.support import small_classes
from ovr.errors import ConfigError
from ovr.metric.classification import average_precision
from ovr.metric.label_errors import each_class_errors, one_class_errors
from ovr.training.out_of_fold import out_of_fold

log = logging.getLogger(__name__)

I64 = NDArray[np.int64]

MAX_PROBS = 1 << 27  # rows times classes of out-of-fold probabilities: 0.5 GB
TOKEN_C, VALUE_C = 10.0 / WIDTH, 0.1  # inverse penalties, of values whose mean square is 1; the first is 10 for rows of length 1
MAX_WAVE_VALUES = 256  # of a row to which random features are added: of wider ones linear heads make something


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one row; `score` is the sort key of its kind.

    - label_error: `score` is the out-of-fold probability that `given` is right; of rows with several labels "not ID" is one too.
    - conflict: an equal row (`other`) has other labels.
    - near_duplicate: `score` is the cosine with `other` (tokens), or the root mean square difference in standard deviations.
    """

    kind: str
    row: int  # of all rows, split after split
    score: float
    given: str
    suggested: str
    other: int | None


@dataclass(frozen=True, slots=True)
class DataReport:
    """Counts of each class (K,) by name, findings (each kind's surest first), and what they were made from."""

    classes: Mapping[str, NDArray[Any]]
    findings: tuple[Finding, ...]
    leakage: Leakage
    num_rows: int
    num_looked_at: int
    split_N: NDArray[np.int8]  # of each row, a place in SPLIT_NAMES
    number_N: I64  # of each row in its split


def check_data(
    splits: Splits,
    *,
    min_positives: Mapping[str, int],
    folds: int,
    max_rows: int,
    min_cosine: float,
    max_difference: float,
    seed: int,
) -> DataReport:
    """Return what looks wrong.

    Args:
        min_positives: rows of a class, by split.
        folds: of the cross-validation.
        max_rows: looked at for likely errors and near-duplicates.
        min_cosine: of near-duplicate rows of tokens.
        max_difference: of other near-duplicate rows: the root mean square over their values, in standard deviations.

    Raises:
        ConfigError: a setting out of range.
    """
    _check(folds=folds, max_rows=max_rows, min_cosine=min_cosine, max_difference=max_difference, seed=seed)
    small_K = small_classes(splits, min_positives=min_positives)
    parts = [getattr(splits, name) for name in SPLIT_NAMES]
    labels = _joined([rows.labels for rows in parts])
    log.info("comparing %d rows", len(labels))
    group_N = np.unique(np.concatenate([row_digests(rows.x) for rows in parts]), return_inverse=True)[1].astype(np.int64)
    split_N = np.repeat(np.arange(4, dtype=np.int8), [len(rows) for rows in parts])
    number_N = np.concatenate([np.arange(len(rows)) for rows in parts])

    rng = np.random.default_rng(seed)
    looked_M = np.sort(rng.permutation(len(labels))[:max_rows])
    taken = [(rows.x, number_N[looked_M[split_N[looked_M] == s]]) for s, rows in enumerate(parts)]
    taken = [(x, number_B) for x, number_B in taken if len(number_B)]
    is_tokens = splits.input.raw_kind in TOKEN_KINDS
    sketch_MD = token_sketch(taken) if is_tokens else value_sketch(taken)
    group_M = np.unique(group_N[looked_M], return_inverse=True)[1].astype(np.int64)
    some = labels.take(looked_M)
    ids = splits.taxonomy.ids

    log.info("likely label errors among %d rows, %d folds", len(looked_M), folds)
    with_random = not is_tokens and sketch_MD.shape[1] <= MAX_WAVE_VALUES
    feature_MD = with_waves(sketch_MD, seed=seed) if with_random else sketch_MD
    ap_K, errors = _label_errors(feature_MD, some, group_M, ids, folds=folds, C=TOKEN_C if is_tokens else VALUE_C, seed=seed)
    log.info("near-duplicates among %d rows", len(looked_M))
    if is_tokens:
        near = nearest_before(sketch_MD, group_M, max_distance=float(np.sqrt(2 - 2 * min_cosine)))
        score_I = 1 - near[2] ** 2 / 2
        order_I = np.argsort(-score_I, kind="stable")
    else:
        root = float(np.sqrt(sketch_MD.shape[1]))
        near = nearest_before(sketch_MD, group_M, max_distance=max_difference * root)
        score_I = near[2] / root
        order_I = np.argsort(score_I, kind="stable")
    pairs = [
        Finding("near_duplicate", int(row), float(score), _names(labels, row, ids), _names(labels, other, ids), int(other))
        for row, other, score in zip(looked_M[near[0][order_I]], looked_M[near[1][order_I]], score_I[order_I], strict=True)
    ]
    conflicts = _conflicts(labels, group_N, ids)
    findings = (*(Finding(**{**error, "row": int(looked_M[error["row"]])}) for error in errors), *conflicts, *pairs)
    classes: dict[str, NDArray[Any]] = {name: rows.labels.num_positives_K() for name, rows in zip(SPLIT_NAMES, parts, strict=True)}
    classes["small"] = small_K
    classes["average_precision"] = ap_K
    for kind in ("label_error", "conflict", "near_duplicate"):
        classes[kind] = _count(labels, [finding for finding in findings if finding.kind == kind], splits)
    return DataReport(classes, findings, find_leakage(splits), len(labels), len(looked_M), split_N, number_N)


def _label_errors(
    sketch_MD: NDArray[np.float32], labels: Labels, group_M: I64, ids: tuple[str, ...], *, folds: int, C: float, seed: int
) -> tuple[NDArray[np.float64], list[dict[str, Any]]]:
    """Return the average precision of each class (K,) out of fold, and the likely errors."""
    if len(labels) * labels.num_heads > MAX_PROBS:
        most = MAX_PROBS // labels.num_heads
        raise ConfigError(
            f"max_rows={len(labels)} are too many to look at with {labels.num_heads} classes; expected at most {most}"
        )
    prob_MK = out_of_fold(sketch_MD, labels, group_M, num_folds=folds, C=C, seed=seed)
    target_MK, mask_MK = labels.dense()
    ap_K = average_precision(prob_MK, target_MK, mask_MK)
    if labels.num_heads > 1 and mask_MK.all() and (target_MK.sum(axis=1) == 1).all():
        sum_M1 = prob_MK.sum(axis=1, keepdims=True, dtype=np.float64)
        found = one_class_errors(prob_MK / np.maximum(sum_M1, 1e-300), target_MK.argmax(axis=1))
        return ap_K, [
            {"kind": "label_error", "row": row, "score": prob, "given": ids[given], "suggested": ids[suggested], "other": None}
            for row, given, suggested, prob in zip(
                found.row_I.tolist(), found.given_I.tolist(), found.suggested_I.tolist(), found.prob_I.tolist(), strict=True
            )
        ]
    errors: list[dict[str, Any]] = []
    for class_id, each in zip(ids, each_class_errors(prob_MK, target_MK, mask_MK), strict=True):
        for row, given, prob in zip(each.row_I.tolist(), each.given_I.tolist(), each.prob_I.tolist(), strict=True):
            names = (f"not {class_id}", class_id)
            errors.append(
                {
                    "kind": "label_error",
                    "row": row,
                    "score": prob,
                    "given": names[given],
                    "suggested": names[1 - given],
                    "other": None,
                }
            )
    return ap_K, sorted(errors, key=lambda error: float(error["score"]))


def _conflicts(labels: Labels, group_N: I64, ids: tuple[str, ...]) -> list[Finding]:
    """Return the rows with an equal row of other labels, each with the first of those."""
    findings = []
    order_N = np.argsort(group_N, kind="stable")
    start_G = np.flatnonzero(np.diff(group_N[order_N], prepend=-1))
    for group in np.split(order_N, start_G[1:]):
        if len(group) == 1:
            continue
        names = [_names(labels, row, ids) for row in group]
        if len(set(names)) > 1:
            for row, name in zip(group.tolist(), names, strict=True):
                other = next(n for n, theirs in enumerate(names) if theirs != name)
                findings.append(Finding("conflict", row, 0.0, name, names[other], int(group[other])))
    return sorted(findings, key=lambda finding: finding.row)


def _count(labels: Labels, findings: list[Finding], splits: Splits) -> I64:
    """Return how many findings (K,) are of rows that have the class, or are suggested to."""
    count_K = np.zeros(labels.num_heads, np.int64)
    column = {class_id: k for k, class_id in enumerate(splits.taxonomy.ids)}
    for finding in findings:
        if finding.kind == "label_error":
            given = finding.given if finding.given in column else finding.suggested
            count_K[column[given]] += 1
        else:
            count_K[labels.positives.of_rows(np.array([finding.row]))[1]] += 1
    return count_K


def _names(labels: Labels, row: Any, ids: tuple[str, ...]) -> str:
    return " | ".join(ids[k] for k in labels.positives.of_rows(np.array([int(row)]))[1])


def _joined(parts: list[Labels]) -> Labels:
    def join(entries: list[Entries]) -> Entries:
        num_E = np.concatenate([np.diff(each.start_N1) for each in entries])
        return Entries(np.concatenate([[0], np.cumsum(num_E)]).astype(np.int64), np.concatenate([e.column_P for e in entries]))

    return Labels(join([each.positives for each in parts]), join([each.unknowns for each in parts]), parts[0].num_heads)


def _check(*, folds: Any, max_rows: Any, min_cosine: Any, max_difference: Any, seed: Any) -> None:
    for name, value, least in (("folds", folds, 2), ("max_rows", max_rows, 10), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    for name, value, most in (("min_cosine", min_cosine, 1.0), ("max_difference", max_difference, float("inf"))):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise ConfigError(f"{name} must be a number from 0 to {most:g}, got {value!r}")
