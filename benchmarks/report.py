"""How every benchmark measures, prints and stores its rows. Knows nothing of what is measured.

A script calls `main(measure, "what it compares")`; `measure(quick)` yields rows. Each row is printed when it is there.
Importing this module first pins numerical libraries to one thread, unless the environment says otherwise.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.bars import told

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


TURN_S = 0.01


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `ratio` is how many times better ours is: peer / ours for times and sizes, ours / peer for rates."""

    what: str
    against: str  # the peer, or "-" where a figure stands alone
    k: int | None
    ours: float
    peer: float | None
    unit: str
    ratio: float | None
    note: str = ""


def said(met: bool) -> str:
    """Return how a bar is told of in a note."""
    return "the bar is met" if met else "the bar is MISSED"


def timed(
    what: str, against: str, k: int | None, ours: Callable[[], Any], peer: Callable[[], Any], *, repeats: int, note: str = ""
) -> Row:
    """Return the row of two callables, timed as `interleaved` does."""
    seconds = interleaved({"ours": ours, "peer": peer}, repeats=repeats)
    a, b = seconds["ours"], seconds["peer"]
    return Row(what, against, k, a, b, "s", b / a, note)


def interleaved(calls: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Return the CPU seconds of this process that each call takes, the median of `repeats` turns.

    In a turn all are run one after the other, each as often as fills `TURN_S`: a short call should not pay for the caches that the
    one before it left, so every other turn is in reverse as well. Each runs once or twice before: imports count for none.
    """
    first = {name: cpu_seconds(call) for name, call in calls.items()}
    # With imports in it the first run of a short call is no measure.
    again = {name: cpu_seconds(call) if first[name] < 50 * TURN_S else first[name] for name, call in calls.items()}
    times = {name: max(1, min(1000, round(TURN_S / max(seconds_once, 1e-6)))) for name, seconds_once in again.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in list(calls.items())[:: -1 if turn % 2 else 1]:
            seconds[name].append(cpu_seconds(partial(_repeat, call, times[name])) / times[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def _repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Return the CPU time that `call` takes in all threads of this process: other processes do not disturb it."""
    start = time.process_time()
    call()
    return time.process_time() - start


def machine() -> dict[str, Any]:
    """Return what the figures were measured on: processor, cores, GPU if torch has been imported and sees one, Python, versions."""
    names = (
        "numpy", "scipy", "torch", "triton", "lightning", "onnx", "onnxruntime", "scikit-learn", "netcal", "torch-uncertainty",
        "tritonclient",
    )  # fmt: skip
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": os.environ["OMP_NUM_THREADS"],
        **_gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def main(measure: Callable[[bool], Iterable[Row]], description: str) -> None:
    """Run `measure` as a script: `--quick` for a smoke run, `--json FILE` to store date, machine and rows."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: shows that it works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="store date, machine and rows here")
    arguments = parser.parse_args()
    where, date = machine(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    print(f"{date}  {where['cpu']}, {where['cores']} cores, {where['threads']} thread(s), Python {where['python']}")
    print(" ".join(f"{name} {version}" for name, version in where["versions"].items()))
    print(f"{'what':<44}{'against':<30}{'K':>8}{'ours':>12}{'peer':>12} {'unit':<8}{'ratio':>9}")
    rows = []
    for measured in measure(arguments.quick):
        row = measured if arguments.quick else _held_to_bars(measured)
        rows.append(row)
        k, peer, ratio = (_cell(value) for value in (row.k, row.peer, row.ratio))
        print(f"{row.what:<44}{row.against:<30}{k:>8}{_cell(row.ours):>12}{peer:>12} {row.unit:<8}{ratio:>9}  {row.note}")
        sys.stdout.flush()
    if arguments.json is not None:
        report = {"date": date, "quick": arguments.quick, "machine": where, "rows": [asdict(row) for row in rows]}
        store(arguments.json, report)


def store(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, unless it is empty, or the one that is there has sets (`SET: what`) that it lacks: then say so."""
    if not report["rows"]:
        print(f"not stored in {path}: nothing was measured", file=sys.stderr)
        return
    if path.is_file() and (lost := _sets(json.loads(path.read_text())) - _sets(report)):
        print(
            f"not stored: {path} has {', '.join(sorted(lost))}, which this run lacks; remove it to store this one", file=sys.stderr
        )
        return
    path.write_text(json.dumps(report, indent=1) + "\n")


def _sets(report: Mapping[str, Any]) -> set[str]:
    return {row["what"].split(":")[0] for row in report["rows"] if ":" in row["what"]}


def _held_to_bars(row: Row) -> Row:
    """Return the row with what its bars say in its note."""
    script = Path(sys.argv[0]).stem
    notes = [note for note in (row.note, told(script, asdict(row))) if note]
    return replace(row, note="; ".join(notes))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _gpu() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": gpu.name,
        "gpu memory": f"{gpu.total_memory / 2**30:.0f} GiB",
        "compute capability": f"{gpu.major}.{gpu.minor}",
        "cuda": torch.version.cuda,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or "unknown"
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in values:
        return platform.machine()
    known = [f"{name} {values[name]}" for name in ("cpu family", "model") if name in values]  # the name may tell the maker alone
    return f"{values['model name']} ({' '.join(known)})" if known else values["model name"]
