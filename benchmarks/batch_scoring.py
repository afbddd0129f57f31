"""`ovr predict` on files against bare loops of ONNX Runtime: over the same file, and over rows that are in memory, encoded already.

The bare loop is `for start in range(0, N, 256): session.run(["prob"], {"x": x[start:start + 256]})` over a float32 array, with
the bundle's fused graph: nothing is read, encoded, decided or written, and answers are thrown away. The loop over the file is some
lines with pyarrow that read it and write the same columns (see `batch_loops`). Ours is the whole command but
for the start of Python and Hydra: it opens and checks the bundle, reads the file, checks and encodes its rows, runs the same graph,
decides, and writes the answers, flushed to the disk. Both by turns, on the clock; the rates are of the median turn, and notes tell
of the processors' time too, which other programs on the machine disturb less. Files are in the system's cache.

Then the memory that a file of some GB takes above one of some MB, and what is left of a run that is killed again and again.
N = rows, K = heads, D = features
"""

import contextlib
import io
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from omegaconf import OmegaConf

from benchmarks.batch_loops import BATCH, bare_loop, loop_over_file
from benchmarks.report import Row, main, said
from ovr import EdgePredictor
from ovr.backbone.bag import Bag
from ovr.backbone.cnn import Cnn
from ovr.backbone.identity import Identity
from ovr.backbone.mlp import Mlp
from ovr.cli.conf import conf_dir
from ovr.cli.predict import run as predict
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.export.bundle import export_bundle
from ovr.head.linear import Linear
from ovr.input.columns import CategoryColumn, NumericColumn
from ovr.input.table import TableEncoder
from ovr.input.text import HashedText
from ovr.model import Normalizer, OvrModel

DIMENSIONS = 384
CORES = len(os.sched_getaffinity(0))
BAR = 0.9  # of a loop's rate that ours is to reach
WORDS = tuple(f"word{n}" for n in range(5_000))


def bundle_of(path: Path, backbone: Any, input: InputSchema, num_heads: int, reference: np.ndarray) -> Path:
    """Write a bundle with random weights."""
    model = OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), backbone, Linear(backbone.num_features, num_heads=num_heads))
    bundle, _ = export_bundle(
        path,
        model=model,
        taxonomy=Taxonomy.from_ids(f"class {k}" for k in range(num_heads)),
        input=input,
        policy=DecisionPolicy(),
        calibrations=[Calibration(scale=0.5, status="ok")] * num_heads,
        thresholds=[0.5] * num_heads,
        versions=[1] * num_heads,
        metrics=[{}] * num_heads,
        reference_rows=reference,
        calibration_arrays={},
        report={},
        data_parts={},
        provenance={},
    )
    return bundle.path


def table(folder: Path, num_heads: int, num_rows: int) -> tuple[Path, Path]:
    """Return a bundle of 20 numbers and 4 categories with a perceptron of two layers of 256, and a file of rows."""
    numbers = [NumericColumn(f"n{c}", 0.0, 0.0, 1.0, -9.0, 9.0, True) for c in range(20)]
    categories = tuple(f"value {v}" for v in range(8))
    encoder = TableEncoder((*numbers, *(CategoryColumn(f"c{c}", categories, (), True, True) for c in range(4))))
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {column.name: rng.normal(size=num_rows) for column in numbers}
    columns |= {f"c{c}": pa.array(categories).take(pa.array(rng.integers(0, 8, num_rows))) for c in range(4)}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    backbone = Mlp(encoder.tensor.shape, hidden=[256, 256], activation="relu", dropout=0.0)
    schema = InputSchema(encoder.tensor.shape, encoder=encoder.to_json())
    reference = rng.normal(size=(64, *encoder.tensor.shape)).astype(np.float32)
    return bundle_of(folder / "bundle", backbone, schema, num_heads, reference), folder / "rows.parquet"


def embeddings(folder: Path, num_heads: int, num_rows: int, ending: str) -> tuple[Path, Path]:
    """Return a bundle of linear heads on embeddings, and a file of these."""
    x = np.random.default_rng(0).normal(size=(num_rows, DIMENSIONS)).astype(np.float32)
    if ending == "npy":
        np.save(folder / "rows.npy", x)
    else:
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), DIMENSIONS)
        pq.write_table(pa.table({"x": column}), folder / "rows.parquet", use_dictionary=False)
    schema = InputSchema((DIMENSIONS,))
    return bundle_of(folder / "bundle", Identity((DIMENSIONS,)), schema, num_heads, x[:64]), folder / f"rows.{ending}"


def texts(folder: Path, num_heads: int, num_rows: int) -> tuple[Path, Path]:
    """Return a bundle of hashed n-grams with a bag of vectors, and a file of sentences of 12 words."""
    encoder = HashedText(1 << 16, 128)
    rng = np.random.default_rng(0)
    rows = [" ".join(WORDS[w] for w in words) for words in rng.zipf(1.3, size=(num_rows, 12)) % len(WORDS)]
    pq.write_table(pa.table({"text": rows}), folder / "rows.parquet")
    settings = {"idf": False, "min_rows": 1, "l2": True, "init": 0.1, "latent": 0, "latent_weight": 1.0, "token_dropout": 0.0}
    backbone = Bag((128, 2), num_tokens=1 << 16, width=128, dropout=0.0, hidden=[], activation="relu", **settings)
    torch.nn.init.ones_(backbone.scale_V)
    schema = InputSchema((128, 2), encoder=encoder.to_json())
    return bundle_of(folder / "bundle", backbone, schema, num_heads, encoder.encode(rows[:64])), folder / "rows.parquet"


def images(folder: Path, num_heads: int, num_rows: int) -> tuple[Path, Path]:
    """Return a bundle of the network of `experiment=fashion_mnist`, and a file of images of 28 x 28 pixels."""
    x = np.random.default_rng(0).integers(0, 256, (num_rows, 28, 28)).astype(np.float32)
    np.save(folder / "rows.npy", x)
    backbone = Cnn((28, 28), channels=[32, 64], width=256, dropout=0.0)
    return bundle_of(folder / "bundle", backbone, InputSchema((28, 28)), num_heads, x[:64]), folder / "rows.npy"


def raw_rows(path: Path) -> Any:
    """Return all rows of a file as a user of `EdgePredictor` has them in memory."""
    if path.suffix == ".npy":
        return np.load(path)
    table = pq.read_table(path)
    if table.column_names == ["x"]:
        return table["x"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    if table.column_names == ["text"]:
        return table["text"].to_pylist()
    return {name: column.to_pylist() for name, column in zip(table.column_names, table.columns, strict=True)}


def ours(bundle: Path, source: Path, output: Path, workers: int, **more: Any) -> Callable[[], None]:
    settings = OmegaConf.load(conf_dir() / "predict.yaml")
    given = {"bundle": str(bundle), "input": str(source), "output": str(output), "workers": workers, "overwrite": True, **more}
    cfg = OmegaConf.merge(settings, given)

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            predict(cfg)

    return run


@dataclass
class Taken:
    """Seconds of the runs of one call: on the clock, and of processors in all threads."""

    clock_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def by_turns(calls: Sequence[Callable[[], None]], repeats: int) -> list[Taken]:
    """Return what each call takes; each runs once before."""
    seconds = [Taken() for _ in calls]
    for turn in range(repeats + 1):
        for call, taken in zip(calls, seconds, strict=True):
            began, cpu_began = time.perf_counter(), time.process_time()
            call()
            if turn:
                taken.clock_s.append(time.perf_counter() - began)
                taken.cpu_s.append(time.process_time() - cpu_began)
    return seconds


def rates(quick: bool) -> Iterator[Row]:
    repeats = 1 if quick else 3
    cases: list[tuple[str, int, int, Callable[[Path, int, int], tuple[Path, Path]], str]] = [
        ("table, parquet to parquet", 10, 400_000, table, "parquet"),
        ("texts, parquet to parquet", 10, 40_000, texts, "parquet"),
        ("images, npy to parquet", 10, 20_000, images, "parquet"),
        ("table, parquet to parquet", 100, 300_000, table, "parquet"),
        ("table, parquet to parquet", 1000, 80_000, table, "parquet"),
        ("table, parquet to csv", 10, 200_000, table, "csv"),
        ("embeddings, npy to parquet", 10, 600_000, lambda f, k, n: embeddings(f, k, n, "npy"), "parquet"),
        ("embeddings, npy to parquet", 100, 300_000, lambda f, k, n: embeddings(f, k, n, "npy"), "parquet"),
        ("embeddings, parquet to parquet", 100, 200_000, lambda f, k, n: embeddings(f, k, n, "parquet"), "parquet"),
    ]
    if quick:
        cases = [(what, num_heads, num_rows // 200, make, ending) for what, num_heads, num_rows, make, ending in cases[:2]]
    for what, num_heads, num_rows, make, ending in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            bundle, source = make(folder, num_heads, num_rows)
            predictor = EdgePredictor(bundle)
            rows = raw_rows(source)
            x = predictor.encode(rows)
            if ending == "parquet" and not what.startswith("texts"):
                for cores in (1, CORES):
                    loop = loop_over_file(bundle, source, folder / "z.parquet", cores)
                    taken = by_turns([ours(bundle, source, folder / "y.parquet", cores), loop], repeats)
                    yield rate(what, f"loop over the file, {cores} thread(s); workers={cores}", num_heads, num_rows, taken)
                    if cores == 1:
                        yield processors(what, num_heads, num_rows, taken)
                check_same_answers(folder / "y.parquet", folder / "z.parquet")
            for cores in (1, CORES):
                calls = [ours(bundle, source, folder / f"y.{ending}", cores), bare_loop(bundle, x, cores)]
                label = f"bare loop, {cores} thread(s); workers={cores}"
                yield rate(what, label, num_heads, num_rows, by_turns(calls, repeats))
            if what.startswith("texts"):
                run = bare_loop(bundle, x, 1)

                def encoded_first(rows: Any = rows, predictor: EdgePredictor = predictor, run: Callable[[], None] = run) -> None:
                    predictor.encode(rows)
                    run()

                calls = [ours(bundle, source, folder / f"y.{ending}", 1), encoded_first]
                yield rate(what, "encode, then bare loop", num_heads, num_rows, by_turns(calls, repeats))


def rate(what: str, against: str, k: int, num_rows: int, taken: list[Taken]) -> Row:
    a, b = (num_rows / statistics.median(each.clock_s) for each in taken)
    told = []
    for name, each in zip(("ours", "peer"), taken, strict=True):
        cpu_us = statistics.median(each.cpu_s) / num_rows * 1e6
        told.append(f"{name} {min(each.clock_s):.2f} to {max(each.clock_s):.2f} s, {cpu_us:.2f} us of processors a row")
    spread = "; ".join(told)
    return Row(what, against, k, a, b, "rows/s", a / b, f"{num_rows} rows; >= 0.9: {said(a / b >= BAR)}; {spread}")


def check_same_answers(ours: Path, peer: Path) -> None:
    """Raise unless both files have the same columns and, but for the last bits of probabilities, the same values."""
    a, b = pq.read_table(ours), pq.read_table(peer)
    assert a.column_names == b.column_names
    for name in a.column_names:
        if pa.types.is_floating(a[name].type):
            np.testing.assert_allclose(a[name], b[name], atol=1e-6)
        else:
            assert a[name].to_pylist() == b[name].to_pylist(), name


def processors(what: str, k: int, num_rows: int, taken: list[Taken]) -> Row:
    """Return the processors' time of a row beside that of the loop over the file."""
    a, b = (statistics.median(each.cpu_s) / num_rows * 1e6 for each in taken)
    return Row(f"{what}, processors", "loop over the file: >= 0.9", k, a, b, "us a row", b / a, said(b / a >= BAR))


def sizes(quick: bool) -> Iterator[Row]:
    """Yield rates by the rows that ONNX Runtime is given at a time."""
    with tempfile.TemporaryDirectory() as name:
        num_rows = 2_000 if quick else 100_000
        bundle, source = table(Path(name), 10, num_rows)
        output = Path(name) / "y.parquet"
        for batch_size in (64, 1024):
            calls = [ours(bundle, source, output, 1, batch_size=size) for size in (batch_size, BATCH)]
            yield rate(f"table, batch_size={batch_size}", f"batch_size={BATCH}", 10, num_rows, by_turns(calls, 1 if quick else 3))


MEASURE = """
import re, sys
from ovr.cli.main import main
peaks = []
for call in sys.argv[1:]:
    assert main(call.split("|")) == 0
    # Not getrusage, whose maximum a process takes over from the one that started it.
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))
print(peaks[1] - peaks[0], file=sys.stderr)
"""


def memory(quick: bool) -> Iterator[Row]:
    """Yield how much the resident memory grows from a file of few MB to one of some GB."""
    num_rows = 100_000 if quick else 500_000
    for ending in ("parquet",) if quick else ("npy", "parquet"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "small").mkdir()
            _, small = embeddings(folder / "small", 10, 500, ending)
            rng = np.random.default_rng(0)
            source = folder / f"rows.{ending}"
            if ending == "npy":
                large = np.lib.format.open_memmap(source, "w+", np.float32, (num_rows, DIMENSIONS))
                for start in range(0, num_rows, 50_000):
                    large[start : start + 50_000] = rng.random((50_000, DIMENSIONS), np.float32)
                large.flush()
            else:
                schema = pa.schema({"x": pa.list_(pa.float32(), DIMENSIONS)})
                with pq.ParquetWriter(source, schema, use_dictionary=False) as writer:  # one row group of 100,000 rows, 154 MB
                    for _ in range(num_rows // 100_000):
                        column = pa.FixedSizeListArray.from_arrays(
                            pa.array(rng.random(100_000 * DIMENSIONS, np.float32)), DIMENSIONS
                        )
                        writer.write_table(pa.table({"x": column}, schema=schema), row_group_size=100_000)
            size = source.stat().st_size / 1e6
            common = [
                "predict",
                f"bundle={folder / 'small' / 'bundle'}",
                "workers=2",
                "overwrite=true",
                f"output={folder / 'y.parquet'}",
            ]
            calls = ["|".join([*common, f"input={path}"]) for path in (small, source)]
            done = subprocess.run([sys.executable, "-c", MEASURE, *calls], capture_output=True, text=True, check=True)
            grown = int(done.stderr.split()[-1]) / 1e3
            yield Row(f"memory above that of 500 rows, {ending}", "size of the file", 10, grown, size, "MB", size / max(grown, 0.1))


def kills(quick: bool) -> Iterator[Row]:
    """Yield how many runs were killed at random moments before one came through, and whether its bytes are a whole run's."""
    num_rows, num_kills = (60_000, 1) if quick else (400_000, 6)
    rng = random.Random(0)
    for ending in ("parquet",) if quick else ("parquet", "csv"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            bundle, source = embeddings(folder, 10, num_rows, "npy")
            ours(bundle, source, folder / f"whole.{ending}", 2, part_rows=4096)()
            arguments = ["predict", f"bundle={bundle}", f"input={source}", "part_rows=4096", "workers=2"]
            arguments += [f"output={folder / f'y.{ending}'}", "resume=true"]
            killed, went_on = 0, 0
            while killed < num_kills:
                process = subprocess.Popen(
                    [sys.executable, "-m", "ovr", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                journal = folder / f"_y.{ending}.partial" / "journal.jsonl"
                before, more = num_lines(journal), rng.randrange(1, 8)
                went_on += before > 1
                while process.poll() is None and num_lines(journal) < before + more:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.05))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    killed += 1
                process.wait()
                if (folder / f"y.{ending}").exists() and killed < num_kills:
                    check_same(folder / f"y.{ending}", folder / f"whole.{ending}")
                    (folder / f"y.{ending}").unlink()
            if not (folder / f"y.{ending}").exists():
                subprocess.run([sys.executable, "-m", "ovr", *arguments], check=True, capture_output=True)
            check_same(folder / f"y.{ending}", folder / f"whole.{ending}")
            note = f"{went_on} went on with parts of the one before; every output has the bytes of a run that was not killed"
            yield Row(f"outputs that differ, of runs killed, {ending}", "runs killed", 10, 0.0, float(killed), "runs", None, note)


def num_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def check_same(one: Path, other: Path) -> None:
    if one.read_bytes() != other.read_bytes():
        raise AssertionError(f"{one} and {other} differ")


def measure(quick: bool) -> Iterator[Row]:
    yield from rates(quick)
    yield from sizes(quick)
    yield from memory(quick)
    yield from kills(quick)


if __name__ == "__main__":
    main(measure, "Scoring of files against a bare loop of ONNX Runtime, memory, and runs that are killed")
