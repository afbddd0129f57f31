"""What is known of a supervised server, over HTTP on a port of its own: /live, /ready, /models, /heads. Knows no server itself.

    /live    200 while the supervisor is at work, whatever it is doing; 503 when it is stuck
    /ready   200 where the last row that was asked of `ovr` was answered; else 503 with the reason
    /models  each Triton model: versions, state, what came of asking it for a row, restarts
    /heads   each class: version of its head, the model that computes it, that model's state; `unavailable` where the model is well
             and the router does without it, as its breaker is open

All answer JSON to GET. What is asked is not acted on, nor repeated in an answer.
"""

import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from ovr.core.artifact import ModelCard
from ovr.errors import ServingError
from ovr.serving.pbtxt import head_model_name
from ovr.serving.server import Server
from ovr.serving.watched import Watched, utc_now

STUCK_S = 900.0  # longer than anything that the supervisor does has a time limit of its own
MAX_HEADS = 10_000  # named one by one; further ones that are well are only counted
TIMEOUT_S = 5.0  # of one client
ESSENTIAL = ("ovr_scores", "ovr")  # without these there is no answer at all
READY = ("ok", "busy")


class Health:
    """What is known, and the endpoint that tells it, which is open within a `with` block."""

    def __init__(self, address: tuple[str, int] | None) -> None:
        """Bind to the address, port 0 to any free one; None tells nobody.

        Raises:
            ServingError: the port is taken or none.
        """
        self._server_state: dict[str, Any] = {}
        self._models: list[dict[str, Any]] = []
        self._not_finite: frozenset[tuple[str, int]] = frozenset()  # of a model's output columns
        self._unavailable: frozenset[int] = frozenset()  # columns that the router answers without their head
        self._card: ModelCard | None = None
        self._beat = time.monotonic()
        self._be("starting")
        self._endpoint: ThreadingHTTPServer | None = None
        if address is None:
            return
        try:
            self._endpoint = _Endpoint(address, _handler(self))
        except (OSError, OverflowError, TypeError) as error:
            raise ServingError(
                f"health_port {address[1]!r} on {address[0]} cannot be used: {error}; choose another, or 0 for a free one"
            ) from None

    @property
    def url(self) -> str:
        """The endpoint's address."""
        assert self._endpoint is not None
        host, port = str(self._endpoint.server_address[0]), self._endpoint.server_port
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"

    def started(self, server: Server, restarts: int) -> None:
        """A server runs; nothing is known of its models yet."""
        self._beat = time.monotonic()
        self._server_state = {
            "http": server.http_url,
            "grpc": server.grpc_url,
            "metrics": server.metrics_url,
            "pid": server.process.pid,
            "restarts": restarts,
            "since": utc_now(),
        }

    def serves(self, card: ModelCard) -> None:
        """The router that was found is of this bundle."""
        self._card = card

    def looked(self, models: Mapping[str, Watched], *, publishing: bool) -> None:
        """Each model was asked; while a bundle is published, those that are being replaced were left out."""
        self._beat = time.monotonic()
        self._models = [_of_model(watched) for watched in models.values()]
        self._not_finite = frozenset(
            (name, column)
            for name, watched in models.items()
            if watched.answer is not None and watched.answer.not_finite is not None
            for columns in watched.answer.not_finite.values()
            for column in columns
        )
        router = models["ovr"].answer if "ovr" in models else None
        self._unavailable = frozenset(() if router is None else router.unavailable)
        problems = [
            f"model {name} {watched.state}" + (f": {watched.answer.error}" if watched.answer is not None else "")
            for name, watched in models.items()
            if name in ESSENTIAL and watched.state not in READY
        ]
        if "ovr" not in models:
            problems.append("the server has no model ovr")
        if problems:
            self._be("not ready", reason="; ".join(problems), publishing=publishing)
        else:
            self._be("ready", publishing=publishing)

    def unanswered(self, reason: str) -> None:
        """The server says neither what it has loaded nor that it lives."""
        self._beat = time.monotonic()
        self._be("not ready", reason=f"the server does not answer: {reason}")

    def restarting(self, reason: str) -> None:
        """The server has gone, and is started again."""
        self._beat = time.monotonic()
        self._models = []
        self._be("restarting", reason=reason.splitlines()[0])

    def draining(self) -> None:
        """The end is near: no new requests."""
        self._be("draining", reason="the server is about to stop")

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return HTTP status and content for a path."""
        state = self._state
        if path == "/live":
            stuck = time.monotonic() - self._beat > STUCK_S
            return (503, {"live": False, "reason": "nothing was done for long"}) if stuck else (200, {"live": True})
        if path == "/ready":
            ready = state["state"] == "ready"
            return (200 if ready else 503), {"ready": ready, **state}
        if path == "/models":
            return 200, {**state, "server": self._server_state, "models": self._models}
        if path == "/heads":
            return 200, {**state, **self._heads()}
        return 404, {"error": "expected /live, /ready, /models or /heads"}

    def __enter__(self) -> Self:
        if self._endpoint is not None:
            threading.Thread(target=self._endpoint.serve_forever, args=(0.05,), daemon=True, name="health").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._endpoint is not None:
            self._endpoint.shutdown()
            self._endpoint.server_close()

    def _be(self, state: str, **more: Any) -> None:
        before = getattr(self, "_state", {})
        since = before["since"] if before.get("state") == state else utc_now()
        self._state = {"state": state, "since": since, **more}

    def _heads(self) -> dict[str, Any]:
        if self._card is None:
            return {"heads": [], "by_state": {}}
        models = {model["model"]: model for model in self._models}
        heads: list[dict[str, Any]] = []
        by_state: dict[str, int] = {}
        for column, (spec, version) in enumerate(zip(self._card.taxonomy, self._card.head_versions, strict=True)):
            own = head_model_name(spec.id)
            name, place = (own, 0) if own in models else ("ovr_scores", column)
            state = models[name]["state"] if name in models else "unknown"
            if state == "ok" and (name, place) in self._not_finite:
                state = "not finite"
            elif state == "ok" and column in self._unavailable:
                state = "unavailable"
            by_state[state] = by_state.get(state, 0) + 1
            if state != "ok" or len(heads) < MAX_HEADS:
                heads.append({"class": spec.id, "version": version, "model": name, "state": state})
        return {"bundle_sha256": self._card.bundle_sha256, "by_state": by_state, "heads": heads}


def _of_model(watched: Watched) -> dict[str, Any]:
    answer = watched.answer
    return {
        "model": watched.name,
        "versions": list(watched.versions),
        "state": watched.state,
        "inference": None if answer is None else answer.outcome,
        "latency_ms": None if answer is None else round(1000 * answer.latency_s, 3),
        "error": None if answer is None or not answer.error else answer.error,
        "not_finite": 0 if answer is None else sum(map(len, (answer.not_finite or {}).values())),
        "restarts": watched.restarts.total,
        "since": watched.since,
    }


class _Endpoint(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 32


def _handler(health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S
        server_version, sys_version = "ovr", ""

        def do_GET(self) -> None:
            status, content = health.answer(self.path.partition("?")[0])
            body = json.dumps(content, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes come every second; what is of interest is logged by the supervisor."""

    return Handler
