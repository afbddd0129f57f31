"""How often the gate lets a head replace another that is better in truth: the figures of docs/heads.md.

Both heads are calibrated: scores are normal, those of positives higher by a distance, and probabilities the true ones. Their noise
is correlated, as that of heads on one backbone. Beside the gate as it is shipped stands the test that it had before: ordinary
classes went by `ovr.metric.compare` not calling a head worse, critical ones by the bootstrap's interval of average precision and of
NLL.

N = rows
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Row, main
from ovr.core.taxonomy import ClassSpec
from ovr.lifecycle.gate import Gate
from ovr.lifecycle.gate_policy import CRITICAL
from ovr.metric.compare import compare
from ovr.metric.ranking import rank_figures

F64 = NDArray[np.float64]

SHARE, CORRELATION, GOOD = 0.1, 0.8, 0.9  # of the class; of the scores' noise; average precision of the head in use
MARGIN = 0.02
CLASSES = {"ordinary": ClassSpec("a", max_ece=1.0), "critical": ClassSpec("b", critical=True, max_ece=1.0)}


def measure(quick: bool) -> Iterator[Row]:
    rng, gate = np.random.default_rng(0), Gate(critical=CRITICAL.to_json())
    distances = _distances(rng, 20_000 if quick else 200_000)
    for num_positives in (10, 30) if quick else (10, 30, 100, 300):
        for loss in (0.0, 0.2) if quick else (-0.05, 0.0, 0.02, 0.05, 0.1, 0.2):
            pair = distances(GOOD), distances(GOOD - loss)
            num_draws = 10 if quick else 400
            drawn = [_let_in(gate, *_heads(rng, num_positives, pair), before=i < num_draws // 4) for i in range(num_draws)]
            for name in CLASSES:
                ours = float(np.mean([now[name] for now, _ in drawn]))
                before = float(np.mean([past[name] for _, past in drawn if past]))
                to = f"average precision {GOOD} to {GOOD - loss:.2f}"
                note = f"{num_positives} positives, {to}; {num_draws} draws, a quarter for before"
                yield Row(f"let in: {name}", "before", None, ours, before, "share", None, note)


def _let_in(gate: Gate, first_N: F64, second_N: F64, target_N: Any, *, before: bool) -> tuple[dict[str, bool], dict[str, bool]]:
    known_N, now, past = np.ones(len(target_N), np.bool_), {}, {}
    for name, spec in CLASSES.items():
        judged = gate.judge(spec, second_N, target_N, known_N, threshold=0.5, replaced=(first_N, known_N, 0.5))
        now[name] = judged.checks[-1].passed
    if before:
        columns = [prob_N[:, None] for prob_N in (first_N, second_N)]
        found = compare(*columns, columns[0] >= 0.5, columns[1] >= 0.5, target_N[:, None], known_N[:, None])
        low, high = found.average_precision.low_K[0], found.nll.high_K[0]
        past = {"ordinary": str(found.verdict_K[0]) != "worse", "critical": bool(low >= -MARGIN and high <= MARGIN)}
    return now, past


def _heads(rng: np.random.Generator, num_positives: int, distances: tuple[float, float]) -> tuple[F64, F64, Any]:
    target_N = np.arange(round(num_positives / SHARE)) < num_positives
    noise_N, own_N = rng.normal(size=(2, len(target_N)))
    probs = []
    for noise, distance in zip((noise_N, CORRELATION * noise_N + np.sqrt(1 - CORRELATION**2) * own_N), distances, strict=True):
        logit_N = distance * (noise + distance * target_N) - distance**2 / 2 + np.log(SHARE / (1 - SHARE))
        probs.append(1 / (1 + np.exp(-logit_N)))
    return probs[0], probs[1], target_N


def _distances(rng: np.random.Generator, num_rows: int) -> Any:
    """Return the function that tells how far apart scores are for an average precision."""
    target_N, noise_N = rng.random(num_rows) < SHARE, rng.normal(size=num_rows)
    distance_D = np.linspace(0.5, 5.0, 31)
    score_ND = noise_N[:, None] + distance_D * target_N[:, None]
    target_ND = np.repeat(target_N[:, None], len(distance_D), axis=1)
    precision_D = rank_figures(score_ND, target_ND, np.ones_like(target_ND)).average_precision_K
    return lambda precision: float(np.interp(precision, precision_D, distance_D))


if __name__ == "__main__":
    main(measure, "heads that replace a better one, and how often the gate lets them in")
