"""A calibration for each cohort against the pooled one, simulated and on adult: the figures of docs/cohorts.md.

Adult is `ovr train experiment=adult` with `cohort.column=sex`, and the same without the columns that tell of the sex, measured on
adult.test as the edge predictor answers. The set is not part of this repository: --data (or OVR_REFERENCE_DATA) names a folder with
adult/adult.data and adult/adult.test; without it there is the simulation alone.

N = rows, K = heads
"""

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.out_of_scope import trained
from benchmarks.report import Row, main
from ovr import EdgePredictor
from ovr.calibrator.cohort import PRIOR_STRENGTH, fit_cohorts
from ovr.core.artifact import Calibration
from ovr.core.files import read_json
from ovr.metric.calibration import ece_equal_mass

RICH = ">50K"
TELL_OF_SEX = ("sex", "relationship", "marital-status")
FIGURES = ("decided_rate", "recall", "false_positive_rate", "ece")
NUM_DRAWS = 200


def measure(quick: bool, data: Path | None) -> Iterator[Row]:
    yield from simulated(20 if quick else 200)
    files = [data / "adult" / name for name in ("adult.data", "adult.test")] if data is not None else []
    if quick or not files or not all(file.is_file() for file in files):
        return
    overrides = ["experiment=adult", f"data.files.train={files[0]}", f"data.files.test={files[1]}", "cohort.column=sex"]
    for dropped in ((), TELL_OF_SEX):
        model = f"without {', '.join(dropped)}" if dropped else "all columns"
        more = ["data.source.cohorts=[sex,race]", f"data.source.drop=[{','.join(dropped)}]"]
        with tempfile.TemporaryDirectory() as folder:
            bundle = trained([*overrides, *more], Path(folder), threads=1)
            if not dropped:
                yield from reported(read_json(bundle / "report" / "metrics.json"))
            yield from helped(bundle, files[1], dropped, model)


def simulated(num_heads: int) -> Iterator[Row]:
    """Compare the likelihood of fresh rows of a cohort, above the truth's: with our prior, with none, and pooled."""
    rng = np.random.default_rng(0)
    for base, num_rows in ((-4.0, 100), (-1.0, 100), (-4.0, 1000)):
        log_scale_K, bias_K = rng.normal(0, 0.25, num_heads), rng.normal(0, 0.5, num_heads)
        logit_NK, fresh_NK = (rng.normal(base, 1.5, (num, num_heads)) for num in (num_rows, 4000))
        target_NK = rng.random(logit_NK.shape) < _sigmoid(np.exp(log_scale_K) * logit_NK + bias_K)
        true_NK = _sigmoid(np.exp(log_scale_K) * fresh_NK + bias_K)

        def loss(scale_K: Any, bias_K: Any, fresh_NK: Any = fresh_NK, true_NK: Any = true_NK) -> float:
            z_NK = scale_K * fresh_NK + bias_K
            return float((true_NK * np.logaddexp(0, -z_NK) + (1 - true_NK) * np.logaddexp(0, z_NK)).mean())

        least, found = loss(np.exp(log_scale_K), bias_K), {"pooled": loss(1.0, 0.0)}
        for name, strength in (("no prior", 0.01), ("ours", PRIOR_STRENGTH)):
            rows = (logit_NK, target_NK, np.ones_like(target_NK), np.full(num_rows, "a"))
            fit = fit_cohorts(*rows, [Calibration(status="ok")] * num_heads, min_positives=1, prior_strength=strength)
            found[name] = loss(fit.scale_CK[0], fit.bias_CK[0])
        note = f"{target_NK.sum(axis=0).mean():.0f} positives of {num_rows} rows"
        for peer in ("pooled", "no prior"):
            ours, theirs = found["ours"] - least, found[peer] - least
            yield Row(
                "excess likelihood of fresh rows", peer, num_heads, round(ours, 5), round(theirs, 5), "nats", theirs / ours, note
            )


def reported(report: dict[str, Any]) -> Iterator[Row]:
    """Yield what the report tells of the cohorts of adult's test rows, and of their gaps."""
    for column, part in report["cohorts"].items():
        for cohort in part["cohorts"]:
            (row,) = (row for row in cohort["classes"] if row["class_id"] == RICH)
            for name in FIGURES:
                note = f"{row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f}, {row['rows']} rows, {row['positives']} positives"
                yield Row(f"{column}={cohort['cohort']}: {name}", "-", 2, round(row[name], 4), None, "share", None, note)
        (gap,) = (row for row in part["gaps"] if row["class_id"] == RICH)
        for name, value in gap.items():
            if name != "class_id" and not name.endswith(("_low", "_high")):
                note = f"{gap[f'{name}_low']:.3f} to {gap[f'{name}_high']:.3f}" if f"{name}_low" in gap else ""
                yield Row(f"{column}: {name}", "-", 2, round(value, 4), None, "share", None, note)


def helped(bundle: Path, test: Path, dropped: tuple[str, ...], model: str) -> Iterator[Row]:
    """Compare ECE and NLL of the class `RICH` by the cohorts' calibrations with those by the pooled one."""
    predictor = EdgePredictor(bundle, num_threads=1)
    column = predictor.card.taxonomy.column(RICH)
    records = _records(test)
    target_N = np.array([record.pop("income").rstrip(".") == RICH for record in records])
    sex_N = np.array([record["sex"] for record in records])
    records = [{name: value for name, value in record.items() if name == "sex" or name not in dropped} for record in records]
    pooled_N = predictor.predict_proba(predictor.encode(records), encoded=True)[:, column].astype(np.float64)
    own_N = predictor.predict_proba(records)[:, column].astype(np.float64)
    for sex in ("Female", "Male", None):
        rows = np.flatnonzero(sex_N == sex) if sex else np.arange(len(sex_N))
        rng, drawn = np.random.default_rng(0), []
        for _ in range(NUM_DRAWS):
            some = rng.choice(rows, len(rows))
            drawn.append(_ece(own_N[some], target_N[some]) - _ece(pooled_N[some], target_N[some]))
        low, high = np.percentile(drawn, [2.5, 97.5])
        note = f"{model}; {len(rows)} rows, difference {low:.4f} to {high:.4f}"
        ours, peer = _ece(own_N[rows], target_N[rows]), _ece(pooled_N[rows], target_N[rows])
        yield Row(f"{sex or 'all'}: ECE", "pooled", 2, round(ours, 4), round(peer, 4), "share", peer / ours, note)
        ours, peer = (float(-np.log(np.where(target_N, p_N, 1 - p_N))[rows].mean()) for p_N in (own_N, pooled_N))
        mean = f"mean probability {pooled_N[rows].mean():.3f} pooled, {own_N[rows].mean():.3f} own"
        note = f"{model}; {mean}, share {target_N[rows].mean():.3f}"
        yield Row(f"{sex or 'all'}: NLL", "pooled", 2, round(ours, 4), round(peer, 4), "nats", peer / ours, note)


def _records(file: Path) -> list[dict[str, str]]:
    names = [
        *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race"),
        *("sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
    ]
    with file.open(newline="") as lines:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row and not row[0].startswith("|")]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _ece(prob_N: NDArray[np.float64], target_N: NDArray[np.bool_]) -> float:
    return float(ece_equal_mass(prob_N[:, None], target_N[:, None], np.ones((len(prob_N), 1)))[0])


def _sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, default=os.environ.get("OVR_REFERENCE_DATA"))
    chosen, sys.argv[1:] = parser.parse_known_args()
    main(
        lambda quick: measure(quick, Path(chosen.data) if chosen.data else None),
        "a calibration for each cohort against the pooled one",
    )
