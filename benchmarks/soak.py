"""A server that is kept under load for a long time: errors, latency, memory; and one of which a head is killed again and again.

`ovr serve` serves the router; one process on the same machine asks it for single rows, by turns over HTTP and gRPC, at 70 % of the
rate that 64 clients reached before, who ask again as soon as they are answered. Latency counts from when a request was due. Memory
is what is resident of the server's processes, Triton's and those of its models, in the middle of the load.

`--minutes` (30) is for layout fused. Then, for `--kill-minutes` (10), layout per_head, of which the process of one head is killed
each minute: a request is answered also where that class is marked unavailable. There the peak is that of the seconds after a head
was killed, in which the heads are asked one by one. K = heads
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.export import export
from benchmarks.load import Generator, Job, Seen, Target
from benchmarks.report import Row, main, said
from benchmarks.serving_load import ROUTED
from benchmarks.serving_models import asked_of
from benchmarks.supervision import served, status, stub_of
from ovr.backbone.mlp import Mlp
from ovr.core.bundle import ModelBundle
from ovr.serving import embedded
from ovr.serving.pbtxt import head_model_name
from ovr.serving.repository import publish
from ovr.serving.stubs import find_stubs

NUM_HEADS, NUM_VALUES = 10, 64
SHARE = 0.7  # of the peak
NUM_CLIENTS = 64
MOST_GROWTH, MOST_P95_MS, LEAST_ANSWERED = 1.0, 200.0, 99.9


@dataclass(frozen=True)
class Times:
    """How long what is done, in seconds."""

    soak: float
    kills: float
    peak: float = 10.0
    peak_without: float = 4.0  # within the pause of the breakers
    warm: float = 60.0
    sample: float = 5.0
    kill_every: float = 60.0


@dataclass
class Loaded:
    """What came of a load, and what the server held meanwhile."""

    peak: float  # requests a second
    seen: Seen = field(default_factory=Seen)
    bytes_at: list[int] = field(default_factory=list)
    supervisor_bytes_at: list[int] = field(default_factory=list)
    num_killed: int = 0


def measure(quick: bool, minutes: float, kill_minutes: float) -> Iterator[Row]:
    embedded.install()
    times = Times(minutes * 60, kill_minutes * 60)
    if quick:
        times = Times(2.0, 5.0, peak=0.5, peak_without=0.5, warm=0.5, sample=0.1, kill_every=4.0)
    with tempfile.TemporaryDirectory() as name, Generator() as generator:
        folder = Path(name)
        backbone = Mlp((NUM_VALUES,), hidden=[256], activation="relu", dropout=0.0)
        bundle = export(folder / "bundle", NUM_HEADS, backbone, (NUM_VALUES,))
        if times.soak:
            publish(bundle, folder / "fused")
            yield from soaked(under_load(folder / "fused", bundle, generator, times, times.soak, kill=False))
        if times.kills:
            publish(bundle, folder / "per_head", layout="per_head")
            yield from killed(under_load(folder / "per_head", bundle, generator, times, times.kills, kill=True))


def soaked(loaded: Loaded) -> Iterator[Row]:
    seen, few = loaded.seen, max(1, len(loaded.bytes_at) // 20)
    what = f"soak, {seen.seconds / 60:.3g} minutes"
    note = f"{len(seen.latency_s)} answered at {SHARE:.0%} of a peak of {loaded.peak:.0f} a second"
    yield bar(f"{what}, requests failed", 0, float(seen.num_failed), "requests", "; ".join([note, *seen.told]))
    for quantile in (0.5, 0.99):
        yield Row(f"{what}, p{quantile * 100:.0f}", "-", NUM_HEADS, seen.ms(quantile), None, "ms", None)
    yield bar(f"{what}, p95", MOST_P95_MS, seen.ms(0.95), "ms")
    first, last = (statistics.median(some) / 1e6 for some in (loaded.bytes_at[:few], loaded.bytes_at[-few:]))
    note = f"{first:.1f} MB after warming up, {last:.1f} MB at the end, at most {max(loaded.bytes_at) / 1e6:.1f} MB"
    yield bar(f"{what}, resident memory, growth", MOST_GROWTH, 100 * (last / first - 1), "%", note)
    first, last = (statistics.median(some) / 1e6 for some in (loaded.supervisor_bytes_at[:few], loaded.supervisor_bytes_at[-few:]))
    note = f"{first:.1f} MB, then {last:.1f} MB; not among the server's"
    yield Row(f"{what}, memory of `ovr serve`, growth", "-", NUM_HEADS, 100 * (last / first - 1), None, "%", None, note)


def killed(loaded: Loaded) -> Iterator[Row]:
    seen = loaded.seen
    what = f"{loaded.num_killed} heads killed in {seen.seconds / 60:.3g} minutes"
    total = len(seen.latency_s) + seen.num_failed
    answered = 100 * len(seen.latency_s) / total
    note = "; ".join([f"{seen.num_failed} of {total} failed, at {SHARE:.0%} of a peak of {loaded.peak:.0f} a second", *seen.told])
    met = said(answered >= LEAST_ANSWERED)
    ratio = answered / LEAST_ANSWERED
    yield Row(f"{what}, answered", f">= {LEAST_ANSWERED} %", NUM_HEADS, answered, LEAST_ANSWERED, "%", ratio, f"{met}; {note}")
    share = 100 * seen.num_watched / total
    note = f"{seen.num_watched} requests, among the answered"
    yield Row(f"{what}, with a class unavailable", "-", NUM_HEADS, share, None, "%", None, note)
    for quantile in (0.5, 0.95, 0.99):
        yield Row(f"{what}, p{quantile * 100:.0f}", "-", NUM_HEADS, seen.ms(quantile), None, "ms", None)


def bar(what: str, most: float, got: float, unit: str, note: str = "") -> Row:
    """Return the row of what must be no more than `most`."""
    ratio, told = (most / got if got > 0 and most else None), (said(got <= most), note)
    return Row(what, f"<= {most:g} {unit}", NUM_HEADS, got, float(most), unit, ratio, "; ".join(filter(None, told)))


def under_load(repository: Path, bundle: ModelBundle, generator: Generator, times: Times, seconds: float, *, kill: bool) -> Loaded:
    """Serve, find the peak, warm up, and return what came of the load."""
    with served(repository) as told:
        targets = asked(told, bundle)
        server, rng = int(status(told)["server"]["pid"]), random.Random(0)
        supervisor = supervisor_of(server)
        generator.run(Job(targets, seconds=min(times.peak, 2.0), num_clients=NUM_CLIENTS))
        if kill:
            kill_one(server, bundle, rng)
        seconds_of_peak = times.peak_without if kill else times.peak
        loaded = Loaded(generator.run(Job(targets, seconds=seconds_of_peak, num_clients=NUM_CLIENTS)).rate)
        generator.run(Job(targets, seconds=times.warm, rate=SHARE * loaded.peak))
        began = time.monotonic()
        generator.begin(Job(targets, seconds=seconds, rate=SHARE * loaded.peak))
        next_kill = began + times.kill_every / 2
        while (now := time.monotonic()) < began + seconds:
            loaded.bytes_at.append(sum(map(resident_bytes, (server, *find_stubs(server)))))
            loaded.supervisor_bytes_at.append(resident_bytes(supervisor))
            if kill and now >= next_kill:
                kill_one(server, bundle, rng)
                loaded.num_killed += 1
                next_kill += times.kill_every
            time.sleep(max(0.0, min(times.sample, began + seconds - time.monotonic())))
        loaded.seen = generator.end()
        after = int(status(told)["server"]["pid"])
    if after != server:
        raise SystemExit("the server had to be started again under the load")
    return loaded


def kill_one(server: int, bundle: ModelBundle, rng: random.Random) -> None:
    """Kill the process of one head."""
    os.kill(stub_of(server, head_model_name(rng.choice(bundle.taxonomy.ids))), signal.SIGKILL)


def asked(told: dict[str, str], bundle: ModelBundle) -> Sequence[Target]:
    """Return what asks the router over HTTP and over gRPC."""
    x = np.random.default_rng(0).normal(size=(64, NUM_VALUES)).astype(np.float32)
    outputs = (*ROUTED, "unavailable")
    return [asked_of(told[name], "ovr", bundle.input.name, x, outputs, watched="unavailable") for name in ("HTTP", "gRPC")]


def resident_bytes(process: int) -> int:
    """Return what is resident of a process, 0 where it has gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)


def supervisor_of(server: int) -> int:
    """Return the process that started the server's."""
    return int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill-minutes", type=float, default=10.0)
    chosen, sys.argv[1:] = parser.parse_known_args()
    main(lambda quick: measure(quick, chosen.minutes, chosen.kill_minutes), __doc__)
