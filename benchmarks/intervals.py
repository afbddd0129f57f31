"""How often intervals hold the truth, how wide bounds are, and what the figures of a report cost: the figures of docs/metrics.md.

Shares are of simulated test sets whose interval of 95 % holds what is true of all rows; nothing of ours is fitted to them.

N = rows, K = heads, D = simulated test sets
"""

import math
import resource
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Row, cpu_seconds, main
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.scale import column_blocks
from ovr.data.labels import Labels
from ovr.metric.bins import NUM_BINS
from ovr.metric.calibration_bound import ece_upper_bound, rows_needed
from ovr.metric.compare import compare
from ovr.metric.figures import HeadFigures
from ovr.metric.intervals import wilson
from ovr.metric.ranking import average_precision_influence, rank_figures_with_slopes
from ovr.training.evaluate import evaluate

F64 = NDArray[np.float64]

RANKED = ((3, 100, 1.5), (3, 2000, 3.0), (10, 2000, 1.5), (30, 2000, 3.0), (200, 2000, 1.5))  # positives, others, distance
MEANS = [
    *(f"{mean}_{name}" for mean in ("macro", "micro", "weighted") for name in ("precision", "recall", "f1")),
    "macro_average_precision",
    "weighted_average_precision",
    "macro_roc_auc",
]
OF_CLASS = ("precision", "recall", "false_positive_rate", "false_negative_rate", "f1", "average_precision", "roc_auc")


def measure(quick: bool) -> Iterator[Row]:
    yield from ranks(60 if quick else 1000)
    yield from bounds(40 if quick else 400)
    for num_rows in (200,) if quick else (200, 2000):
        yield from means(10 if quick else 100, num_rows)
    yield from equal_models(3 if quick else 60)
    yield from costs([(360, 10)] if quick else [(360, 10), (10_000, 1000)])


def ranks(num_draws: int) -> Iterator[Row]:
    """Compare our intervals of ROC AUC and average precision with those of variances; normal scores, the positives' d higher."""
    rng = np.random.default_rng(0)
    for num_pos, num_neg, d in RANKED:
        target_ND = np.repeat(np.arange(num_pos + num_neg)[:, None] < num_pos, num_draws, axis=1)
        score_ND = rng.normal(size=target_ND.shape) + d * target_ND
        known_ND = np.ones_like(target_ND)
        got, _ = rank_figures_with_slopes(score_ND, target_ND, known_ND)
        auc_D, ap_D = got.roc_auc_K, got.average_precision_K
        area, precision = _true_area(d), _true_precision(d, num_pos / (num_pos + num_neg))
        slope_variance_D = (average_precision_influence(score_ND, target_ND, known_ND) ** 2).sum(axis=0)
        note = f"{num_pos} positives, {num_neg} others, d = {d}"
        ours, peer = _held(got.roc_auc_interval(), area), _held(_of_variance(auc_D, _delong(score_ND, num_pos)), area)
        yield Row("ROC AUC: Newcombe's method 5", "DeLong", None, ours, peer, "share", None, note)
        ours, peer = _held(got.average_precision_interval(), precision), _held(_of_variance(ap_D, slope_variance_D), precision)
        yield Row("average precision: positives as trials", "derivative", None, ours, peer, "share", None, note)


def bounds(num_draws: int) -> Iterator[Row]:
    """Tell how often the bound of a calibration error holds, what it is for calibrated heads, and the rows for a limit of 0.05."""
    rng = np.random.default_rng(1)
    kinds = {
        "rare, beta(0.1, 9.9)": lambda n: rng.beta(0.1, 9.9, n),
        "sharp, sigmoid of a normal (-3, 6)": lambda n: 1 / (1 + np.exp(-rng.normal(-3, 6, n))),
        "all near 0.1": lambda n: rng.uniform(0.09, 0.11, n),
        "even from 0 to 1": lambda n: rng.random(n),
    }
    for kind, sample in kinds.items():
        for num_rows in (100, 400, 1000, 5000):
            prob_N = np.sort(sample(num_rows))
            prob_ND = np.repeat(prob_N[:, None], num_draws, axis=1)
            held, errors, mean = [], [], 0.0
            for factor in (1.0, 0.9, 0.6):
                start_G = num_rows * np.arange(NUM_BINS) // NUM_BINS
                truth = np.abs(np.add.reduceat((1 - factor) * prob_N, start_G)).sum() / num_rows
                target_ND = rng.random(prob_ND.shape) < factor * prob_ND
                upper_D = ece_upper_bound(prob_ND, target_ND, np.ones_like(target_ND))[1]
                held.append(float((truth <= upper_D).mean()))
                errors.append(truth)
                mean = float(upper_D.mean()) if factor == 1 else mean
            note = f"{num_rows} rows, {kind}"
            yield Row(
                "bound of the ECE holds, least", "-", None, min(held), None, "share", None, f"{note}; ECE 0 to {max(errors):.3f}"
            )
            yield Row("mean bound, calibrated", "-", None, round(mean, 4), None, "ECE", None, note)
        prob_N1 = sample(100_000)[:, None]
        yield Row(
            "rows for a bound of 0.05",
            "-",
            None,
            int(rows_needed(0.05, prob_N1, np.ones_like(prob_N1))[0]),
            None,
            "rows",
            None,
            kind,
        )


def means(num_draws: int, num_rows: int, *, num_heads: int = 40, num_true: int = 100_000) -> Iterator[Row]:
    """Tell how often the intervals of classes and of means over classes hold, of rows with one class each."""
    rng = np.random.default_rng(2)
    true_K, true = _figures(rng, num_true, num_heads, detailed=False)
    held: dict[str, list[float]] = {name: [] for name in (*OF_CLASS, *MEANS)}
    for _ in range(num_draws):
        figures_K, summary = _figures(rng, num_rows, num_heads, detailed=True)
        for name in OF_CLASS:
            low_K, high_K = figures_K[f"{name}_low"], figures_K[f"{name}_high"]
            some_K = ~np.isnan(figures_K[name])
            held[name].append(float(((low_K <= true_K[name]) & (true_K[name] <= high_K))[some_K].mean()))
        for name in MEANS:
            held[name].append(float(summary[f"{name}_low"] <= true[name] <= summary[f"{name}_high"]))
    note = f"{num_draws} sets of {num_rows} rows, {num_rows // num_heads} of each class"
    for name, shares in held.items():
        yield Row(f"interval of {name} holds", "-", num_heads, round(float(np.mean(shares)), 4), None, "share", None, note)


def _figures(rng: np.random.Generator, num_rows: int, num_heads: int, *, detailed: bool) -> tuple[dict[str, Any], dict[str, float]]:
    column_N = rng.integers(num_heads, size=num_rows)
    target_NK = np.arange(num_heads) == column_N[:, None]
    logit_NK = rng.normal(-4, 1, target_NK.shape) + target_NK * rng.normal(4, 2, target_NK.shape)
    prob_NK = 1 / (1 + np.exp(-logit_NK))
    heads = HeadFigures(num_rows, detailed=detailed)
    figures_K = heads.update(
        logit_NC=logit_NK,
        calibrated_NC=logit_NK,
        before_NC=prob_NK,
        prob_NC=prob_NK,
        label_NC=logit_NK == logit_NK.max(axis=1, keepdims=True),
        target_NC=target_NK,
        mask_NC=np.ones_like(target_NK),
    )
    return figures_K, heads.summary(figures_K)


def equal_models(num_pairs: int, num_heads: int = 30, num_rows: int = 2000) -> Iterator[Row]:
    """Tell how often `ovr compare` calls a class of two equally good models better or worse."""
    rng, num_told = np.random.default_rng(3), 0
    share_K = np.geomspace(0.005, 0.2, num_heads)
    for _ in range(num_pairs):
        logit_NK = np.log(share_K / (1 - share_K)) + 1.5 * rng.normal(size=(num_rows, num_heads))
        target_NK = rng.random(logit_NK.shape) < 1 / (1 + np.exp(-logit_NK))
        first, second = (1 / (1 + np.exp(-logit_NK - 0.5 * rng.normal(size=logit_NK.shape))) for _ in range(2))
        found = compare(first, second, first >= 0.5, second >= 0.5, target_NK, np.ones_like(target_NK))
        num_told += any(verdict != "same" for verdict in found.verdict_K)
    note = f"of {num_pairs} pairs, {num_rows} rows, 0.5 to 20 % positives"
    yield Row("equal models with a class told apart", "-", num_heads, num_told / num_pairs, None, "share", None, note)


def costs(sizes: list[tuple[int, int]]) -> Iterator[Row]:
    """Tell the CPU time of all figures of a report, with all intervals, and what a cohort column adds."""
    rng = np.random.default_rng(4)
    for num_rows, num_heads in sizes:
        column_N = rng.integers(num_heads, size=num_rows)
        logit_NK = rng.normal(-4, 1, (num_rows, num_heads)).astype(np.float32)
        logit_NK[np.arange(num_rows), column_N] += rng.normal(5, 3, num_rows)
        labels = Labels.from_columns(column_N, num_heads=num_heads)
        cohorts = {"half": np.where(rng.random(num_rows) < 0.5, "a", "b")}
        for note, given in (("", None), ("with a cohort column of two", cohorts)):

            def run(given: Any = given, logit_NK: Any = logit_NK, labels: Labels = labels, num_heads: int = num_heads) -> None:
                evaluate(
                    _Blocks(logit_NK),  # type: ignore[arg-type]
                    labels,
                    calibrations=[Calibration(status="ok")] * num_heads,
                    threshold_K=np.full(num_heads, 0.5),
                    policy=DecisionPolicy(),
                    small_K=np.zeros(num_heads, np.bool_),
                    propensity_K=np.ones(num_heads),
                    cohorts=given,
                )

            seconds = min(cpu_seconds(run) for _ in range(2))
            yield Row(f"all figures of {num_rows} rows", "-", num_heads, seconds, None, "s", None, note)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    yield Row("peak memory of this benchmark", "-", sizes[-1][1], peak, None, "MiB", None, "logits of all heads included")


class _Blocks:
    """Logits of some heads at a time, as `evaluate` goes through them."""

    def __init__(self, logit_NK: NDArray[np.float32]) -> None:
        self.logit_NK, self.num_heads = logit_NK, logit_NK.shape[1]

    def __len__(self) -> int:
        return len(self.logit_NK)

    def __iter__(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for columns in column_blocks(*self.logit_NK.shape):
            yield columns, self.logit_NK[:, columns]


def _held(interval: tuple[F64, F64], truth: float) -> float:
    return float(((interval[0] <= truth) & (truth <= interval[1])).mean())


def _of_variance(value_D: F64, variance_D: F64) -> tuple[F64, F64]:
    """Return Wilson's interval with as many trials as would have this variance; without variance, no width."""
    with np.errstate(divide="ignore", invalid="ignore"):
        trials_D = value_D * (1 - value_D) / variance_D
        low_D, high_D = wilson(value_D * trials_D, trials_D)
    some_D = variance_D > 0
    return np.where(some_D, low_D, value_D), np.where(some_D, high_D, value_D)


def _delong(score_ND: F64, num_pos: int) -> F64:
    """Return DeLong, DeLong and Clarke-Pearson's variance (1988) of each ROC AUC; the positives are the first rows."""
    variance = []
    for score_N in score_ND.T:
        positive, negative = np.sort(score_N[:num_pos]), np.sort(score_N[num_pos:])
        below = np.searchsorted(negative, positive) / len(negative)
        above = 1 - np.searchsorted(positive, negative) / len(positive)
        variance.append(below.var(ddof=1) / len(positive) + above.var(ddof=1) / len(negative))
    return np.array(variance)


def _true_area(d: float) -> float:
    return 0.5 * (1 + math.erf(d / 2))


def _true_precision(d: float, share: float) -> float:
    """Return the average precision of all rows: the mean over positives of the precision at their score."""
    x = np.linspace(-9, 9 + d, 200_001)
    tail = np.vectorize(lambda t: 0.5 * math.erfc(t / math.sqrt(2)))
    density, true, false = np.exp(-((x - d) ** 2) / 2) / math.sqrt(2 * math.pi), share * tail(x - d), (1 - share) * tail(x)
    return float((density * true / np.maximum(true + false, 1e-300)).sum() * (x[1] - x[0]))


if __name__ == "__main__":
    main(measure, "how often intervals hold, how wide bounds are, what a report costs")
