"""Killing what serves, under load: processes of models, and the server itself, while `ovr serve` looks after them.

Clients, half over HTTP and half over gRPC, ask the router and the ensemble of the heads again and again, each with a pause between
two requests, and count what fails. Clients and server share the machine. Requests of a dead model wait a second before they fail,
which is Triton's own limit.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.export import D, export
from benchmarks.report import Row, main
from benchmarks.swap_clients import client_api
from ovr.core.bundle import ModelBundle
from ovr.serving import embedded
from ovr.serving.pbtxt import head_model_name
from ovr.serving.repository import publish

NUM_HEADS = 4
PAUSE_S = 0.02
QUIET_S = 1.0  # before each kill
READY_S = 60.0
PORTS = ("http_port=0", "grpc_port=0", "metrics_port=0", "health_port=0")
Request = tuple[str, float, float, str]  # model, when it began, when it ended, what was wrong or ""


@dataclass
class Load:
    """What clients have seen."""

    requests: list[Request] = field(default_factory=list)

    def failed(self, model: str, begin: float, end: float) -> list[Request]:
        """Return the requests of a model, begun within a time, that failed."""
        return [request for request in self.requests if request[0] == model and begin <= request[1] < end and request[3]]


def measure(quick: bool) -> Iterator[Row]:
    embedded.install()
    # More kills of one model in so short a time than these are, and it would be given up.
    num_clients, num_servers, num_kills, period_s = (4, 1, 1, 0.0) if quick else (8, 2, 4, 8.0)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(Path(folder) / "bundle", NUM_HEADS)
        publish(bundle, Path(folder) / "repo", layout="per_head")
        for killed in ("ovr", "ovr_scores", head_model_name(bundle.taxonomy.ids[0]), "server"):
            load, kills, num_ended = Load(), [], 0
            for _ in range(num_servers):
                with served(Path(folder) / "repo") as told, under_load(told, bundle, load, num_clients):
                    before = well(told, killed, None)
                    for _ in range(num_kills):
                        time.sleep(QUIET_S)
                        pid = before[0]
                        os.kill(pid if killed == "server" else stub_of(pid, killed), signal.SIGKILL)
                        kills.append(time.monotonic())
                        before = well(told, killed, before)
                        num_ended += before[0] != pid
                        time.sleep(max(QUIET_S, kills[-1] + period_s - time.monotonic()))
            note = f"{num_clients} clients, {len(kills)} kills, {len(load.requests)} requests"
            yield Row(f"{killed}, kills that ended the server", "-", NUM_HEADS, num_ended, None, "kills", None, note)
            for model in ("ovr", "ovr_heads"):
                yield from rows(f"{killed}, {model}", model, load, kills, note)


def rows(what: str, model: str, load: Load, kills: list[float], note: str) -> Iterator[Row]:
    ends = [*(at - QUIET_S for at in kills[1:]), float("inf")]
    failed = [load.failed(model, at - QUIET_S, end) for at, end in zip(kills, ends, strict=True)]
    downs_s = [max((request[2] for request in some), default=at) - at for at, some in zip(kills, failed, strict=True)]
    yield Row(f"{what}, failed a kill", "-", NUM_HEADS, statistics.mean(map(len, failed)), None, "requests", None, note)
    yield Row(f"{what}, last failure, p50", "-", NUM_HEADS, statistics.median(downs_s), None, "s", None)
    yield Row(f"{what}, last failure, longest", "-", NUM_HEADS, max(downs_s), None, "s", None)
    available = 100 * (1 - statistics.mean(downs_s) / 60)
    yield Row(f"{what}, well at a kill a minute", "-", NUM_HEADS, available, None, "%", None)


@contextmanager
def served(repository: Path) -> Iterator[dict[str, str]]:
    """Run `ovr serve` as its users do; yield the addresses that it tells."""
    command = [sys.executable, "-m", "ovr", "serve", f"repository={repository}", *PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            told = {}
            for line in process.stdout:
                if line.startswith("ready"):
                    break
                name, _, value = line.strip().partition(" ")
                told[name] = value.strip()
            yield told
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def status(told: dict[str, str]) -> dict[str, Any]:
    with urllib.request.urlopen(f"{told['health']}/models", timeout=30) as response:
        found: dict[str, Any] = json.load(response)
        return found


def well(told: dict[str, str], killed: str, before: tuple[int, int] | None) -> tuple[int, int]:
    """Return the server's process and how often the model was started again, once that differs and all models answer."""
    deadline = time.monotonic() + READY_S
    while True:
        found = status(told)
        restarts = {model["model"]: model["restarts"] for model in found["models"]}
        now = (int(found["server"]["pid"]), int(restarts.get(killed, 0)))
        if now != before and found["state"] == "ready" and all(model["state"] == "ok" for model in found["models"]):
            return now
        if time.monotonic() > deadline:
            raise SystemExit(f"{killed} was killed, and after {READY_S:.0f} s is not well again: {found}")
        time.sleep(0.05)


def stub_of(server: int, model: str) -> int:
    """Return the process of a model of the server with process `server`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == server and f"/{model}/".encode() in (folder / "cmdline").read_bytes():
                return int(folder.name)
        except OSError:
            continue
    raise SystemExit(f"the server has no process for {model}")


@contextmanager
def under_load(told: dict[str, str], bundle: ModelBundle, load: Load, num_clients: int) -> Iterator[None]:
    over = threading.Event()
    x = np.random.default_rng(0).normal(size=(1, D)).astype(np.float32)
    urls, models = (told["HTTP"], told["gRPC"]), ("ovr", "ovr_heads")
    threads = [
        threading.Thread(target=ask, args=(urls[n % 2], models[n // 2 % 2], bundle.input.name, x, load, over))
        for n in range(num_clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def ask(url: str, model: str, name: str, x: np.ndarray, load: Load, over: threading.Event) -> None:
    """Ask a model again and again, on a new connection after a failure, as a client would that tries again."""
    api, options = client_api(url)
    while not over.is_set():
        with api.InferenceServerClient(urlsplit(url).netloc, **options) as connection:
            problem = ""
            while not over.is_set() and not problem:
                tensor = api.InferInput(name, list(x.shape), "FP32")
                tensor.set_data_from_numpy(x)
                began = time.monotonic()
                try:
                    connection.infer(model, [tensor])
                except Exception as error:  # whatever it is, the request failed
                    problem = f"{type(error).__name__} {error}"
                load.requests.append((model, began, time.monotonic(), problem))
                time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(measure, __doc__)
