"""Answering from Triton: the fused graph against an ensemble of one model a head, the router against the fused graph alone.

Wall-clock time of one client on the server's own machine, over gRPC unless said otherwise; then ours and others' servers under
load (see `serving_load`). `--peers PYTHON` names an environment with `benchmarks/peers/requirements.txt`; without it one is made by
pip in the user's cache, or with `--quick` these peers are left out, as with `--peers none`. K = heads
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc_api

from benchmarks import peer_servers, serving_load
from benchmarks.export import D, export
from benchmarks.load import Generator
from benchmarks.report import Row, main
from ovr import Client
from ovr.serving import embedded
from ovr.serving.repository import publish
from ovr.serving.server import Server, start


def measure(quick: bool, peers: Path | None) -> Iterator[Row]:
    embedded.install()
    yield from of_one_client(quick)
    if peers is not None:
        print(peer_servers.versions(peers))
    with tempfile.TemporaryDirectory() as folder, Generator() as generator:
        yield from serving_load.measure(Path(folder), generator, quick=quick, peers=peers)


def of_one_client(quick: bool) -> Iterator[Row]:
    repeats = 50 if quick else 500
    with tempfile.TemporaryDirectory() as folder:
        for num_heads in (10,) if quick else (10, 100):
            root = Path(folder) / str(num_heads)
            bundle = export(root / "bundle", num_heads)
            publish(bundle, root / "fused", layout="fused")
            publish(bundle, root / "per_head", layout="per_head")
            fused_s, fused = started(root / "fused")
            with fused:
                heads_s, heads = started(root / "per_head")
                with heads:
                    yield Row("start until ready", "per-head ensemble", num_heads, fused_s, heads_s, "s", heads_s / fused_s)
                    yield from against_ensemble(fused, heads, num_heads, repeats)
                began = time.perf_counter()
            stop_s = time.perf_counter() - began
            yield Row("stop", "-", num_heads, stop_s, None, "s", None)
        publish(export(root / "wide", 1000), root / "repo1000")
        ready_s, wide = started(root / "repo1000")
        with wide:
            yield Row("start until ready", "-", 1000, ready_s, None, "s", None)
            yield from through_router(wide, 1000, repeats)


def against_ensemble(fused: Server, heads: Server, num_heads: int, repeats: int) -> Iterator[Row]:
    """Yield the latency of the fused graph and of the ensemble, asked in turn."""
    yield from through_router(fused, num_heads, repeats)
    with Client(fused.grpc_url) as client, grpc_api.InferenceServerClient(heads.grpc_url.removeprefix("grpc://")) as connection:
        for batch_size in (1, 32):
            x = rows(batch_size)
            tensor = grpc_api.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
            ours, peer = medians_ms(lambda x=x: client.scores(x), lambda t=tensor: connection.infer("ovr_heads", [t]), repeats)
            yield Row(f"p50 of {batch_size} rows, fused", "per-head ensemble", num_heads, ours, peer, "ms", peer / ours)


def through_router(server: Server, num_heads: int, repeats: int) -> Iterator[Row]:
    """Yield what the router adds: checks, decision and a second hop."""
    for url in (server.grpc_url, server.http_url):
        with Client(url) as client:
            for batch_size in (1, 32):
                x = rows(batch_size)
                routed, direct = medians_ms(lambda x=x: client.predict(x), lambda x=x: client.scores(x), repeats)
                what = f"p50 of {batch_size} rows, router, {url.partition(':')[0]}"
                yield Row(what, "fused graph alone", num_heads, routed, direct, "ms", direct / routed)


def medians_ms(ours: Callable[[], Any], peer: Callable[[], Any], repeats: int) -> tuple[float, float]:
    ours_s, peer_s = [], []
    for _ in range(repeats + 5):
        for call, times in ((ours, ours_s), (peer, peer_s)):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return statistics.median(ours_s[5:]) * 1e3, statistics.median(peer_s[5:]) * 1e3


def started(repository: Path) -> tuple[float, Server]:
    began = time.perf_counter()
    server = start(repository)
    return time.perf_counter() - began, server


def rows(num_rows: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_rows, D)).astype(np.float32)


def chosen_peers(given: str | None, quick: bool) -> Path | None:
    """Return the Python of the peers."""
    if given is None:
        return None if quick else peer_servers.environment()
    return None if given == "none" else Path(given)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peers")
    chosen, sys.argv[1:] = parser.parse_known_args()
    main(lambda quick: measure(quick, chosen_peers(chosen.peers, quick)), __doc__)
