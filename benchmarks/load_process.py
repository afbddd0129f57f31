"""The process in which `benchmarks.load` asks. Knows no model.

Jobs come by standard input, what came of them goes to standard output.
"""

import asyncio
import pickle
import sys
import threading
import time
from array import array
from collections.abc import Coroutine
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.load import MAX_TOLD, Job, Seen, Target
from benchmarks.load_sockets import END, PAUSE_S, Client, ask_again_and_again

OPEN_CONNECTIONS = 64  # of a load at a rate; requests in flight, of gRPC
LIMIT_S = 60.0  # of a request


def serve() -> None:
    """Do jobs from standard input until it ends."""
    while True:
        try:
            job: Job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            seen: Seen | Exception = _run(job)
        except Exception as error:  # told to who gave the job
            seen = RuntimeError(f"{type(error).__name__} {error}")
        pickle.dump(seen, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _run(job: Job) -> Seen:
    if job.targets[0].graph:
        return _run_graph(job)
    if job.num_clients and all(target.url.startswith("http:") for target in job.targets):
        return _ask_over_sockets(job)
    return asyncio.run(_ask_all(job))


class _Http:
    """One connection."""

    def __init__(self, target: Target) -> None:
        self._target, self._address = target, urlsplit(target.url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> bool:
        """Return whether the watched output is true anywhere; raise where the answer is no 200."""
        return _is_watched(self._target, *await self.fetch(request))

    async def fetch(self, request: bytes) -> tuple[bytes, bytes]:
        """Return the head of the answer in small letters, and its body; raise where it is no 200."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address.hostname, self._address.port)
        reader, writer = self._streams
        try:
            writer.write(request)
            fields = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(_number(fields, b"\r\ncontent-length: "))
        except BaseException:
            writer.close()
            self._streams = None
            raise
        _check(fields, body)
        return fields, body

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


def first_answer(target: Target) -> bytes:
    """Return the body of the answer to the first request of HTTP."""

    async def fetch() -> bytes:
        connection = _Http(target)
        try:
            return (await connection.fetch(target.requests[0]))[1]
        finally:
            await connection.close()

    return asyncio.run(fetch())


def _check(fields: bytes, body: bytes) -> None:
    if not fields.startswith(b"http/1.1 200"):
        raise RuntimeError(f"{fields[:40]!r} {body[:200]!r}")


def _is_watched(target: Target, fields: bytes, body: bytes) -> bool:
    """Return whether the watched output of an answer, if there is one, is true anywhere."""
    if not target.watched:
        return False
    from tritonclient.http import InferenceServerClient

    header = _number(fields, b"\r\ninference-header-content-length: ")
    answer = InferenceServerClient.parse_response_body(body, header_length=header)
    return bool(answer.as_numpy(target.watched).any())


def _number(fields: bytes, name: bytes) -> int:
    start = fields.index(name) + len(name)
    return int(fields[start : fields.index(b"\r\n", start)])


class _Grpc:
    """One channel, whose calls share a connection."""

    def __init__(self, target: Target) -> None:
        import grpc
        from tritonclient.grpc import service_pb2

        self._target = target
        self._channel = grpc.aio.insecure_channel(urlsplit(target.url).netloc)
        self._call = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=None,  # they are serialised
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )

    async def ask(self, request: bytes) -> bool:
        """Return whether the watched output is true anywhere; raise where there is no answer."""
        answer = await self._call(request)
        names = [output.name for output in answer.outputs]
        return bool(self._target.watched) and any(answer.raw_output_contents[names.index(self._target.watched)])

    async def close(self) -> None:
        await self._channel.close()


class _Log:
    def __init__(self) -> None:
        self.latency_s = array("d")
        self.num_failed = self.num_watched = 0
        self.told: list[str] = []

    async def take(self, asked: Coroutine[Any, Any, bool], since: float) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                watched = await asked
        except Exception as error:  # whatever it is, the request failed
            self.fail(error)
            await asyncio.sleep(PAUSE_S)
            return
        self.latency_s.append(time.perf_counter() - since)
        self.num_watched += watched

    def fail(self, error: Exception) -> None:
        self.num_failed += 1
        if len(self.told) < MAX_TOLD:
            self.told.append(f"{type(error).__name__} {error}"[:300])

    def seen(self, seconds: float) -> Seen:
        return Seen(np.array(self.latency_s), seconds, self.num_failed, self.num_watched, self.told)


def _ask_over_sockets(job: Job) -> Seen:
    log = _Log()

    def take(target: Target, answer: bytes) -> None:
        head, _, body = answer.partition(END)
        fields = head.lower() + END
        _check(fields, body)
        log.num_watched += _is_watched(target, fields, body)

    targets = [job.targets[number % len(job.targets)] for number in range(job.num_clients)]
    clients = [Client(target, turn, partial(take, target)) for turn, target in enumerate(targets)]
    try:
        log.latency_s, seconds = ask_again_and_again(clients, job.seconds, LIMIT_S, failed=log.fail)
    finally:
        for client in clients:
            client.close()
    return log.seen(seconds)


async def _ask_all(job: Job) -> Seen:
    opened: list[Any] = []
    try:
        return await (_at_a_rate(job, opened) if job.rate else _again_and_again(job, opened))
    finally:
        for connection in opened:
            await connection.close()


async def _again_and_again(job: Job, opened: list[Any]) -> Seen:
    shared = [None if target.url.startswith("http:") else _Grpc(target) for target in job.targets]
    opened += filter(None, shared)
    log, began = _Log(), time.perf_counter()

    async def client(number: int) -> None:
        which, turn = number % len(job.targets), number
        target = job.targets[which]
        connection = shared[which] or _Http(target)
        opened.append(connection)
        while (now := time.perf_counter()) - began < job.seconds:
            turn += 1
            await log.take(connection.ask(target.requests[turn % len(target.requests)]), now)

    await asyncio.gather(*map(client, range(job.num_clients)))
    return log.seen(time.perf_counter() - began)


async def _at_a_rate(job: Job, opened: list[Any]) -> Seen:
    log, idle = _Log(), []
    for target in job.targets:
        is_http = target.url.startswith("http:")
        own = [_Http(target) if is_http else _Grpc(target) for _ in range(OPEN_CONNECTIONS if is_http else 1)]
        opened += own
        idle.append(asyncio.LifoQueue[Any]())
        for connection in own * (1 if is_http else OPEN_CONNECTIONS):
            idle[-1].put_nowait(connection)
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()

    async def one(number: int, due: float) -> None:
        which, turn = number % len(job.targets), number // len(job.targets)
        connection = await idle[which].get()
        try:
            requests = job.targets[which].requests
            await log.take(connection.ask(requests[turn % len(requests)]), due)
        finally:
            idle[which].put_nowait(connection)

    for number in range(int(job.rate * job.seconds)):
        due = began + number / job.rate
        if (pause_s := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause_s)
        elif number % 16 == 0:
            await asyncio.sleep(0)  # behind: what is answered must be heard all the same
        task = asyncio.create_task(one(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(tasks)
    return log.seen(time.perf_counter() - began)


def _run_graph(job: Job) -> Seen:
    import onnxruntime

    (target,) = job.targets
    assert target.rows is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(target.graph, options, providers=["CPUExecutionProvider"])
    rows = [target.rows[n : n + 1] for n in range(len(target.rows))]
    name, log, began = session.get_inputs()[0].name, _Log(), time.perf_counter()

    def ask(number: int) -> None:
        while (now := time.perf_counter()) - began < job.seconds:
            number += 1
            session.run(None, {name: rows[number % len(rows)]})
            log.latency_s.append(time.perf_counter() - now)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(job.num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return log.seen(time.perf_counter() - began)


if __name__ == "__main__":
    from benchmarks import load_process  # what is pickled is to be of the module, not of this script

    load_process.serve()
