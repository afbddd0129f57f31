"""The part of a report that tells of cohorts: figures of each, class by class, and the gaps. Knows class ids as names only.

N = rows, K = heads, C = heads of one block, A = cohorts
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.heads import figures_of, plain
from ovr.errors import DataError
from ovr.metric.binned import ece
from ovr.metric.bins import bin_sums
from ovr.metric.calibration_bound import ece_interval
from ovr.metric.figures import ends
from ovr.metric.slices import Slices, gap_intervals, gaps, joined, slices

MAX_COHORTS = 50  # of a column that are told of: those with most rows

Columns = Mapping[str, NDArray[Any]]  # name of a cohort column -> (N,)


class CohortFigures:
    """Collects the figures of the cohorts of some columns, block by block of heads."""

    def __init__(self, cohorts: Columns, *, num_rows: int) -> None:
        """Take the cohort of each row in each column.

        Raises:
            DataError: a column that has not one value a row.
        """
        self._cohorts: dict[str, tuple[NDArray[np.str_], tuple[str, ...], int]] = {}
        for column, cohort_N in cohorts.items():
            cohort_N = np.asarray(cohort_N).astype(np.str_)
            if cohort_N.shape != (num_rows,):
                raise DataError(f"cohort column {column!r} has shape {cohort_N.shape}; expected ({num_rows},), one value a row")
            name_A, count_A = np.unique(cohort_N, return_counts=True)
            kept = sorted(name_A[np.argsort(-count_A, kind="stable")[:MAX_COHORTS]].tolist())
            self._cohorts[column] = cohort_N, tuple(kept), len(name_A) - len(kept)
        self._slices: dict[str, list[Slices]] = {column: [] for column in cohorts}
        self._errors: dict[str, list[NDArray[np.float64]]] = {column: [] for column in cohorts}

    def update(self, label_NC: Any, prob_NC: Any, target_NC: Any, mask_NC: Any) -> None:
        """Take the next heads, in column order.

        Raises:
            DataError: what `slices` refuses.
        """
        for column, (cohort_N, names, _) in self._cohorts.items():
            rows = np.flatnonzero(np.isin(cohort_N, names))
            kept = [array_NC[rows] for array_NC in (label_NC, prob_NC, target_NC, mask_NC)]
            self._slices[column].append(slices(*kept, cohort_N=cohort_N[rows]))
            errors = []
            for name in names:
                sums = bin_sums(*(array_NC[cohort_N == name] for array_NC in (prob_NC, target_NC, mask_NC)))
                errors.append(np.stack([ece(sums), *ece_interval(sums)]))
            self._errors[column].append(np.stack(errors) if errors else np.zeros((0, 3, label_NC.shape[1])))

    def report(self, class_ids: Sequence[str]) -> dict[str, Any]:
        """Return a dictionary a column: cohorts with figures a class, gaps a class, and how many cohorts are left out."""
        return {column: self._column(column, class_ids) for column in self._cohorts}

    def _column(self, column: str, class_ids: Sequence[str]) -> dict[str, Any]:
        found, error_A3K = joined(self._slices[column]), np.concatenate(self._errors[column], axis=2)
        shares = found.shares()
        figures = {
            "rows": found.counts.num_rows_K,
            "positives": found.counts.num_positives_K,
            "decided": found.counts.num_decided_K,
            **{name: share[0] for name, share in shares.items()},
            "share_of_positives": found.share_AK,
            "mean_prob": found.mean_prob_AK,
            "ece": error_A3K[:, 0],
            **ends({name: (share[1], share[2]) for name, share in shares.items()}),
            **ends({"ece": (error_A3K[:, 1], error_A3K[:, 2])}),
        }
        gap = gaps(found)
        gap_figures = {name.removesuffix("_K"): getattr(gap, name) for name in type(gap).__slots__}
        gap_figures |= ends(gap_intervals(found))
        return {
            "cohorts": [
                {
                    "cohort": name,
                    "classes": [
                        {"class_id": class_id, **{figure: plain(value_AK[a, k]) for figure, value_AK in figures.items()}}
                        for k, class_id in enumerate(class_ids)
                    ],
                }
                for a, name in enumerate(found.names)
            ],
            "gaps": [{"class_id": class_id, **figures_of(gap_figures, k)} for k, class_id in enumerate(class_ids)],
            "num_left_out": self._cohorts[column][2],
        }
