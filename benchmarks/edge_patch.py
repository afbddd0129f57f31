"""Patches of edge exports (`ovr edge diff`): their bytes against the whole model's, and how long they take to make and to apply.

Seconds are of the clock. Heads are linear, on given features. Every patch is applied, and what comes of it compared with the new
export byte for byte.

D = features, K = heads
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.export import D, export  # first: it pins the number of threads
from benchmarks.report import Row, main
from ovr.core.artifact import Calibration
from ovr.core.bundle import ModelBundle
from ovr.core.taxonomy import ClassSpec
from ovr.edge.apply import apply_patch
from ovr.lifecycle.assemble import NewModel
from ovr.lifecycle.edge_diff import write_patch
from ovr.lifecycle.edge_export import EdgeOptions, export_edge
from ovr.lifecycle.edge_gate import GateRows
from ovr.lifecycle.heads import retire
from ovr.lifecycle.put import NewHead, model_of, put

NUM_ROWS = 400
MARGIN = 0.9  # of int8: these heads are drawn, not trained


def measure(quick: bool) -> Iterator[Row]:
    """Yield a row for each change of a model, in fp32 and in int8."""
    num_heads = 40 if quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = export(root / "bundle", num_heads)
        edits: dict[str, Callable[[Path], ModelBundle]] = {
            "one head retrained": lambda out: put(bundle, out, retrained(bundle, [7]), entry={}).bundle,
            "ten heads retrained": lambda out: put(bundle, out, retrained(bundle, range(20, 30)), entry={}).bundle,
            "one head recalibrated": lambda out: put(bundle, out, recalibrated(bundle), entry={}).bundle,
            "one threshold": lambda out: put(bundle, out, with_threshold(bundle), entry={}).bundle,
            "one class more": lambda out: put(bundle, out, [drawn(ClassSpec("new"), seed=1)], entry={}).bundle,
            "one class less": lambda out: retire(bundle, out, [bundle.taxonomy.ids[7]]).bundle,
        }
        for precision in ("fp32", "int8"):
            old = root / precision
            write_export(bundle, old, precision)
            for what, edit in edits.items():
                if precision == "int8" and "retrained" not in what:
                    continue
                new = root / f"{precision} {what}"
                write_export(edit(root / f"bundle {new.name}"), new, precision)
                yield row_of(f"{precision}: {what}", old, new, num_heads, root)


def row_of(what: str, old: Path, new: Path, num_heads: int, root: Path) -> Row:
    """Return the row of one patch, once it was applied."""
    file, device = root / "patch", root / "device"
    shutil.copytree(old, device)
    began = time.perf_counter()
    made = write_patch(old, new, file)
    diff_s = time.perf_counter() - began
    began = time.perf_counter()
    apply_patch(file, device)
    apply_s = time.perf_counter() - began
    for name in ("model.onnx", "card.json"):
        assert (device / name).read_bytes() == (new / name).read_bytes()
    shutil.rmtree(device)
    file.unlink()
    note = f"D={D}; made in {diff_s:.2f} s, applied in {apply_s:.3f} s"
    return Row(what, "whole model", num_heads, made.size_bytes, made.model_bytes, "bytes", made.model_bytes / made.size_bytes, note)


def write_export(bundle: ModelBundle, out: Path, precision: str) -> None:
    rows = None
    if precision != "fp32":
        rng = np.random.default_rng(0)
        x = rng.normal(size=(NUM_ROWS, D)).astype(np.float32)
        target_NK = rng.random((NUM_ROWS, len(bundle.heads))) < 0.5
        rows = GateRows(target_NK, np.ones_like(target_NK), {"rows": "drawn"}, x=x)
    export_edge(bundle, out, EdgeOptions(precision=precision, margin=MARGIN, refit=False), rows)


def drawn(spec: ClassSpec, *, seed: int) -> NewHead:
    """Return a head with weights of its own."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in (("weight", (1, D)), ("bias", (1,)))}
    return NewHead(spec, NewModel("linear", weights), Calibration(scale=0.5, status="ok"), 0.5)


def retrained(bundle: ModelBundle, columns: Sequence[int]) -> list[NewHead]:
    return [drawn(bundle.taxonomy[column], seed=column) for column in columns]


def recalibrated(bundle: ModelBundle) -> list[NewHead]:
    return [replace(each, calibration=Calibration(scale=0.6, status="ok")) for each in same_head(bundle)]


def with_threshold(bundle: ModelBundle) -> list[NewHead]:
    return [replace(each, threshold=0.6) for each in same_head(bundle)]


def same_head(bundle: ModelBundle) -> list[NewHead]:
    head = bundle.heads[7]
    return [NewHead(bundle.taxonomy[7], model_of(bundle, head), head.calibration, head.threshold)]


if __name__ == "__main__":
    main(measure, __doc__ or "")
