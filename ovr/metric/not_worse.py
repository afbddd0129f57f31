"""Is a head that is to replace another no worse than it, by more than a margin? A test of non-inferiority. Knows no policy.

Both heads' probabilities of the same rows are compared, rows that neither was fitted on, each once. Two figures have to hold:

- average precision;
- information: 1 - NLL / H, with H the entropy of the class's share of the rows: what the probabilities tell of what there is to be
  told. As average precision, it is at most 1 and asks as much of rare classes as of frequent ones, which an NLL in nats does not.

The change of each has an interval, and its lower end decides: "pass" where it is at least -margin, so that the rows show that the
head is at most that much worse; "fail" where they do not, and the upper end is below 0, so that they show that it is worse; else
"undecided", which is told with the number of rows that would do. Decisions are asked as well whether they are shown to be worse
(McNemar's test), by more than the margin for each row of the class.

The variances are those of the infinitesimal jackknife (average precision) and of the mean within rows of the class and within
others (NLL), and half a row more on either side, of the class and of others, on which the heads differ wholly (average precision),
or by a nat (NLL). So two heads that agree on all of a few rows are not taken for the same: Agresti and Min 2005 ("Simple improved
confidence intervals for comparing matched proportions"), of which this is the case where the rows tell right from wrong.

N = rows, P = rows of the class
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ConfigError, DataError
from ovr.metric.compare import mcnemar
from ovr.metric.intervals import CONFIDENCE, normal_quantile
from ovr.metric.ranking import average_precision_influence, rank_figures

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
Outcome = Literal["pass", "fail", "undecided"]

MOST_ROWS = 1e9  # times those that there are
POWER = 0.8  # with which as many rows as are said to be needed would do
LEAST_PROB = float(np.finfo(np.float32).eps)  # probabilities are served as float32


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of both heads, more being better, and the interval of second less first."""

    first: float
    second: float
    low: float
    high: float
    num_needed: int  # rows of the class, with as many others for each as here, to show it of a head that is as good

    @property
    def value(self) -> float:
        """Second less first."""
        return self.second - self.first

    def outcome(self, margin: float) -> Outcome:
        """Return what its interval says."""
        if self.low >= -margin:
            return "pass"
        return "fail" if self.high < 0 else "undecided"

    def __str__(self) -> str:
        return f"{self.second:.4f} for {self.first:.4f} ({self.low:+.4f} to {self.high:+.4f})"


@dataclass(frozen=True, slots=True)
class NotWorse:
    """What rows say of a head against the one that it is to replace."""

    margin: float
    average_precision: Change
    information: Change
    first_only: int  # rows that the first alone decides rightly
    second_only: int
    decides_worse: bool  # that is shown
    num_positives: int
    num_negatives: int

    @property
    def outcome(self) -> Outcome:
        """What the figures say together."""
        found = [change.outcome(self.margin) for change in (self.average_precision, self.information)]
        if self.decides_worse or "fail" in found:
            return "fail"
        return "undecided" if "undecided" in found else "pass"

    @property
    def estimate_within(self) -> bool:
        """Whether both figures, taken as they are, are within the margin."""
        return min(self.average_precision.value, self.information.value) >= -self.margin

    @property
    def num_needed(self) -> int:
        """About how many rows of the class would show a head that is as good to be within the margin, in 8 of 10 cases."""
        return max(self.average_precision.num_needed, self.information.num_needed)

    def __str__(self) -> str:
        return (
            f"average precision {self.average_precision}, information {self.information}, right alone on {self.second_only} rows "
            f"for {self.first_only}"
        )


def not_worse(
    prob_first_N: F64,
    prob_second_N: F64,
    label_first_N: Bools,
    label_second_N: Bools,
    target_N: Bools,
    *,
    margin: float,
    confidence: float = CONFIDENCE,
) -> NotWorse:
    """Return what rows with known labels say of the second head's probabilities (N,) and decisions against the first's.

    Raises:
        ConfigError: `margin` not above 0, `confidence` outside (0, 1).
        DataError: no row of the class, or none of others; probabilities outside [0, 1] or NaN.
    """
    if not margin > 0:
        raise ConfigError(f"margin is {margin!r}; expected above 0")
    z = normal_quantile(confidence)
    num_positives = int(target_N.sum())
    num_negatives = len(target_N) - num_positives
    if not num_positives or not num_negatives:
        raise DataError(f"two heads are compared on rows of the class and of others, got {num_positives} and {num_negatives}")
    for prob_N in (prob_first_N, prob_second_N):
        if not ((prob_N >= 0) & (prob_N <= 1)).all():
            raise DataError("probabilities are to be within 0 and 1")
    right_first_N, right_second_N = label_first_N == target_N, label_second_N == target_N
    first_only, second_only = int((right_first_N & ~right_second_N).sum()), int((right_second_N & ~right_first_N).sum())
    shown = float(mcnemar(first_only, second_only)) <= 1 - confidence
    average_precision, information = (
        _change(*figure(prob_first_N, prob_second_N, target_N), margin=margin, z=z, num_positives=num_positives)
        for figure in (_average_precision, _information)
    )
    return NotWorse(
        margin,
        average_precision,
        information,
        first_only,
        second_only,
        shown and first_only - second_only > margin * num_positives,
        num_positives,
        num_negatives,
    )


def _change(
    first: float, second: float, variance: Callable[[float], float], *, margin: float, z: float, num_positives: int
) -> Change:
    """Return the change with its interval; `variance` is that of the change with r times the rows."""
    half, value = z * math.sqrt(variance(1.0)), second - first
    allowed = (margin / (z + NormalDist().inv_cdf(POWER))) ** 2
    low, high = -math.log(MOST_ROWS), math.log(MOST_ROWS)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if variance(math.exp(middle)) > allowed else (low, middle)
    return Change(first, second, value - half, value + half, math.ceil(num_positives * math.exp(high)))


def _average_precision(prob_first_N: F64, prob_second_N: F64, target_N: Bools) -> tuple[float, float, Callable[[float], float]]:
    known_N1, columns = np.ones((len(target_N), 1), np.bool_), [prob_N[:, None] for prob_N in (prob_first_N, prob_second_N)]
    first, second = (float(rank_figures(p_N1, target_N[:, None], known_N1).average_precision_K[0]) for p_N1 in columns)
    first_N1, second_N1 = (average_precision_influence(p_N1, target_N[:, None], known_N1) for p_N1 in columns)
    noise, nums = float(((second_N1 - first_N1) ** 2).sum()), [int(some_N.sum()) for some_N in (target_N, ~target_N)]
    return first, second, lambda r: noise / r + sum(1 / (r * num + 2) ** 2 for num in nums)


def _information(prob_first_N: F64, prob_second_N: F64, target_N: Bools) -> tuple[float, float, Callable[[float], float]]:
    share = target_N.mean()
    entropy = float(-share * np.log(share) - (1 - share) * np.log1p(-share))
    first_N, second_N = (_nll(prob_N, target_N) for prob_N in (prob_first_N, prob_second_N))
    gap_N, noise = second_N - first_N, 0.0
    for some_N in (target_N, ~target_N):
        num = int(some_N.sum())
        noise += float(((gap_N[some_N] - gap_N[some_N].mean()) ** 2).sum()) * num / max(num - 1, 1)
    unit = (len(target_N) * entropy) ** 2
    first, second = (1 - float(loss_N.mean()) / entropy for loss_N in (first_N, second_N))
    return first, second, lambda r: noise / unit / r + 2 / unit / r**2


def _nll(prob_N: Any, target_N: Bools) -> F64:
    right_N = np.where(target_N, prob_N, 1 - prob_N)
    loss_N: F64 = -np.log(np.clip(right_N, LEAST_PROB, 1 - LEAST_PROB))
    return loss_N
