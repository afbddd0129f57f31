"""How often decisions are wrong when the least certain rows are left out. Knows nothing of how a row is decided.

N = rows, P = points
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.targets import check_targets

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """One point for each confidence that a row has, by falling confidence: what is decided if all rows from there on are."""

    confidence_P: F64
    coverage_P: F64  # share of the rows that are decided on; the last is 1
    risk_P: F64  # share of those that are wrong
    aurc: float  # area under the curve: the mean risk over all coverages 1/N, 2/N, ..., 1; NaN without rows

    def risk_at(self, coverage: float) -> float:
        """Return the risk with the smallest coverage on the curve that is at least `coverage`; NaN without rows."""
        return float(self.risk_P[np.searchsorted(self.coverage_P, coverage - 1e-12)]) if len(self.risk_P) else float("nan")


def risk_coverage(confidence_N: Any, right_N: Any, known_N: Any) -> RiskCoverage:
    """Return the curve of the rows of which it is known whether they are right (El-Yaniv & Wiener 2010).

    The area is that of Geifman et al. (2019, "Bias-reduced uncertainty estimation"): the mean over n of the risk of the n most
    certain rows; among rows of equal confidence, the mean over their orders.

    Args:
        confidence_N: finite, the higher the surer.
        right_N, known_N: bool or 0 and 1.

    Raises:
        DataError: confidences that are not finite, shapes that differ, or entries other than 0 and 1.
    """
    columns = (np.asarray(values)[:, None] for values in (confidence_N, right_N, known_N))
    confidence_N1, right_N1, known_N1 = check_targets(*columns, score_name="confidence")
    confidence_N, right_N = confidence_N1[known_N1].astype(np.float64), right_N1[known_N1]
    order = np.argsort(-confidence_N)
    confidence_N, wrong_N = confidence_N[order], ~right_N[order]
    num_rows = len(wrong_N)
    if not num_rows:
        return RiskCoverage(np.empty(0), np.empty(0), np.empty(0), float("nan"))
    last_P = np.flatnonzero(np.append(confidence_N[1:] != confidence_N[:-1], True))
    wrong_P, taken_P = np.cumsum(wrong_N)[last_P], last_P + 1
    # Within a run of equal confidences the wrong rows rise evenly, on average over the orders.
    expected_N = np.interp(np.arange(1, num_rows + 1), np.concatenate([[0], taken_P]), np.concatenate([[0], wrong_P]))
    aurc = float((expected_N / np.arange(1, num_rows + 1)).mean())
    return RiskCoverage(confidence_N[last_P], taken_P / num_rows, wrong_P / taken_P, aurc)
