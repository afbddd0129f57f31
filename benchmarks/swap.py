"""Publishing under load: 64 clients over HTTP and gRPC ask a server while bundles that differ in one head take turns.

Every answer must be of one bundle, whole: the version that it names tells which, its head versions and its probabilities are that
bundle's, and those of the untouched heads have the same bytes in every answer. On the server's own machine, which clients, server
and publisher share. N = rows, K = heads
"""

import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.export import D, export
from benchmarks.report import Row, main
from ovr import EdgePredictor
from ovr.core.artifact import Calibration
from ovr.core.bundle import ModelBundle
from ovr.lifecycle.assemble import NewModel
from ovr.lifecycle.put import NewHead, put
from ovr.serving import embedded
from ovr.serving.repository import publish
from ovr.serving.server import Server, start

NUM_HEADS = 10
CHANGED = 3  # the column of the head in which the bundles differ
ROWS = (1, 2, 3, 5, 8)  # a request, by turns


@dataclass
class Load:
    """What clients have seen so far."""

    answers: Counter[str] = field(default_factory=Counter)  # by version
    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    swaps_s: list[float] = field(default_factory=list)
    seconds: float = 0.0


def measure(quick: bool) -> Iterator[Row]:
    embedded.install()
    num_clients, num_swaps, seconds = (8, 4, 3.0) if quick else (64, 50, 60.0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundles = one_head_apart(export(root / "bundle0", NUM_HEADS), root)
        publish(bundles[0], root / "repo")
        with start(root / "repo") as server:
            load = under_load(server, root / "repo", bundles, num_clients=num_clients, num_swaps=num_swaps, seconds=seconds)
    for failure in load.failures[:5]:
        print(failure)
    note = f"{num_clients} clients, half over HTTP, half over gRPC, {load.seconds:.0f} s"
    yield Row("requests", "-", NUM_HEADS, len(load.latencies_s), None, "requests", None, note)
    yield Row("requests failed or not of one bundle", "-", NUM_HEADS, len(load.failures), None, "requests", None)
    yield Row("swaps of one head", "-", NUM_HEADS, len(load.swaps_s), None, "swaps", None)
    yield Row("swap, p50", "-", NUM_HEADS, statistics.median(load.swaps_s), None, "s", None)
    yield Row("swap, longest", "-", NUM_HEADS, max(load.swaps_s), None, "s", None)
    yield Row("request, p50", "-", NUM_HEADS, statistics.median(load.latencies_s) * 1e3, None, "ms", None)
    yield Row("request, p99", "-", NUM_HEADS, float(np.quantile(load.latencies_s, 0.99)) * 1e3, None, "ms", None)
    yield Row("request, longest", "-", NUM_HEADS, max(load.latencies_s) * 1e3, None, "ms", None)


def one_head_apart(bundle: ModelBundle, root: Path) -> list[ModelBundle]:
    """Return three bundles: `bundle`, and two with another head in column `CHANGED`."""
    bundles = [bundle]
    for seed in (1, 2):
        weight_1D = np.random.default_rng(seed).normal(scale=0.05, size=(1, D)).astype(np.float32)
        model = NewModel("linear", {"weight": weight_1D, "bias": np.zeros(1, np.float32)})
        head = NewHead(bundle.taxonomy[CHANGED], model, Calibration(scale=0.5, status="ok"), threshold=0.5)
        bundles.append(put(bundles[-1], root / f"bundle{seed}", [head], entry={"command": "head replace"}).bundle)
    return bundles


def under_load(
    server: Server, repository: Path, bundles: Sequence[ModelBundle], *, num_clients: int, num_swaps: int, seconds: float
) -> Load:
    """Publish the bundles by turns until there were so many swaps and so many seconds, and return what the clients saw.

    The first of the bundles is served already. Those that were published before are switched back to.
    """
    load, over = Load(), threading.Event()
    x = np.random.default_rng(0).normal(size=(max(ROWS), *bundles[0].input.shape)).astype(np.float32)
    judge = Judge(repository, bundles, x)
    urls = (server.http_url, server.grpc_url)
    threads = [threading.Thread(target=ask, args=(urls[n % 2], x, judge, load, over, n)) for n in range(num_clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    try:
        while len(load.swaps_s) < num_swaps or time.perf_counter() - began < seconds:
            swap_began = time.perf_counter()
            publish(bundles[(len(load.swaps_s) + 1) % len(bundles)], repository, server=server.http_url)
            load.swaps_s.append(time.perf_counter() - swap_began)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    load.seconds = time.perf_counter() - began
    return load


class Judge:
    """Whether an answer is that of one bundle: the one whose card the repository has under the version that the answer names."""

    def __init__(self, repository: Path, bundles: Sequence[ModelBundle], x: np.ndarray) -> None:
        """Compute what each bundle answers."""
        self.repository = repository
        self.bundle_of = {bundle.bundle_sha256: bundle for bundle in bundles}
        self.prob_NK = {bundle.bundle_sha256: EdgePredictor(bundle.path).predict_proba(x) for bundle in bundles}
        columns = [prob_NK[0, CHANGED] for prob_NK in self.prob_NK.values()]
        assert min(abs(a - b) for i, a in enumerate(columns) for b in columns[:i]) > 1e-3, "the bundles must answer differently"
        self.untouched_NK = np.delete(self.prob_NK[bundles[0].bundle_sha256], CHANGED, axis=1)
        self._digests: dict[str, str] = {}

    def problem(self, version: str, prob_NK: np.ndarray, head_version_NK: np.ndarray) -> str:
        """Return what is wrong with an answer for the first rows, "" where nothing is."""
        if version not in self._digests:
            self._digests[version] = json.loads((self.repository / "ovr" / version / "card.json").read_bytes())["bundle_sha256"]
        digest, num_rows = self._digests[version], len(prob_NK)
        if digest not in self.prob_NK:
            return f"version {version} is of another bundle, {digest[:12]}"
        if not (head_version_NK == self.bundle_of[digest].card.head_versions).all():
            return f"version {version} answers with heads of versions {head_version_NK[0].tolist()}"
        if np.delete(prob_NK, CHANGED, axis=1).tobytes() != self.untouched_NK[:num_rows].tobytes():
            return f"version {version} answers with other bytes of untouched heads"
        if not np.abs(prob_NK[:, CHANGED] - self.prob_NK[digest][:num_rows, CHANGED]).max() <= 1e-6:
            return f"version {version} answers with the head of another version"
        return ""


def ask(url: str, x: np.ndarray, judge: Judge, load: Load, over: threading.Event, number: int) -> None:
    """Ask the router again and again, as any client of Triton does."""
    api, options = client_api(url)
    with api.InferenceServerClient(urlsplit(url).netloc, **options) as connection:
        while not over.is_set():
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
    main(measure, __doc__)
