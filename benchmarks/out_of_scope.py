"""Rows of none of the classes, on clinc150's own split: in-scope accuracy and out-of-scope recall beside the published table.

A run of `ovr train experiment=clinc150 abstention=review_rate` on the texts of the 150 intents; what it abstains on counts as out
of scope. No out-of-scope text is trained on, calibrated on, or looked at to choose the limit: that is the highest confidence below
which a share of the in-scope calibration rows (half of the val list) lies. Calibrations and limit share these rows
(promise_share=0): of the limit nothing is promised, it is measured. Published (Larson et al. 2019, "An Evaluation Dataset for
Intent Classification and Out-of-Scope Prediction", table 2, oos-threshold, full data) are thresholds on the winning probability
with the highest validation score over all intents and out-of-scope; "paper's choice" takes the threshold so from val and oos_val.

In-scope accuracy is the share of the 4,500 test texts whose intent is decided; one that is abstained on is wrong. Out-of-scope
recall is the share of the 1,000 texts of oos_test that are abstained on.

The set is not part of this repository: --data (or OVR_REFERENCE_DATA) names a folder with clinc150/data_full.json.
"""

import argparse
import datetime
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.reference import ENCODER_PACKAGE, ROOT
from benchmarks.report import Row, machine
from ovr import EdgePredictor
from ovr.calibrator.apply import calibrated_prob
from ovr.core.bundle import open_bundle
from ovr.metric.out_of_scope import SCORES, auroc

PUBLISHED = {"MLP threshold": (0.934, 0.491), "BERT threshold": (0.962, 0.523)}
RATES = (0.01, 0.02, 0.03, 0.05)
RATE = 0.03  # that the run itself is given
BARS = (0.93, 0.50)

Lists = Mapping[str, list[list[str]]]


def trained(overrides: list[str], folder: Path, *, threads: int) -> Path:
    """Return the bundle of `ovr train` with these overrides.

    Raises:
        RuntimeError: the command fails.
    """
    env = {**os.environ, **{name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "ovr", "train", *overrides, f"hydra.run.dir={folder}/run", f"paths.output_dir={folder}"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("; ".join(done.stderr.strip().splitlines()[-3:]) or f"exit status {done.returncode}")
    return folder / "run" / "bundle"


def rows_of(bundle: Path, lists: Lists, *, threads: int) -> Iterator[Row]:
    """Yield the figures of a bundle: of its own decisions first, then of other scores and limits."""
    heads = open_bundle(bundle).heads
    calib_NK = calibrated_prob(np.load(bundle / "calibration" / "logit.npy"), [head.calibration for head in heads])
    calib_class_N = np.load(bundle / "calibration" / "target.npy").argmax(axis=1)
    predictor = EdgePredictor(bundle, num_threads=threads)
    column = {class_id: k for k, class_id in enumerate(predictor.card.taxonomy.ids)}
    answers = {name: predictor.predict([text for text, _ in lists[name]]) for name in ("test", "oos_val", "oos_test")}
    class_N = np.array([column[intent] for _, intent in lists["test"]])
    decided_N = answers["test"].decision.label_BK[np.arange(len(class_N)), class_N]
    recall = answers["oos_test"].decision.abstained_B.mean()
    limit = f"limit {predictor.card.policy.abstain_below:.3f}"
    yield from _figures(f"abstention=review_rate rate={RATE}", len(column), float(decided_N.mean()), float(recall), limit)

    right_N = answers["test"].prob_BK.argmax(axis=1) == class_N
    for name, score in SCORES.items():
        calib_N, test_N, oos_val_N, oos_N = (
            score(values) for values in (calib_NK, answers["test"].prob_BK, answers["oos_val"].prob_BK, answers["oos_test"].prob_BK)
        )
        area = auroc(test_N, oos_N)
        yield Row(f"AUROC of {name}", "-", len(column), area, None, "share", None, "test against oos_test")
        for rate in RATES:
            accuracy, recall = shares(test_N, right_N, oos_N, np.quantile(calib_N, rate))
            yield from _figures(f"{name}, {rate:.0%} of calib below", len(column), accuracy, recall, "")
        right_calib_N = calib_NK.argmax(axis=1) == calib_class_N
        accuracy, recall = shares(test_N, right_N, oos_N, best_limit(calib_N, right_calib_N, oos_val_N))
        yield from _figures(f"{name}, paper's choice", len(column), accuracy, recall, "the limit sees oos_val")


def shares(
    test_N: NDArray[Any], right_N: NDArray[np.bool_], oos_N: NDArray[Any], limit: np.floating[Any] | float
) -> tuple[float, float]:
    """Return in-scope accuracy and out-of-scope recall with rows below `limit` abstained on."""
    return float((right_N & (test_N >= limit)).mean()), float((oos_N < limit).mean())


def best_limit(score_N: NDArray[Any], right_N: NDArray[np.bool_], oos_N: NDArray[Any]) -> float:
    """Return the limit with the most rows right, in scope and out, among the scores that there are."""
    limits = np.unique(np.concatenate([score_N, oos_N]))
    kept = right_N[None] & (score_N[None] >= limits[:, None])
    return float(limits[np.argmax(kept.sum(axis=1) + (oos_N[None] < limits[:, None]).sum(axis=1))])


def _figures(what: str, num_heads: int, accuracy: float, recall: float, note: str) -> Iterator[Row]:
    for against, (published_accuracy, published_recall) in PUBLISHED.items():
        for figure, ours, peer in (("in-scope accuracy", accuracy, published_accuracy), ("oos recall", recall, published_recall)):
            yield Row(f"{figure}: {what}", against, num_heads, round(ours, 4), peer, "share", round(ours / peer, 4), note)


def write_stand_in(path: Path) -> None:
    """Write a small set of the shape of clinc150: shows that the benchmark works, not what is reached."""
    rng = np.random.default_rng(0)

    def texts(count: int, intent: str) -> list[list[str]]:
        return [
            [" ".join([f"{intent}{rng.integers(9)}" for _ in range(4)] + [f"w{rng.integers(99)}"]), intent] for _ in range(count)
        ]

    intents = ["book", "pay", "call"]
    lists = {name: sum((texts(n, i) for i in intents), []) for name, n in (("train", 60), ("val", 60), ("test", 30))}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**lists, **{f"oos_{name}": texts(20, "oos") for name in ("train", "val", "test")}}))


def main() -> int:
    """Measure, print, and store where asked; return 1 where the data is missing or the command fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("OVR_REFERENCE_DATA") or None, metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=2, help="of training and of the predictor (default 2)")
    parser.add_argument("--quick", action="store_true", help="a small stand-in: shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="store date, machine and rows here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) if arguments.quick else arguments.data
        spec = importlib.util.find_spec(ENCODER_PACKAGE)
        file = None if root is None else root.absolute() / "clinc150" / "data_full.json"
        if arguments.quick:
            write_stand_in(Path(folder) / "clinc150" / "data_full.json")
        if file is None or not file.is_file():
            print("skipped: --data (or OVR_REFERENCE_DATA) names no folder with clinc150/data_full.json")
            return 1
        if not arguments.quick and (spec is None or spec.origin is None):
            print(f"skipped: {ENCODER_PACKAGE} is not installed")
            return 1
        overrides = [
            f"data.path={file}",
            "abstention=review_rate",
            f"abstention.rate={RATE}",
            "abstention.delta=0.5",
            "promise_share=0",
        ]
        if arguments.quick:
            overrides += ["experiment=clinc150_bag", "trainer.max_epochs=2", "max_leakage=null"]
        else:
            assert spec is not None
            assert spec.origin is not None
            overrides += ["experiment=clinc150", f"backbone.path={Path(spec.origin).parent / 'model'}"]
        lists = json.loads(file.read_text())
        rows = []
        print(f"{'what':<60}{'against':<18}{'ours':>8}{'published':>11}")
        try:
            bundle = trained(overrides, Path(folder), threads=arguments.threads)
        except RuntimeError as error:
            print(f"failed: {error}")
            return 1
        for row in rows_of(bundle, lists, threads=arguments.threads):
            rows.append(row)
            published = "-" if row.peer is None else f"{row.peer:.3f}"
            print(f"{row.what:<60}{row.against:<18}{row.ours:>8.4f}{published:>11}  {row.note}", flush=True)
    accuracy, recall = rows[0].ours, rows[1].ours
    print(f"bars: {BARS[0]} and {BARS[1]}: {'reached' if accuracy >= BARS[0] and recall >= BARS[1] else 'missed'}")
    if arguments.json is not None:
        report = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "quick": arguments.quick,
            "machine": {**machine(), "threads": str(arguments.threads)},
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
