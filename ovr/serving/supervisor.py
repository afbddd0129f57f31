"""Keeping a server answering: models that died are loaded again, a server that died is started again, until neither helps.

Triton never starts the process of a Python model again, and goes on saying that such a model is ready; so each is asked for a row.
What died is loaded anew *beside* what is left of it, from the configuration that the server has: to unload it while requests wait
for it may end the server. Publishers and supervisors keep out of each other's way by the repository's lock.
"""

import http.client
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from ovr.core.artifact import ModelCard
from ovr.core.files import read_json
from ovr.errors import OvrError, ServingError
from ovr.serving import control, locks, stubs
from ovr.serving.contents import model_names, served_versions
from ovr.serving.health import ESSENTIAL, Health
from ovr.serving.probe import UNAVAILABLE, Answer, Probe
from ovr.serving.probe_rows import probe_inputs
from ovr.serving.server import Server
from ovr.serving.signals import Stop, stop_on_signals
from ovr.serving.transition import CALLERS
from ovr.serving.watched import Patience, Restarts, Watched

log = logging.getLogger(__name__)

RELOADS = "ovr.reloads"  # a parameter that makes the configuration another, so that Triton loads the model anew
TICK_S = 0.05  # between two looks at the processes
PUBLISHER_S = 10.0  # how long a restart waits for a publisher to notice that the server has gone
LONGEST_PAUSE_S = 5.0


def supervise(
    begin: Callable[..., Server],
    repository: Path,
    *,
    ports: Mapping[str, int],
    patience: Patience,
    health: Health | None = None,
    check: Callable[[], object] | None = None,
    on_ready: Callable[[Server], None] = lambda server: None,
) -> None:
    """Run a server, and keep it answering until SIGINT or SIGTERM arrives; then drain and stop it.

    Args:
        begin: starts the server on `http_port`, `grpc_port` and `metrics_port`.
        ports: of the first start, by `http`, `grpc` and `metrics`; later ones are on the ports that this one got.
        health: told what is known whenever it changes.
        check: raises an OvrError where the repository is not to be loaded; called before each restart of the server or of a model.
        on_ready: called with the first server when it is ready.

    Raises:
        OvrError: the server cannot be started the first time.
        ServingError: the server, or a model without which there is no answer, died more often than `patience` allows.
    """
    supervisor = Supervisor(begin, repository, patience=patience, health=health, check=check)
    with stop_on_signals(), health or nullcontext():
        try:
            supervisor.start(ports)
            assert supervisor.server is not None
            on_ready(supervisor.server)
            while True:
                supervisor.wait(supervisor.step())
        except Stop:
            supervisor.drain()
            log.info("stopped")
        finally:
            if supervisor.server is not None:
                supervisor.server.stop()


class Supervisor:
    """One server and what is known of it; `step` looks once."""

    def __init__(
        self,
        begin: Callable[..., Server],
        repository: Path,
        *,
        patience: Patience,
        health: Health | None = None,
        check: Callable[[], object] | None = None,
    ) -> None:
        """Prepare; `start` is to follow."""
        self.server: Server | None = None
        self.patience = patience
        self.models: dict[str, Watched] = {}
        self.restarts = Restarts(patience)
        self._begin, self._repository = begin, repository
        self._health, self._check = health or Health(None), check
        self._unanswered = self._unlisted = 0  # looks in a row at which the server said nothing, and not what it has loaded
        self._probes: dict[tuple[str, tuple[int, ...]], list[Probe]] = {}
        self._stubs: dict[int, stubs.ModelVersion] = {}

    def start(self, ports: Mapping[str, int]) -> None:
        """Start the server.

        Raises:
            OvrError: as `begin` does.
        """
        self.models, self._probes, self._stubs, self._unanswered, self._unlisted = {}, {}, {}, 0, 0
        self.server = self._begin(**{f"{name}_port": port for name, port in ports.items()})
        self._health.started(self.server, self.restarts.total)

    def step(self) -> float:
        """Look once and mend what is broken; return after how many seconds to look again.

        Raises:
            ServingError: it cannot be mended.
        """
        assert self.server is not None
        if (status := self.server.process.poll()) is not None:
            self._restart(f"the server ended with status {status}")
            return 0.0
        before = time.monotonic()
        try:
            with control.authorized(self.server.key.secret), locks.shared(self._repository) as alone:
                self._look(alone=alone)
                self._health.looked(self.models, publishing=not alone)
                ill = any(self.models[name].is_faulty for name in ESSENTIAL if name in self.models)
                mended = alone and self._mend()
            self._unanswered = 0
        except _Broken as error:
            self._restart(str(error))
            return 0.0
        except _Unanswered as error:
            self._unanswered += 1
            self._health.unanswered(str(error))
            if self._unanswered >= self.patience.slow_probes:
                self._restart(f"the server does not answer ({error})")
                return 0.0
            return self.patience.interval_s if self.server.process.poll() is None else 0.0
        if ill:
            self.restarts.ill()
        else:
            self.restarts.healthy(time.monotonic())
        if mended:
            return 0.0
        # Of many models, no more than half of the time goes to asking.
        return max(self.patience.interval_s, min(time.monotonic() - before, LONGEST_PAUSE_S))

    def wait(self, seconds: float) -> None:
        """Return after that time, or as soon as a process is seen to have ended.

        A request that meets a dead process waits a second before it fails, and the next ones may take the server with them.
        """
        assert self.server is not None
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            if self.server.process.poll() is not None or self._lost():
                return
            time.sleep(min(TICK_S, left_s))

    def drain(self) -> None:
        """Have the server finish what it has begun, and take nothing more."""
        self._health.draining()
        if self.server is not None:
            time.sleep(self.patience.lame_duck_s)
            self.server.drain(self.patience.drain_s)

    def _lost(self) -> frozenset[stubs.ModelVersion]:
        assert self.server is not None
        return stubs.lost(self._stubs, self.server.process.pid)

    def _look(self, *, alone: bool) -> None:
        """Ask every model that the server has for a row, but for those that have lost a process.

        Once one has not answered in time only those are asked without which there is no answer: what is known of them must not grow
        old while many heads hang. The others are asked first the next time.
        """
        assert self.server is not None
        lost = self._lost() if alone else frozenset()  # a publisher lets processes go
        self._stubs = stubs.find_stubs(self.server.process.pid)
        loaded, slow = self._loaded(), False
        published = model_names(self._repository)
        for name in sorted({*loaded, *self.models} & {*loaded, *published}, key=self._turn):
            versions = tuple(sorted(loaded.get(name, ())))
            watched = self.models.get(name)
            if versions and (watched is None or watched.versions != versions):
                watched = self.models[name] = Watched(
                    name, versions, Restarts(self.patience, watched.restarts.total if watched else 0)
                )
            assert watched is not None
            if name in CALLERS and alone and any(_is_due(w) for w in self.models.values() if w.name not in CALLERS):
                continue  # its answer would be the callee's, a second later
            if not versions:
                answer = Answer("gone", 0.0, "the server has no version of it")
            elif any((name, version) in lost for version in versions):
                answer = Answer("dead", 0.0, "its process has ended")
            elif slow and name not in ESSENTIAL:
                continue
            else:
                answer = self._ask(name, versions)
                slow |= answer.outcome == "slow"
            if alone or answer.outcome != "gone":  # of what a publisher is changing
                watched.saw(answer, time.monotonic())
        for name in {*self.models} - {*loaded, *published}:  # retired
            del self.models[name]

    def _loaded(self) -> dict[str, set[int]]:
        """Return the versions that the server has, or those known before where it lives and does not say: it may be loading."""
        assert self.server is not None
        try:
            loaded = control.ready_versions(self.server.http_url, timeout_s=self.patience.probe_timeout_s)
        except ServingError as error:
            if self.server.ask("/v2/health/live", timeout_s=self.patience.probe_timeout_s) is None:
                raise _Unanswered(str(error)) from None
            self._unlisted += 1
            return {name: set(watched.versions) for name, watched in self.models.items()}
        self._unlisted = 0
        return loaded

    def _turn(self, name: str) -> tuple[bool, bool, float]:
        """Return what models are sorted by: callers after what they call, the others by when they were asked last."""
        return name in CALLERS, name not in ESSENTIAL, self.models[name].asked if name in self.models else 0.0

    def _ask(self, name: str, versions: tuple[int, ...]) -> Answer:
        """Return the answer of a model, of several versions the worst."""
        assert self.server is not None
        connection = http.client.HTTPConnection(self.server.http_url.removeprefix("http://"), timeout=self.patience.probe_timeout_s)
        try:
            if (name, versions) not in self._probes:
                self._probes = {key: probes for key, probes in self._probes.items() if key[0] != name}
                self._probes[name, versions] = self._made(name, versions)
            answers = [probe.ask(connection) for probe in self._probes[name, versions]]
        except OvrError as error:
            return Answer("gone" if "refused" in str(error) else "failed", 0.0, str(error))
        finally:
            connection.close()
        return next((answer for answer in answers if answer.outcome != "ok"), answers[-1])

    def _made(self, name: str, versions: tuple[int, ...]) -> list[Probe]:
        assert self.server is not None
        config = control.model_config(self.server.http_url, name)
        encoder = None
        if name == "ovr":
            card = ModelCard.from_json(read_json(self._repository / name / str(versions[-1]) / "card.json"))
            self._health.serves(card)
            encoder = card.input.encoder
        inputs = probe_inputs(config, encoder)
        outputs = [
            tensor["name"] for tensor in config["output"] if tensor["data_type"] == "TYPE_FP32" or tensor["name"] == UNAVAILABLE
        ]
        # Callers by the version that clients get: a publisher replaces it at once.
        return [Probe(name, None if name in CALLERS else version, inputs, outputs) for version in versions]

    def _mend(self) -> bool:
        """Load what is broken again, what others call before those; return whether to look again at once."""
        faulty = [watched for watched in self.models.values() if watched.is_faulty]
        if self.server is None or self.server.process.poll() is not None:
            return True
        if any(watched.name not in CALLERS for watched in faulty):  # then the callers' errors may be theirs
            faulty = [w for w in faulty if w.name not in CALLERS or (w.answer is not None and w.answer.outcome in ("dead", "gone"))]
        due = [watched for watched in faulty if _is_due(watched)]
        for watched in due:
            assert watched.answer is not None
            if watched.restarts.exhausted:
                self._give_up(watched)
                continue
            log.warning("model %s %s (%s); loading it again", watched.name, watched.answer.outcome, watched.answer.error)
            watched.restarts.count(time.monotonic())
            self._reload(watched)
        return bool(due)

    def _reload(self, watched: Watched) -> None:
        assert self.server is not None
        assert watched.answer is not None
        if self.server.model_control != "explicit":
            raise _Broken(f"model {watched.name} {watched.answer.outcome}, and model_control=none lets nothing be loaded again")
        if self._unlisted >= self.patience.slow_probes:
            raise _Broken(f"model {watched.name} {watched.answer.outcome}, and the server does not say what it has loaded")
        try:
            if self._check is not None:
                self._check()
                # Of what is not served any more nothing was checked.
                if watched.answer.outcome != "gone" and set(watched.versions) != served_versions(self._repository, watched.name):
                    raise _Broken(f"model {watched.name} {watched.answer.outcome}, and the repository serves another version of it")
            config = None
            if watched.answer.outcome != "gone":
                loaded = control.model_config(self.server.http_url, watched.name)
                loaded.setdefault("parameters", {})[RELOADS] = {"string_value": str(watched.restarts.total)}
                config = json.dumps(loaded)
            control.load_model(self.server.http_url, watched.name, config=config)
        except OvrError as error:
            log.error("model %s cannot be loaded again: %s", watched.name, error)
        watched.forget_answer()

    def _give_up(self, watched: Watched) -> None:
        assert self.server is not None
        assert watched.answer is not None
        reloads = watched.restarts.in_a_row
        what = f"model {watched.name} {watched.answer.outcome} again ({watched.answer.error}) after {reloads} reloads in a row"
        if watched.name in ESSENTIAL:
            raise ServingError(f"{what}; gave up:\n{self.server.log_tail()}")
        log.error("%s; gave it up until it is published anew, and serve on without it", what)
        watched.be("given up")

    def _restart(self, reason: str) -> None:
        """Start the server again on its ports, as often as it takes and is allowed."""
        assert self.server is not None
        ports, tail = self.server.ports, self.server.log_tail()
        self.server.stop()
        while True:
            if self.restarts.exhausted:
                raise ServingError(f"{reason} after {self.restarts.in_a_row} restarts in a row; gave up:\n{tail}")
            log.error("%s; starting it again. The end of its log:\n%s", reason, tail)
            self._health.restarting(reason)
            time.sleep(self.restarts.wait_s(time.monotonic()))
            self.restarts.count(time.monotonic())
            self._wait_for_publisher()
            try:
                if self._check is not None:
                    self._check()
                self.start(ports)
            except OvrError as error:
                reason, tail = f"the server cannot be started again ({error})", ""
            else:
                return

    def _wait_for_publisher(self) -> None:
        deadline = time.monotonic() + PUBLISHER_S
        while time.monotonic() < deadline:
            with locks.shared(self._repository) as alone:
                if alone:
                    return
            time.sleep(0.1)


def _is_due(watched: Watched) -> bool:
    return watched.is_faulty and watched.restarts.wait_s(time.monotonic()) == 0


class _Unanswered(Exception):
    """The server says neither what it has loaded nor that it lives."""


class _Broken(Exception):
    """Only a new server can help."""
