"""Clients of a served router that judge every answer, in processes of their own. No torch, no publishing.

N = rows, K = heads
"""

import json
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

ROWS = (1, 2, 3, 5, 8)  # a request, by turns
PAUSE_S = 0.05  # of a client between two requests: without, clients take the cores that server and publisher need


@dataclass
class Load:
    """What clients have seen."""

    answers: Counter[str] = field(default_factory=Counter)  # by version
    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: "Load") -> None:
        """Take in what other clients have seen."""
        self.answers += other.answers
        self.latencies_s += other.latencies_s
        self.failures += other.failures


@dataclass(frozen=True)
class Judge:
    """Whether an answer is that of one bundle: the one whose card the repository has under the version that the answer names."""

    repository: Path
    prob_NK: Mapping[str, np.ndarray]  # by the bundle's digest: what it answers
    head_versions: Mapping[str, Sequence[int]]
    changed: int  # the column in which the bundles differ
    digests: dict[str, str] = field(default_factory=dict)  # by version

    def problem(self, version: str, prob_NK: np.ndarray, head_version_NK: np.ndarray) -> str:
        """Return what is wrong with an answer for the first rows, "" where nothing is."""
        if version not in self.digests:
            card = json.loads((self.repository / "ovr" / version / "card.json").read_bytes())
            self.digests[version] = card["bundle_sha256"]
        digest, num_rows = self.digests[version], len(prob_NK)
        if digest not in self.prob_NK:
            return f"version {version} is of another bundle, {digest[:12]}"
        if not (head_version_NK == np.array(self.head_versions[digest])).all():
            return f"version {version} answers with heads of versions {head_version_NK[0].tolist()}"
        expected_NK = self.prob_NK[digest][:num_rows]
        untouched_NK = np.delete(next(iter(self.prob_NK.values())), self.changed, axis=1)[:num_rows]
        if np.delete(prob_NK, self.changed, axis=1).tobytes() != untouched_NK.tobytes():
            return f"version {version} answers with other bytes of untouched heads"
        if not np.abs(prob_NK[:, self.changed] - expected_NK[:, self.changed]).max() <= 1e-6:
            return f"version {version} answers with the head of another version"
        return ""


class Clients:
    """`num_clients` clients that ask again and again, by turns over HTTP and gRPC, in `num_processes` processes."""

    def __init__(self, urls: Sequence[str], x: np.ndarray, judge: Judge, *, num_clients: int, num_processes: int) -> None:
        """Start them, and return when every one has been answered."""
        command = [sys.executable, "-m", "benchmarks.swap_clients"]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
            for _ in range(num_processes)
        ]
        for start, process in enumerate(self._processes):
            assert process.stdin is not None
            pickle.dump((urls, x, judge, range(start, num_clients, num_processes)), process.stdin)
            process.stdin.flush()
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("clients could not be started")

    def stop(self) -> Load:
        """Stop them and return what they saw."""
        load = Load()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            assert process.stdout is not None
            load.add(pickle.load(process.stdout))
            process.stdout.close()
            process.wait()
        return load


def run() -> None:
    """Ask in one thread a client as standard input says, until it ends; then write what they saw to standard output."""
    urls, x, judge, numbers = pickle.load(sys.stdin.buffer)
    load, over, ready = Load(), threading.Event(), threading.Semaphore(0)
    threads = [threading.Thread(target=_ask, args=(urls[n % len(urls)], x, judge, n, ready, over, load)) for n in numbers]
    for thread in threads:
        thread.start()
    for _ in threads:
        ready.acquire()
    print("ready", flush=True)
    sys.stdin.buffer.read()
    over.set()
    for thread in threads:
        thread.join()
    pickle.dump(load, sys.stdout.buffer)


def _ask(url: str, x: np.ndarray, judge: Judge, number: int, ready: threading.Semaphore, over: threading.Event, load: Load) -> None:
    """Ask the router until it is over, as any client of Triton does."""
    api, options = client_api(url)
    waiting = True
    with api.InferenceServerClient(urlsplit(url).netloc, **options) as connection:
        while not over.wait(PAUSE_S):
            number += 1
            rows = x[: ROWS[number % len(ROWS)]]
            tensor = api.InferInput("x", list(rows.shape), "FP32")
            tensor.set_data_from_numpy(rows)
            outputs = [api.InferRequestedOutput(name) for name in ("prob", "head_version")]
            began = time.perf_counter()
            try:
                answer = connection.infer("ovr", [tensor], outputs=outputs)
                latency_s = time.perf_counter() - began
                response = answer.get_response()
                version = response["model_version"] if isinstance(response, dict) else response.model_version
                problem = judge.problem(version, answer.as_numpy("prob"), answer.as_numpy("head_version"))
            except Exception as error:  # whatever it is, the request failed
                load.failures.append(f"{url}: {type(error).__name__} {error}")
                continue
            finally:
                if waiting:
                    ready.release()
                waiting = False
            load.latencies_s.append(latency_s)
            load.answers[version] += 1
            if problem:
                load.failures.append(problem)


def client_api(url: str) -> tuple[Any, dict[str, Any]]:
    """Return the module for an address, and the options of its client."""
    if url.startswith("http://"):
        import tritonclient.http as http_api

        return http_api, {"network_timeout": 60.0, "connection_timeout": 60.0}
    import tritonclient.grpc as grpc_api

    return grpc_api, {}


if __name__ == "__main__":
    from benchmarks import swap_clients  # what is pickled is to be of the module, not of this script

    swap_clients.run()
