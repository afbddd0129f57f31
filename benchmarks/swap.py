"""Publishing under load: 64 clients over HTTP and gRPC ask a server while bundles that differ in one head take turns.

Every answer must be of one bundle, whole: the version that it names tells which, its head versions and its probabilities are that
bundle's, and those of the untouched heads have the same bytes in every answer. On the server's own machine, which clients, server
and publisher share; clients ask again as soon as they are answered. N = rows, K = heads
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.export import D, export
from benchmarks.report import Row, main
from benchmarks.swap_clients import PAUSE_S, ROWS, Clients, Judge, Load
from ovr import EdgePredictor
from ovr.core.artifact import Calibration
from ovr.core.bundle import ModelBundle
from ovr.lifecycle.assemble import NewModel
from ovr.lifecycle.put import NewHead, put
from ovr.serving import embedded
from ovr.serving.control import live_versions
from ovr.serving.repository import publish, settle
from ovr.serving.server import Server, start

NUM_HEADS = 10
CHANGED = 3  # the column of the head in which the bundles differ
PACE = 0.95  # of the time is for the swaps, so that the last old version is unloaded within it
NUM_PROCESSES = 2  # of clients: one has no more than a core


@dataclass
class Swaps:
    """What the publisher has seen; times of one swap each."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)  # of the publisher alone
    seconds: float = 0.0  # from the first swap's beginning until the last old version was unloaded
    settle_s: float = 0.0
    most_loaded: int = 0  # versions of the scores at once, after a swap


def measure(quick: bool) -> Iterator[Row]:
    embedded.install()
    num_clients, num_swaps, num_bundles, seconds = (8, 4, 3, 3.0) if quick else (64, 50, 26, 60.0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundles = one_head_apart(export(root / "bundle0", NUM_HEADS), root, num_bundles)
        publish(bundles[0], root / "repo")
        with start(root / "repo") as server:
            swaps, load = under_load(server, root / "repo", bundles, num_clients=num_clients, num_swaps=num_swaps, seconds=seconds)
    for failure in load.failures[:5]:
        print(failure)
    pause = f"each waits {PAUSE_S * 1e3:.0f} ms between requests"
    note = f"{num_clients} clients, half over HTTP, half over gRPC, {load.seconds:.0f} s; {pause}"
    yield Row("requests", "-", NUM_HEADS, len(load.latencies_s), None, "requests", None, note)
    yield Row("requests a second", "-", NUM_HEADS, len(load.latencies_s) / load.seconds, None, "1/s", None)
    yield Row("requests failed or not of one bundle", "-", NUM_HEADS, len(load.failures), None, "requests", None)
    yield Row("swaps of one head", "-", NUM_HEADS, len(swaps.wall_s), None, "swaps", None, f"of {num_bundles} bundles")
    yield Row("all swaps", "-", NUM_HEADS, swaps.seconds, None, "s", None, "until the last old version is unloaded")
    yield Row("swap, p50", "-", NUM_HEADS, statistics.median(swaps.wall_s), None, "s", None)
    yield Row("swap, longest", "-", NUM_HEADS, max(swaps.wall_s), None, "s", None)
    yield Row("swap, CPU of the publisher, p50", "-", NUM_HEADS, statistics.median(swaps.cpu_s), None, "s", None)
    yield Row("unloading at the end", "-", NUM_HEADS, swaps.settle_s, None, "s", None)
    yield Row("versions loaded at once, most", "-", NUM_HEADS, swaps.most_loaded, None, "versions", None)
    yield Row("request, p50", "-", NUM_HEADS, statistics.median(load.latencies_s) * 1e3, None, "ms", None)
    yield Row("request, p99", "-", NUM_HEADS, float(np.quantile(load.latencies_s, 0.99)) * 1e3, None, "ms", None)
    yield Row("request, longest", "-", NUM_HEADS, max(load.latencies_s) * 1e3, None, "ms", None)


def one_head_apart(bundle: ModelBundle, root: Path, num_bundles: int) -> list[ModelBundle]:
    """Return so many bundles: `bundle`, and others with another head in column `CHANGED`."""
    bundles = [bundle]
    for seed in range(1, num_bundles):
        weight_1D = np.random.default_rng(seed).normal(scale=0.05, size=(1, D)).astype(np.float32)
        model = NewModel("linear", {"weight": weight_1D, "bias": np.zeros(1, np.float32)})
        head = NewHead(bundle.taxonomy[CHANGED], model, Calibration(scale=0.5, status="ok"), threshold=0.5)
        bundles.append(put(bundles[-1], root / f"bundle{seed}", [head], entry={"command": "head replace"}).bundle)
    return bundles


def under_load(
    server: Server, repository: Path, bundles: Sequence[ModelBundle], *, num_clients: int, num_swaps: int, seconds: float
) -> tuple[Swaps, Load]:
    """Publish the bundles by turns until there were so many swaps, spread over so many seconds; return what was seen.

    The first of the bundles is served already. Those that were published before are switched back to.
    """
    swaps = Swaps()
    x = np.random.default_rng(0).normal(size=(max(ROWS), *bundles[0].input.shape)).astype(np.float32)
    judge = judge_of(repository, bundles, x)
    clients = Clients(
        (server.http_url, server.grpc_url), x, judge, num_clients=num_clients, num_processes=min(NUM_PROCESSES, num_clients)
    )
    began = time.perf_counter()
    try:
        while len(swaps.wall_s) < num_swaps:
            swap_began, cpu_began = time.perf_counter(), time.process_time()
            publish(bundles[(len(swaps.wall_s) + 1) % len(bundles)], repository, server=server.http_url, wait=False)
            swaps.wall_s.append(time.perf_counter() - swap_began)
            swaps.cpu_s.append(time.process_time() - cpu_began)
            swaps.most_loaded = max(swaps.most_loaded, len(live_versions(server.http_url, "ovr_scores")))
            time.sleep(max(0.0, began + PACE * seconds * len(swaps.wall_s) / num_swaps - time.perf_counter()))
        settle_began = time.perf_counter()
        settle(repository, server.http_url)
        swaps.settle_s = time.perf_counter() - settle_began
        swaps.seconds = time.perf_counter() - began
        time.sleep(max(0.0, seconds - swaps.seconds))
    finally:
        asked_s = time.perf_counter() - began
        load = clients.stop()
    load.seconds = asked_s
    return swaps, load


def judge_of(repository: Path, bundles: Sequence[ModelBundle], x: np.ndarray) -> Judge:
    """Return what judges answers for the first of the rows `x`."""
    prob_NK = {bundle.bundle_sha256: EdgePredictor(bundle.path).predict_proba(x) for bundle in bundles}
    columns = [prob_NK[0, CHANGED] for prob_NK in prob_NK.values()]
    assert min(abs(a - b) for i, a in enumerate(columns) for b in columns[:i]) > 1e-5, "the bundles must answer differently"
    return Judge(repository, prob_NK, {bundle.bundle_sha256: bundle.card.head_versions for bundle in bundles}, CHANGED)


if __name__ == "__main__":
    main(measure, __doc__)
