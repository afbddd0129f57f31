"""Asking servers from a process of its own, one row a request: as fast as they answer, or at a rate. Knows no model.

Requests are made before: whole HTTP requests as they go over the wire, or serialised messages of gRPC. So all servers are asked by
the same few lines, and what a client library costs is in no figure. N = rows
"""

import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

MAX_TOLD = 5  # failures that are kept in words


@dataclass(frozen=True)
class Target:
    """What is asked, and how: `requests` take turns."""

    url: str  # http://HOST:PORT or grpc://HOST:PORT; "" for a graph in this process
    requests: Sequence[bytes]
    watched: str = ""  # a BOOL output: answers that are true anywhere in it are counted
    graph: str = ""  # an ONNX file that threads of this process run, with `rows`, a row a call
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class Job:
    """A load for some seconds: of `num_clients` that ask again when they are answered, or of `rate` requests a second."""

    targets: Sequence[Target]  # of a load at a rate, by turns; else one
    seconds: float
    num_clients: int = 0
    rate: float = 0.0


@dataclass
class Seen:
    """What came of a load. At a rate, latency counts from when a request was due, whether or not there was a connection then."""

    latency_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: float = 0.0  # until the last answer
    num_failed: int = 0
    num_watched: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latency_s) / self.seconds if self.seconds else 0.0

    def ms(self, quantile: float) -> float:
        """Return a quantile of the latency in milliseconds; NaN where nothing was answered."""
        return float(np.quantile(self.latency_s, quantile)) * 1e3 if len(self.latency_s) else float("nan")

    def and_then(self, later: "Seen") -> "Seen":
        """Return both together."""
        return Seen(
            np.concatenate([self.latency_s, later.latency_s]),
            self.seconds + later.seconds,
            self.num_failed + later.num_failed,
            self.num_watched + later.num_watched,
            (self.told + later.told)[:MAX_TOLD],
        )


class Generator:
    """A process that asks."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.load_process"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])

    def begin(self, job: Job) -> None:
        """Begin to ask; `end` is to follow."""
        assert self._process.stdin is not None
        pickle.dump(job, self._process.stdin)
        self._process.stdin.flush()

    def end(self) -> Seen:
        """Return what came of it, once it is over."""
        assert self._process.stdout is not None
        seen = pickle.load(self._process.stdout)
        if isinstance(seen, Exception):
            raise seen
        assert isinstance(seen, Seen)
        return seen

    def run(self, job: Job) -> Seen:
        """Ask, and return what came of it."""
        self.begin(job)
        return self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
