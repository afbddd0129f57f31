"""What docs/decisions.md says of thresholds, promises, conformal sets and joint calibration, in figures.

Simulated heads: scores s ~ N(0, 1), positive with probability sigmoid(steep (s - shift)), so that the true precision, recall and
cost of every threshold are known. "naive" takes the threshold that is just good enough on the calibration rows themselves.

Public data: logits of the quick linear heads of `benchmarks.calibrators`, calibration and test rows that they were not trained on,
with as few calibration rows as small data sets have: digits 50 a class, letter 30, clinc150 10. digits comes with scikit-learn; of
the other two OVR_REFERENCE_DATA names a folder with a folder for each, and one that is not there is left out.

N = rows, K = heads, R = simulated heads, G = points of a grid of scores
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.calibrators import SETS, Split
from benchmarks.report import Row, main
from ovr.calibrator.apply import calibrated_prob, sigmoid
from ovr.calibrator.identity import Identity
from ovr.calibrator.joint import Joint
from ovr.calibrator.temperature import Temperature
from ovr.core.outcomes import prob_normalized
from ovr.core.taxonomy import Taxonomy
from ovr.core.thresholds import Thresholds
from ovr.metric.calibration import ece_equal_mass
from ovr.threshold.conformal import Conformal
from ovr.threshold.cost import Cost
from ovr.threshold.fit import ThresholdRule, rule_for
from ovr.threshold.precision_at_least import PrecisionAtLeast
from ovr.threshold.recall_at_least import RecallAtLeast

F64 = np.ndarray
GRID_G = np.linspace(-7, 7, 8001)
SHAPES = {"50 %": (4.0, 0.0), "20 %": (3.0, 1.0)}  # share of positives -> steep, shift
CALIBRATION_ROWS = {"digits": slice(None), "letter": slice(800), "clinc150": slice(None, None, 2)}
DELTA = 0.1


def drawn(num_rows: int, num_heads: int, shape: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return true probabilities and labels (N, R), a head a column."""
    rng = np.random.default_rng(seed)
    steep, shift = SHAPES[shape]
    prob_NR = sigmoid(steep * (rng.normal(size=(num_rows, num_heads)) - shift))
    return prob_NR, rng.random(prob_NR.shape) < prob_NR


def truths(threshold_R: F64, shape: str) -> tuple[F64, F64, F64]:
    """Return the true precision and recall of taking prob >= threshold (R,), and the share of rows that it takes."""
    steep, shift = SHAPES[shape]
    prob_G, mass_G = sigmoid(steep * (GRID_G - shift)), np.exp(-(GRID_G**2) / 2)
    mass_G /= mass_G.sum()
    taken_G, hits_G = np.cumsum(mass_G[::-1])[::-1], np.cumsum((mass_G * prob_G)[::-1])[::-1]
    at_R = np.clip(np.searchsorted(prob_G, threshold_R), 0, len(GRID_G) - 1)
    return hits_G[at_R] / taken_G[at_R], hits_G[at_R] / hits_G[0], taken_G[at_R]


def promised(found: Thresholds) -> np.ndarray:
    """Return which heads (R,) have the promise."""
    without = np.ones(len(found), np.bool_)
    without[found.columns_without_promise()] = False
    return without


def promises(num_heads: int) -> Iterator[Row]:
    """Yield how often promises over each class are made and broken, and those over five classes together."""
    for num_rows, shape in ((200, "50 %"), (800, "50 %"), (200, "20 %"), (800, "20 %"), (3000, "20 %")):
        prob_NR, target_NR = drawn(num_rows, num_heads, shape, seed=0)
        known_NR, where = np.ones_like(target_NR), f"{num_rows} rows, {shape}"
        found = PrecisionAtLeast(precision=0.8, delta=DELTA, over="class").fit(prob_NR, target_NR, known_NR)
        precision_R, recall_R, _ = truths(found.threshold_K, shape)
        order_NR = np.argsort(-prob_NR, axis=0)
        hits_NR = np.cumsum(np.take_along_axis(target_NR, order_NR, axis=0), axis=0) / np.arange(1, num_rows + 1)[:, None]
        last_R = num_rows - 1 - np.argmax((hits_NR >= 0.8)[::-1], axis=0)
        naive_R = np.take_along_axis(np.take_along_axis(prob_NR, order_NR, axis=0), last_R[None], axis=0)[0]
        has_R = promised(found)
        every = truths(sigmoid(GRID_G), shape)
        best = float(every[1][every[0] >= 0.8].max())
        yield Row(f"precision>=0.8 promised, {where}", "-", num_heads, float(has_R.mean()), None, "share", None)
        broken, naive = float((precision_R < 0.8)[has_R].mean()), float((truths(naive_R, shape)[0] < 0.8).mean())
        yield Row(f"precision>=0.8 broken, {where}", "naive", num_heads, broken, naive, "share", None, f"delta {DELTA}")
        mean_recall = float(np.where(has_R, recall_R, 0.0).mean())
        yield Row(f"recall of precision>=0.8, {where}", "best possible", num_heads, mean_recall, best, "share", None)
        found = RecallAtLeast(recall=0.9, delta=DELTA, over="class").fit(prob_NR, target_NR, known_NR)
        has_R = promised(found)
        naive_R = np.nanquantile(np.where(target_NR, prob_NR, np.nan), 0.1, axis=0, method="lower")
        broken, naive = (float((truths(t, shape)[1] < 0.9)[has_R].mean()) for t in (found.threshold_K, naive_R))
        yield Row(f"recall>=0.9 promised, {where}", "-", num_heads, float(has_R.mean()), None, "share", None)
        yield Row(f"recall>=0.9 broken, {where}", "naive", num_heads, broken, naive, "share", None, f"delta {DELTA}")
    five = Taxonomy.from_ids("abcde")
    prob_NR, target_NR = drawn(800, 5 * num_heads, "50 %", seed=1)
    for over in ("all", "class"):
        makes: tuple[tuple[str, ThresholdRule, int, float], ...] = (
            ("precision>=0.8", PrecisionAtLeast(precision=0.8, delta=DELTA, over=over), 0, 0.8),
            ("recall>=0.9", RecallAtLeast(recall=0.9, delta=DELTA, over=over), 1, 0.9),
        )
        for what, rule, figure, asked in makes:
            found = rule_for(rule, five).fit(prob_NR, target_NR, np.ones_like(target_NR))
            assert isinstance(found, Thresholds)
            broken_R = (truths(found.threshold_K, "50 %")[figure] < asked) & promised(found)
            any_broken = float(broken_R.reshape(num_heads, 5).any(axis=1).mean())
            yield Row(f"any of 5 {what} broken, over={over}", "-", 5, any_broken, None, "share", None, f"delta {DELTA}")


def costs(num_heads: int) -> Iterator[Row]:
    """Yield the mean cost of a fresh row by the threshold of the prices and by that of least cost on the calibration rows."""
    shape = "20 %"
    prob_G = sigmoid(SHAPES[shape][0] * (GRID_G - SHAPES[shape][1]))

    def cost(threshold_R: F64) -> F64:
        precision_R, recall_R, taken_R = truths(threshold_R, shape)
        share = float((truths(np.zeros(1), shape)[0])[0])
        cost_R: F64 = taken_R * (1 - precision_R) + 9.0 * share * (1 - recall_R)
        return cost_R

    best = float(cost(prob_G).min())
    for num_rows, power, what in ((115, 1.0, "calibrated"), (575, 1.0, "calibrated"), (115, 2.0, "logits doubled")):
        prob_NR, target_NR = drawn(num_rows, num_heads, shape, seed=2)
        odds_NR = (prob_NR / (1 - prob_NR)) ** power
        for method in ("bayes", "empirical"):
            rule = Cost(false_negative=9.0, method=method)
            threshold_R = rule.fit(odds_NR / (1 + odds_NR), target_NR, np.ones_like(target_NR)).threshold_K
            back_R = (threshold_R / (1 - threshold_R)) ** (1 / power)  # the true probability at the threshold
            mean, positives = float(cost(back_R / (1 + back_R)).mean()), round(float(target_NR.mean()) * num_rows)
            yield Row(f"cost, {method}, {what}, {positives} positives", "best possible", num_heads, mean, best, "1", None)


def joint(name: str, split: Split) -> Iterator[Row]:
    """Yield what joint calibration does on unseen rows beside no calibration, a temperature a head, and other strengths."""
    calib_NK, target_NK, test_NK, test_target_NK = split
    class_N, known_NK = test_target_NK.argmax(axis=1), np.ones_like(test_target_NK)
    figures, peers = [], {"no calibration": Identity(), "a temperature a head": Temperature()}
    strengths = {f"strength {strength}": Joint(strength=strength) for strength in (3, 30, 100)}
    for calibrator in (Joint(), *peers.values(), *strengths.values()):
        prob_NK = calibrated_prob(test_NK, calibrator.fit(calib_NK, target_NK, np.ones_like(target_NK)))
        clipped_NK = np.clip(prob_NK, 1e-12, 1 - 1e-12)
        own_N = prob_normalized(prob_NK)[np.arange(len(class_N)), class_N]
        figures.append(
            {
                "argmax accuracy": float((prob_NK.argmax(axis=1) == class_N).mean()),
                "ECE": float(ece_equal_mass(prob_NK, test_target_NK, known_NK).mean()),
                "NLL": float(-np.where(test_target_NK, np.log(clipped_NK), np.log1p(-clipped_NK)).mean()),
                "normalised NLL": float(-np.log(own_N).mean()),
            }
        )
    for against, theirs in zip((*peers, *strengths), figures[1:], strict=True):
        for what, ours in figures[0].items():
            unit = "nats" if "NLL" in what else "1"
            yield Row(f"{name}: {what}, joint", against, len(known_NK.T), ours, theirs[what], unit, None)


def on_data(name: str, split: Split) -> Iterator[Row]:
    """Yield what is promised of the classes of a data set, what unseen rows say to it, and the coverage of conformal sets."""
    calib_NK, target_NK, test_NK, test_target_NK = split
    known_NK, num_heads = np.ones_like(target_NK), target_NK.shape[1]
    calibrations = Temperature().fit(calib_NK, target_NK, known_NK)
    prob_NK, test_prob_NK = calibrated_prob(calib_NK, calibrations), calibrated_prob(test_NK, calibrations)
    rows = f"{len(target_NK)} calibration rows"
    for over in ("all", "class"):
        for what, rule in (
            ("precision>=0.9", PrecisionAtLeast(precision=0.9, over=over)),
            ("recall>=0.8", RecallAtLeast(recall=0.8, over=over)),
        ):
            found = rule.fit(prob_NK, target_NK, known_NK)
            has_K = promised(found)
            yield Row(f"{name}: {what} promised, over={over}", "-", num_heads, float(has_K.sum()), None, "classes", None, rows)
            if has_K.any():
                taken_NK = (test_prob_NK >= found.threshold_K)[:, has_K]
                of_NK = taken_NK if what.startswith("precision") else test_target_NK[:, has_K]
                held_K = (taken_NK & test_target_NK[:, has_K]).sum(axis=0) / of_NK.sum(axis=0)
                note = f"mean of the promised classes; the lowest {held_K.min():.3f}"
                yield Row(f"{name}: {what} held out, over={over}", "-", num_heads, float(held_K.mean()), None, "share", None, note)
    found = Conformal(coverage=0.9).fit(prob_NK, target_NK, known_NK)
    in_set_NK = test_prob_NK >= found.threshold_K
    covered_K = (in_set_NK & test_target_NK).sum(axis=0) / test_target_NK.sum(axis=0)
    note = f"{rows}; the lowest of a class {covered_K.min():.3f}"
    yield Row(f"{name}: conformal coverage at 0.9", "-", num_heads, float(covered_K.mean()), None, "share", None, note)
    yield Row(f"{name}: classes a conformal set", "-", num_heads, float(in_set_NK.sum(axis=1).mean()), None, "1", None)


def measure(quick: bool) -> Iterator[Row]:
    """Yield all figures."""
    yield from promises(100 if quick else 1000)
    yield from costs(40 if quick else 400)
    folder = os.environ.get("OVR_REFERENCE_DATA") or None
    for name, kept in CALIBRATION_ROWS.items():
        if name != "digits" and (quick or folder is None or not (Path(folder) / name).is_dir()):
            print(f"{name} left out: {'--quick' if quick else 'not there'}", file=sys.stderr)
            continue
        calib_NK, target_NK, *test = SETS[name](Path(folder or "."))
        split = (calib_NK[kept], target_NK[kept], *test)
        yield from joint(name, split)
        if name == "letter":
            rng = np.random.default_rng(0)
            scale_K, bias_K = np.exp(rng.normal(size=26) * 0.5), rng.normal(size=26)
            yield from joint("letter, rescaled", (split[0] * scale_K + bias_K, split[1], split[2] * scale_K + bias_K, split[3]))
        yield from on_data(name, split)


if __name__ == "__main__":
    main(measure, __doc__ or "")
