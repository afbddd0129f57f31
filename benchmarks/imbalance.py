"""Means against imbalance on UCI page-blocks (5 classes, the largest 175 times the smallest): the table of docs/imbalance.md.

Each configuration is `ovr train` on four splits, each with a seed of its own: likelihood (nats) and class-wise ECE of the test rows
before and after the temperature, and average precision, means over the heads. Ours is the mean over the splits, the note tells its
standard error; the peer is plain cross-entropy. The set is not part of this repository: --data (or OVR_REFERENCE_DATA) names a
folder with page-blocks/derived/page-blocks.csv; without it nothing is measured.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.out_of_scope import trained
from benchmarks.report import Row, main
from ovr.core.files import read_json

SET = "page-blocks"
FILE = Path(SET) / "derived" / f"{SET}.csv"
PLAIN = "loss=bce"
CONFIGURATIONS = (
    PLAIN,
    "loss.pos_weight=auto",
    "loss.pos_weight=auto loss.max_pos_weight=100",
    "loss=focal",
    "loss=asymmetric",
    "loss=smoothed",
    "loss=subsampled",
    "sampler=class_balanced",
    "sampler=class_balanced sampler.power=0.5",
)
FIGURES = {"nll_before": "nats", "nll_after": "nats", "ece_before": "share", "ece_after": "share", "average_precision": "share"}


def figures(file: Path, configuration: str, seed: int, *, epochs: int) -> dict[str, float]:
    """Return the figures of one run."""
    overrides = [
        "data=table",
        f"data.path={file}",
        "data.target=class",
        "decision=multilabel",
        "backbone.hidden=[64]",
        f"trainer.max_epochs={epochs}",
        f"seed={seed}",
        f"data.source.split.seed={seed}",
        "report=false",
        *configuration.split(),
    ]
    with tempfile.TemporaryDirectory() as folder:
        report = read_json(trained(overrides, Path(folder), threads=1) / "report" / "metrics.json")
    found = {name: float(report[name]) for name in FIGURES if name != "average_precision"}
    return found | {"average_precision": float(np.mean([row["average_precision"] for row in report["classes"]]))}


def measure(quick: bool, data: Path | None) -> Iterator[Row]:
    """Yield a row for each configuration and figure."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_stand_in(Path(folder)) if quick else None if data is None else data.absolute() / FILE
        if file is None or not file.is_file():
            print(f"skipped: --data (or OVR_REFERENCE_DATA) names no folder with {FILE}", file=sys.stderr)
            return
        plain: dict[str, float] = {}
        for configuration in CONFIGURATIONS[:2] if quick else CONFIGURATIONS:
            runs = [figures(file, configuration, seed, epochs=2 if quick else 40) for seed in range(2 if quick else 4)]
            for name, unit in FIGURES.items():
                values = np.array([run[name] for run in runs])
                mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
                plain.setdefault(name, mean)
                higher = name == "average_precision"
                ratio = mean / plain[name] if higher else plain[name] / mean
                note = f"+- {error:.4f}, {len(runs)} splits; against {PLAIN}"
                yield Row(
                    f"{'stand-in' if quick else SET}: {name}",
                    configuration,
                    3 if quick else 5,
                    round(mean, 4),
                    round(plain[name], 4),
                    unit,
                    ratio,
                    note,
                )


def write_stand_in(folder: Path) -> Path:
    """Write a small set with a rare class: shows that the benchmark works, not what is reached."""
    rng, file = np.random.default_rng(0), folder / "stand_in.csv"
    class_N = np.repeat(["text", "line", "graphic"], (300, 60, 40))
    value_N2 = rng.normal(size=(len(class_N), 2)) + 2 * (class_N[:, None] == ["line", "graphic"])
    lines = [f"{a:.4f},{b:.4f},{name}" for (a, b), name in zip(value_N2, class_N, strict=True)]
    file.write_text("\n".join(["a,b,class", *lines]) + "\n")
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, default=os.environ.get("OVR_REFERENCE_DATA"))
    chosen, sys.argv[1:] = parser.parse_known_args()
    main(lambda quick: measure(quick, Path(chosen.data) if chosen.data else None), __doc__ or "")
