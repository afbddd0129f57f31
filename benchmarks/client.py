"""Asking a server from Python: ovr's clients against plain tritonclient, which sends the same rows to the same router.

Wall-clock time on the server's own machine, asked by turns. Single rows: what a client adds to a request, the median of many. Many
rows: one call of ours against a loop over batches as large as the server takes, the fastest of some. The last row is what one row
an execution (`serving=gpu_exact`) costs where batches are possible, from medians of single requests. The models' queues have no
limit (`serving.max_queue_size=0`): with one, Triton 2.51 lets some requests that meet in a queue wait for 500 ms, whoever sent
them, which the first row counts. K = heads
"""

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc as grpc_api
import tritonclient.http as http_api

from benchmarks.export import export
from benchmarks.report import Row, main
from benchmarks.serving import rows
from ovr import AsyncClient, Client
from ovr.serving import embedded
from ovr.serving.repository import publish
from ovr.serving.server import Server, start

NUM_HEADS = 10
OUTPUTS = ("prob", "label", "abstained", "top")
BATCH = 256


def measure(quick: bool) -> Iterator[Row]:
    embedded.install()
    repeats, num_rows, turns = (50, 1_000, 2) if quick else (600, 10_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(Path(folder) / "bundle", NUM_HEADS)
        publish(bundle, Path(folder) / "limited", max_batch_size=BATCH, max_queue_size=1024)
        with start(Path(folder) / "limited") as server:
            num_limited = num_waits(server, repeats)
        publish(bundle, Path(folder) / "repo", max_batch_size=BATCH)
        with start(Path(folder) / "repo") as server:
            note = f"of {2 * repeats} of 64 rows, 2 in flight, gRPC; against max_queue_size=1024"
            yield Row(
                "requests that waited 400 ms",
                "a limited queue",
                NUM_HEADS,
                num_waits(server, repeats),
                num_limited,
                "requests",
                None,
                note,
            )
            for api, url in ((http_api, server.http_url), (grpc_api, server.grpc_url)):
                protocol = url.partition(":")[0]
                with Client(url) as client, api.InferenceServerClient(urlsplit(url).netloc) as connection:
                    yield from of_protocol(protocol, client, Plain(api, connection), repeats, num_rows, turns)
            yield from with_a_loop(server, repeats, num_rows, turns)
            batched_s = seconds_of(server, BATCH, repeats)
        publish(bundle, Path(folder) / "exact", max_batch_size=1)
        with start(Path(folder) / "exact") as server:
            alone_s = seconds_of(server, 1, repeats)
    rate, peer = 1 / alone_s, BATCH / batched_s
    note = "router, gRPC, CPU, one request in flight"
    yield Row("rows a second, one row an execution", f"batches of {BATCH}", NUM_HEADS, rate, peer, "rows/s", rate / peer, note)


class Plain:
    """What a program does with tritonclient."""

    def __init__(self, api: Any, connection: Any) -> None:
        self.api, self.connection = api, connection

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        tensor = self.api.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        outputs = [self.api.InferRequestedOutput(name) for name in OUTPUTS]
        answer = self.connection.infer("ovr", [tensor], outputs=outputs)
        return [answer.as_numpy(name) for name in OUTPUTS]

    def all(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([self(x[start : start + BATCH])[0] for start in range(0, len(x), BATCH)])


def of_protocol(protocol: str, client: Client, plain: Plain, repeats: int, num_rows: int, turns: int) -> Iterator[Row]:
    """Yield single rows and many rows."""
    x, many = rows(1), rows(num_rows)
    ours, peer = in_turn(lambda: client.predict(x), lambda: plain(x), repeats)
    note = f"{(ours - peer) * 1e6:+.0f} us a request"
    yield Row(f"p50 of 1 row, {protocol}", "tritonclient", NUM_HEADS, ours * 1e3, peer * 1e3, "ms", peer / ours, note)
    ours, peer = in_turn(lambda: client.predict(x), lambda: plain(x), repeats, of=statistics.mean, clock=time.process_time)
    note = f"{(ours - peer) * 1e6:+.0f} us a request; the time of this process"
    yield Row(f"CPU of 1 row, {protocol}", "tritonclient", NUM_HEADS, ours * 1e3, peer * 1e3, "ms", peer / ours, note)
    assert client.predict(many).prob_BK.tobytes() == plain.all(many).tobytes()
    with Client(client.url, max_in_flight=1) as single:
        for asked, note in ((single, "one request in flight"), (client, "4 requests in flight")):
            ours, peer = in_turn(lambda: asked.predict(many), lambda: plain.all(many), turns, of=min)  # noqa: B023
            rates = num_rows / ours, num_rows / peer
            yield Row(f"{num_rows} rows, {protocol}", "tritonclient, a loop", NUM_HEADS, *rates, "rows/s", peer / ours, note)


def with_a_loop(server: Server, repeats: int, num_rows: int, turns: int) -> Iterator[Row]:
    """Yield the client for event loops against that for threads."""
    x, many = rows(1), rows(num_rows)
    with asyncio.Runner() as runner:
        for url in (server.http_url, server.grpc_url):
            protocol = url.partition(":")[0]
            looped = AsyncClient(url)
            with Client(url) as client:
                ours, peer = in_turn(lambda: runner.run(looped.predict(x)), lambda: client.predict(x), repeats)  # noqa: B023
                yield Row(f"p50 of 1 row, AsyncClient, {protocol}", "Client", NUM_HEADS, ours * 1e3, peer * 1e3, "ms", peer / ours)
                ours, peer = in_turn(lambda: runner.run(looped.predict(many)), lambda: client.predict(many), turns, of=min)  # noqa: B023
                rates = num_rows / ours, num_rows / peer
                yield Row(f"{num_rows} rows, AsyncClient, {protocol}", "Client", NUM_HEADS, *rates, "rows/s", peer / ours)
            runner.run(looped.close())


def num_waits(server: Server, repeats: int) -> int:
    """Return how many requests took 400 ms or more while two threads asked with plain tritonclient."""
    seconds: list[float] = []

    def ask() -> None:
        with grpc_api.InferenceServerClient(urlsplit(server.grpc_url).netloc) as connection:
            plain, x = Plain(grpc_api, connection), rows(64)
            for _ in range(repeats):
                began = time.perf_counter()
                plain(x)
                seconds.append(time.perf_counter() - began)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(took >= 0.4 for took in seconds)


def seconds_of(server: Server, num_rows: int, repeats: int) -> float:
    """Return the seconds of one request with so many rows, the median."""
    x = rows(num_rows)
    with Client(server.grpc_url) as client:
        return in_turn(lambda: client.predict(x), lambda: None, repeats)[0]


def in_turn(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    repeats: int,
    *,
    of: Callable[[list[float]], float] = statistics.median,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Return the median (or other) seconds of each, asked by turns after one call each that counts for nothing."""
    seconds: dict[Callable[[], Any], list[float]] = {ours: [], peer: []}
    for turn in range(repeats + 1):
        for call in (ours, peer)[:: -1 if turn % 2 else 1]:
            began = clock()
            call()
            seconds[call].append(clock() - began)
    return of(seconds[ours][1:]), of(seconds[peer][1:])


if __name__ == "__main__":
    main(measure, __doc__)
