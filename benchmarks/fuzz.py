"""Requests that are wrong in every way that we know, over HTTP and gRPC, to routers and to the scores of real servers.

Each must get an answer that says that the client is at fault, no path and no stack in it; the server must answer good requests with
the same bytes all along, and its memory must stay. Three servers are asked one after another: of numbers, of texts, and of cells
with cohorts. What is sent is in `fuzz_requests` and `fuzz_router`.
"""

import http.client
import itertools
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from tritonclient.grpc import service_pb2_grpc

from benchmarks.export import D, export
from benchmarks.fuzz_requests import GRPC_KINDS, HTTP_KINDS, Request
from benchmarks.fuzz_router import (
    CELLS,
    GOOD_CELLS,
    GOOD_TEXTS,
    TEXTS,
    GrpcKind,
    HttpKind,
    byte_kinds,
    cohorts_of,
    number_kinds,
    wrong_cells,
    wrong_text,
)
from benchmarks.report import Row, main, said
from ovr import Client
from ovr.core.artifact import DecisionPolicy
from ovr.core.bundle import ModelBundle
from ovr.errors import OvrError
from ovr.runtime.remote.retry import Retry
from ovr.serving import embedded
from ovr.serving.repository import publish
from ovr.serving.server import Server, start

NUM_HEADS = 10
MOST_GROWTH = 3.0  # % of resident memory, in the second half
# Of these Triton 2.51 keeps some 0.25 KB each, and among others its memory grew by 9 KB each: they are sent in a row, afterwards.
KEPT = "packed"
AT_FAULT = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"}
LEAKS = ("/tmp", "/home", "/usr", ".py", "Traceback", "site-packages", "/opt")
POLICY = DecisionPolicy("multilabel", top_k=3)  # with argmax a threshold is refused whatever it is


class Fuzz:
    """One server, what was sent to it, and what is wrong with its answers."""

    def __init__(self, server: Server) -> None:
        """Connect by both protocols."""
        self.server = server
        parts = urlsplit(server.http_url)
        self.http = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
        self.channel = grpc.insecure_channel(server.grpc_url.removeprefix("grpc://"))
        self.infer = self.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", response_deserializer=bytes)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.counts: Counter[tuple[str, str]] = Counter()  # by kind and status
        self.faults: list[str] = []
        self.num_closed = 0  # connections that the server closed

    def over_http(self, kind: str, request: Request) -> None:
        """Send one and judge the answer."""
        status, text = self._send(request)
        if status == 0:  # a connection that is kept may be closed between two requests; a server that is dead stays so
            self.num_closed += 1
            status, text = self._send(request)
        if status == 0 and self.server.is_ready():  # Triton 2.51 now and then closes a connection instead of refusing an address
            self.counts[f"HTTP {kind}", "closed without an answer"] += 1
            return
        # What Triton's own parser of JSON refuses has status 500 in 2.51, by which nobody can tell it from a fault of the server.
        parser = status == 500 and text.startswith((b'{"error":"failed to parse the request JSON', b'{"error":"Unable to parse'))
        self._judge(f"HTTP {kind}", "500 by Triton's parser" if parser else str(status), parser or 400 <= status < 500, text)

    def _send(self, request: Request) -> tuple[int, bytes]:
        try:
            self.http.putrequest(request.method, request.path, skip_accept_encoding=True)
            for name, value in {**request.headers, "Content-Length": str(len(request.body))}.items():
                self.http.putheader(name, value)
            self.http.endheaders(request.body)
            answer = self.http.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.http.close()
            return 0, repr(error).encode()

    def over_grpc(self, kind: str, message: bytes) -> None:
        """Send one and judge the answer."""
        try:
            self.infer(message, timeout=20)
            status, text = "OK", b""
        except grpc.RpcError as error:
            status, text = error.code().name, str(error.details()).encode()
        # What is no message of protobuf, as a text that is not UTF-8 is none, no model and nothing of Triton gets to see.
        parser = (status, text) == ("INTERNAL", b"Unable to parse request")
        self._judge(f"gRPC {kind}", "INTERNAL by gRPC's parser" if parser else status, parser or status in AT_FAULT, text)

    def _judge(self, kind: str, status: str, is_right: bool, text: bytes) -> None:
        self.counts[kind, status] += 1
        leaked = [word for word in LEAKS if word.encode() in text]
        if not is_right or leaked:
            self.faults.append(f"{kind}: {status} {text[:200]!r}")

    def close(self) -> None:
        """Disconnect."""
        self.http.close()
        self.channel.close()


@dataclass(frozen=True, slots=True)
class Memory:
    """What is resident, in MiB: of the server's own process, and of those of its models, which run our code."""

    server: float
    models: float


def memory_of(pid: int) -> Memory:
    """Return the memory of the server with process `pid`."""
    server = models = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        size = int(fields.get("VmRSS", "0").split()[0])
        if int(fields["Pid"]) == pid:
            server += size
        elif int(fields["PPid"]) == pid:
            models += size
    return Memory(server / 1024, models / 1024)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked: a router, and what it must refuse and what it must answer."""

    name: str
    share: float  # of all requests
    rows: Any  # that are right
    http: Mapping[str, HttpKind]
    grpc: Mapping[str, GrpcKind]
    made: Callable[[Path], ModelBundle]


def subjects() -> tuple[Subject, ...]:
    """Return what is asked, one after another."""
    http_kinds, grpc_kinds = number_kinds()
    x = np.random.default_rng(0).normal(size=(3, D)).astype(np.float32)
    numbers = Subject("numbers", 0.6, x, HTTP_KINDS | http_kinds, GRPC_KINDS | grpc_kinds, bundle_of(None))
    texts = byte_kinds("text", [text.encode() for text in GOOD_TEXTS], wrong_text, cohorts=False)
    cells = byte_kinds("row", [json.dumps(row).encode() for row in GOOD_CELLS], wrong_cells, cohorts=True)
    return (
        numbers,
        Subject("texts", 0.15, GOOD_TEXTS, *texts, bundle_of(TEXTS)),
        Subject("cells", 0.25, GOOD_CELLS, *cells, bundle_of(CELLS, cohorts=cohorts_of(NUM_HEADS))),
    )


def bundle_of(encoder: Any, **more: Any) -> Callable[[Path], ModelBundle]:
    """Return what writes a bundle that takes what this encoder does."""
    own = {} if encoder is None else {"shape": encoder.tensor.shape, "encoder": encoder.to_json()}
    return partial(export, num_heads=NUM_HEADS, policy=POLICY, **own, **more)


class GoodRequests:
    """Good requests beside the wrong ones, in a thread, by turns over HTTP and gRPC: each must have the same bytes as the first.

    Where one request of a batch has a text that is shorter than it says, Triton 2.51 refuses the whole batch in these words, before
    the router has it: such answers are counted apart.
    """

    def __init__(self, server: Server, rows: Any) -> None:
        """Ask once."""
        self.faults: list[str] = []
        self.num_asked = self.num_refused_with_others = 0
        self._rows, self._over = rows, threading.Event()
        self._clients = [Client(url, retry=Retry(attempts=1)) for url in (server.http_url, server.grpc_url)]
        self._right = self._clients[0].predict(rows).prob_BK.tobytes()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "GoodRequests":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for client in self._clients:
            client.close()

    def _ask(self) -> None:
        for client in itertools.cycle(self._clients):
            if self._over.is_set():
                return
            try:
                is_right = client.predict(self._rows).prob_BK.tobytes() == self._right
                problem = "" if is_right else "other bytes"
            except OvrError as error:
                problem = str(error)
            if "incomplete string data for inference input" in problem:
                self.num_refused_with_others += 1
            elif problem:
                self.faults.append(f"a good request over {client.url}: {problem[:200]}")
            self.num_asked += 1


def run(server: Server, num_requests: int, subject: Subject, *, seed: int = 0) -> tuple[Fuzz, list[Memory], GoodRequests]:
    """Send so many wrong requests beside good ones; return what came, and the memory after each tenth."""
    rng, fuzz, memory = random.Random(seed), Fuzz(server), []
    http_kinds = [kind for kind in subject.http if kind != KEPT]
    with GoodRequests(server, subject.rows) as good_ones:
        for number in range(1, num_requests + 1):
            model = rng.choice(["ovr", "ovr_scores"])
            if rng.random() < 0.6:
                kind = rng.choice(http_kinds)
                fuzz.over_http(kind, subject.http[kind](rng, model))
            else:
                kind = rng.choice(list(subject.grpc))
                fuzz.over_grpc(kind, subject.grpc[kind](rng, model))
            if number % max(1, num_requests // 10) == 0:
                memory.append(memory_of(server.process.pid))
    fuzz.faults += good_ones.faults
    fuzz.close()
    return fuzz, memory, good_ones


def in_a_row(server: Server, subject: Subject, num_each: int) -> tuple[Fuzz, dict[str, float]]:
    """Send wrong requests kind after kind; return what came, and by how many bytes a request the server's own process grew."""
    rng, fuzz, kept = random.Random(1), Fuzz(server), {}
    for protocol, kinds in (("HTTP", subject.http), ("gRPC", subject.grpc)):
        for kind, make in kinds.items():
            before = memory_of(server.process.pid).server
            for _ in range(num_each):
                wrong = make(rng, "ovr")
                fuzz.over_http(kind, wrong) if isinstance(wrong, Request) else fuzz.over_grpc(kind, wrong)
            kept[f"{protocol} {kind}"] = (memory_of(server.process.pid).server - before) * 2**20 / num_each
    fuzz.close()
    return fuzz, kept


def measure(quick: bool) -> Iterator[Row]:
    embedded.install()
    num_requests, num_each = (600, 20) if quick else (30_000, 2_000)
    faults: list[str] = []
    for subject in subjects():
        with tempfile.TemporaryDirectory() as folder:
            publish(subject.made(Path(folder) / "bundle"), Path(folder) / "repo")
            with start(Path(folder) / "repo") as server:
                began = time.perf_counter()
                fuzz, memory, good_ones = run(server, round(num_requests * subject.share), subject)
                seconds = time.perf_counter() - began
                alone, kept = in_a_row(server, subject, num_each)
        faults += [f"{subject.name}: {fault}" for fault in (*fuzz.faults, *alone.faults)]
        for (kind, status), count in sorted(fuzz.counts.items()):
            yield Row(f"{subject.name}, {kind}", "-", NUM_HEADS, count, None, "requests", None, status)
        note = f"{seconds:.0f} s, beside {good_ones.num_asked} good ones"
        yield Row(f"{subject.name}, all", "-", NUM_HEADS, fuzz.counts.total(), None, "requests", None, note)
        what = f"{subject.name}, sent again, as the connection was closed"
        yield Row(what, "-", NUM_HEADS, fuzz.num_closed, None, "requests", None)
        what = f"{subject.name}, good ones that were refused with another's cut text in their batch"
        yield Row(what, "-", NUM_HEADS, good_ones.num_refused_with_others, None, "requests", None)
        yield from memory_rows(subject.name, memory)
        for kind, size in kept.items():
            what = f"{subject.name}, kept by the server, {kind}"
            yield Row(what, "-", NUM_HEADS, size, None, "bytes a request", None, f"{num_each} in a row")
    for fault in faults[:20]:
        print(fault)
    what = "answered wrongly, with a path, or not at all, or a good one otherwise than before"
    yield Row(what, "<= 0", NUM_HEADS, len(faults), 0, "requests", None, said(not faults))


def memory_rows(name: str, memory: list[Memory]) -> Iterator[Row]:
    """Yield by what memory grew in the second half: it may while a server warms up."""
    times = {"a tenth": memory[0], "half": memory[len(memory) // 2 - 1], "all": memory[-1]}
    parts = ", ".join(f"{each.server:.1f} and {each.models:.1f} after {when}" for when, each in times.items())
    half_mib, all_mib = (each.server + each.models for each in (times["half"], times["all"]))
    growth = 100 * (all_mib / half_mib - 1)
    what, note = f"{name}, memory, growth in the second half", f"{said(growth <= MOST_GROWTH)}; MiB of server and models: {parts}"
    yield Row(what, f"<= {MOST_GROWTH:g} %", NUM_HEADS, growth, MOST_GROWTH, "%", None, note)


if __name__ == "__main__":
    main(measure, __doc__)
