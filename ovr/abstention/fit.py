"""The abstention limit of a model, fitted on calibration rows of all its heads. Knows no files.

N = rows, K = heads, C = heads of one block
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import DecisionPolicy
from ovr.core.thresholds import OK, Thresholds
from ovr.core.top import RunningTop
from ovr.decision.decide import labels_decided
from ovr.metric.classification import RowAccuracy

log = logging.getLogger(__name__)

CONSTANT = "constant"  # the status of a limit that was given, not fitted
ProbBlocks = Iterable[tuple[slice, NDArray[np.float32]]]  # columns and probabilities (N, C) of all heads, more than once


class AbstentionRule(Protocol):
    """Chooses the one limit below which a row gets no class, from each row's highest probability (N,) float32 and whether all that
    is decided on it is right (N,), which is known where `known_N`."""

    def fit(self, highest_N: NDArray[Any], right_N: NDArray[np.bool_], known_N: NDArray[np.bool_]) -> Thresholds: ...


class ColumnLabels(Protocol):
    """Labels that are given for some classes at a time."""

    def columns(self, columns: slice) -> tuple[NDArray[Any], NDArray[Any]]: ...


def fit_abstention(
    rule: AbstentionRule,
    blocks: ProbBlocks,
    labels: ColumnLabels,
    *,
    num_rows: int,
    threshold_K: NDArray[np.float64],
    policy: DecisionPolicy,
    doubt: str | None = None,
) -> tuple[DecisionPolicy, str]:
    """Return the policy with the limit that the rule finds for what is decided without one, and the limit's status.

    A row is right if all its classes are known and each is decided rightly. `doubt` is said of a limit in place of `OK`: see
    `limit_in_doubt`.
    """
    top, rows = RunningTop(num_rows), RowAccuracy(num_rows)
    for columns, prob_NC in blocks:
        top.update(prob_NC, first_column=columns.start)
    for columns, prob_NC in blocks:
        label_NC = labels_decided(
            prob_NC,
            first_column=columns.start,
            top_B=top.column_N,
            abstained_B=np.zeros(num_rows, np.bool_),
            threshold_C=threshold_K[columns].astype(np.float32),
            policy=policy,
        )
        rows.update(label_NC, *labels.columns(columns))
    found = Thresholds.of(rule.fit(top.score_N, *rows.rows()))
    limit, status = float(found.threshold_K[0]), found.status_K[0]
    status = doubt if doubt is not None and status == OK else status
    log.log(logging.INFO if status == OK else logging.WARNING, "abstain_below=%.4f: %s", limit, status)
    return replace(policy, abstain_below=limit), status
