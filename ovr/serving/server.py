"""Starting and stopping Triton on a repository. Knows nothing of bundles, nor of what becomes of a server that dies.

The server binds to the loopback address unless told otherwise, loads exactly the models of the repository, asks for a key where its
APIs for administration are used, and has a region prefix of its own in /dev/shm, so that nothing of it is left there once it has
stopped.
"""

import http.client
import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tritonclient.grpc import model_config_pb2 as pb

from ovr.errors import ArtifactError, ConfigError, OvrError, ServingError
from ovr.runtime.triton import spans
from ovr.runtime.triton.request_log import OUTPUT_FD
from ovr.serving import control, keys
from ovr.serving.addresses import free_ports, is_loopback
from ovr.serving.contents import model_names, read_config
from ovr.serving.flags import GrpcTls, ModelControl, Traces, flags
from ovr.serving.keys import Key
from ovr.serving.program import check_version, find_program
from ovr.serving.signals import signals_deferred
from ovr.serving.transition import CALLERS

log = logging.getLogger(__name__)

SHM = Path("/dev/shm")
STOP_TIMEOUT_S = 5.0  # Triton's own `flags.DRAIN_S` is within it
LOG_TAIL_LINES = 25
MAX_REQUEST_BYTES = 64 * 2**20
ODD_IN_PATHS = re.compile(r"[^\w@%+=:,./~-]")
# Triton 2.51 parses nested JSON by recursion: with stacks of 8 MiB a request of 0.2 MB ended the server. 80 bytes a level.
LARGE_STACKS = ("/bin/sh", "-c", 'ulimit -S -s 524288 2>/dev/null; exec "$0" "$@"')


class Server:
    """A running Triton server; as a context manager it is stopped at the end of the block."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        hosts: Mapping[str, str],
        ports: Mapping[str, int],
        model_control: ModelControl,
        tls: bool,
        key: Key,
        sends_spans: bool,
        scratch: Path,
        shm_prefix: str,
    ) -> None:
        """Take over a started process; `start` is the way to get one."""
        self.process = process
        self.ports = dict(ports)  # of http, grpc and metrics
        at = {name: f"{'127.0.0.1' if hosts[name] == '0.0.0.0' else hosts[name]}:{port}" for name, port in ports.items()}
        self.http_url = f"http://{at['http']}"
        self.grpc_url = f"{'grpcs' if tls else 'grpc'}://{at['grpc']}"
        self.metrics_url = f"http://{at['metrics']}/metrics"
        self.model_control = model_control
        self.key = key
        self._sends_spans = sends_spans
        self._is_drained = False
        self._scratch = scratch
        self._shm_prefix = shm_prefix

    @property
    def log_path(self) -> Path:
        """The server's own log; it goes with the server."""
        return self._scratch / "server.log"

    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(re.sub(r"([ -])\1{2,}", r"\1\1", line) for line in lines[-LOG_TAIL_LINES:])  # Triton's wide tables

    def is_ready(self) -> bool:
        """Return whether the server answers that it is ready."""
        return self.ask("/v2/health/ready") is not None

    def ask(self, path: str, *, timeout_s: float = 2.0) -> bytes | None:
        """Return what the server answers to a GET of `path`, or None where it does not answer or refuses."""
        connection = http.client.HTTPConnection(self.http_url.removeprefix("http://"), timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.read() if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def drain(self, timeout_s: float) -> None:
        """Refuse clients' new requests, and return once those in flight are answered, or after `timeout_s`; `stop` is to follow.

        Told to end, Triton takes new requests for as long as there are any in flight, and breaks those off that it then has.
        Unloading refuses new ones at once and lets the others finish: those who call models first, then what they call.
        """
        if self.model_control != "explicit" or self.process.poll() is not None:
            return
        deadline = time.monotonic() + timeout_s
        try:
            with control.authorized(self.key.secret):
                loaded = control.ready_versions(self.http_url)
                for group in (CALLERS, ("ovr_scores",)):
                    names = [name for name in group if name in loaded]
                    control.unload_models(self.http_url, names, timeout_s=max(0.1, deadline - time.monotonic()))
            self._is_drained = True
        except OvrError as error:
            log.warning("the server is stopped with requests in flight: %s", error)

    def stop(self) -> None:
        """End the server: requests in flight are answered, within 5 seconds it is gone, and so is what it had in /dev/shm."""
        with signals_deferred():
            # Drained, it only refuses: Triton takes a second or more to end by itself, in which gateways go on asking it.
            if self.process.poll() is None and (self._sends_spans or not self._is_drained):
                self.process.terminate()
                try:
                    self.process.wait(STOP_TIMEOUT_S - 1)
                except subprocess.TimeoutExpired:
                    log.warning("the server did not stop within %.0f s and is killed", STOP_TIMEOUT_S - 1)
            _kill_group(self.process.pid)  # the server itself where it hangs, and stubs that outlived it
            self.process.wait()
            for path in SHM.glob(f"{self._shm_prefix}*"):
                path.unlink(missing_ok=True)
            self.key.discard()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def start(
    repository: Path,
    *,
    host: str = "127.0.0.1",
    http_host: str | None = None,
    http_port: int = 0,
    grpc_port: int = 0,
    metrics_port: int = 0,
    model_control: ModelControl = "explicit",
    key_file: Path | None = None,
    tls: GrpcTls | None = None,
    traces: Traces | None = None,
    request_log: int | None = None,
    max_request_bytes: int = MAX_REQUEST_BYTES,
    allow_old_server: bool = False,
    timeout_s: float = 120.0,
    install: bool = True,
    home: Path | None = None,
) -> Server:
    """Start Triton on `repository` and return it once all its models are ready.

    Args:
        host: of gRPC and metrics.
        http_host: of HTTP, which has no TLS; by default `host`.
        http_port: 0 takes any free port; so do the others.
        model_control: "explicit" lets those who have the key load and unload models.
        key_file: holds the key that model control, shared memory, traces and logging ask for; made where it is missing. By default
            one is made where `control` finds it.
        tls: of gRPC.
        traces: where spans of requests are sent; None: nowhere.
        request_log: a file descriptor, which lines about requests are written to; by default they are in the server's own log.
        max_request_bytes: of an HTTP request, where the server knows such a limit.
        allow_old_server: take a `tritonserver` older than container 26.04, and let the embedded one bind to other addresses than
            the loopback one.
        timeout_s: how long the models may take to load.
        install: install the embedded server where no `tritonserver` is on PATH and it is not there yet.
        home: where embedded servers lie; by default `ovr.serving.embedded.default_home()`.

    Raises:
        ArtifactError: the repository is missing, empty or damaged.
        ConfigError: a value that cannot be used, a repository's path that Triton cannot use, or a key file that others may read.
        ServingError: a port is taken, there is no server, it is too old, it cannot serve this repository, or it did not get ready
            in time (with the end of its log).
    """
    if model_control not in ("explicit", "none"):
        raise ConfigError(f"model_control is {model_control!r}; expected 'explicit' or 'none'")
    if not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise ConfigError(f"timeout_s is {timeout_s!r}; expected a number above 0")
    if not isinstance(max_request_bytes, int) or isinstance(max_request_bytes, bool) or max_request_bytes < 1:
        raise ConfigError(f"max_request_bytes is {max_request_bytes!r}; expected a whole number of at least 1")
    repository = repository.absolute()
    if not repository.is_dir():
        raise ArtifactError(f"the repository {repository} does not exist; publish a bundle there with `ovr publish`")
    if odd := ODD_IN_PATHS.findall(str(repository)):
        raise ConfigError(
            f"the path {str(repository)!r} has {''.join(dict.fromkeys(odd))!r} in it: Triton gives it unquoted to the shell that "
            "starts Python models; expected letters, digits and @%+=:,./~_- alone"
        )
    names = model_names(repository)
    hosts = {"http": host if http_host is None else http_host, "grpc": host, "metrics": host}
    within = all(map(is_loopback, hosts.values()))
    ports = free_ports(hosts, {"http": http_port, "grpc": grpc_port, "metrics": metrics_port})
    key = keys.make_or_read(key_file, host=hosts["http"], port=ports["http"])
    scratch = Path(tempfile.mkdtemp(prefix="ovr-triton-"))
    shm_prefix = f"ovr-{os.getpid()}-{secrets.token_hex(4)}-"
    server = None
    try:
        program = find_program(scratch, allow_old=allow_old_server, install=install, home=home)
        if program.is_embedded:
            _check_embedded_can(repository, names, is_loopback=within or allow_old_server)
        command = program.command + tuple(
            flags(
                repository,
                names,
                host=host,
                http_host=hosts["http"],
                ports=ports,
                model_control=model_control,
                secret=key.secret,
                tls=tls,
                traces=traces,
                max_request_bytes=max_request_bytes,
                shm_prefix=shm_prefix,
                known=program.known_flags(),
            )
        )
        env = dict(program.env) if traces is None else program.env | {spans.URL: traces.url}
        with signals_deferred(), (scratch / "server.log").open("wb") as log_file, ExitStack() as stack:
            passed = []
            if request_log is not None:
                passed.append(os.dup(request_log))
                stack.callback(os.close, passed[0])
                env[OUTPUT_FD] = str(passed[0])
            # A session of its own: Ctrl-C at the terminal reaches this process only, which then stops the server in order.
            process = subprocess.Popen(
                [*LARGE_STACKS, *command],
                env=env,
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            server = Server(
                process,
                hosts=hosts,
                ports=ports,
                model_control=model_control,
                tls=tls is not None,
                key=key,
                sends_spans=traces is not None,
                scratch=scratch,
                shm_prefix=shm_prefix,
            )
        _wait_until_ready(server, timeout_s, num_models=len(names))
        if not program.is_embedded:
            version = json.loads(server.ask("/v2") or b"{}").get("version", "")
            check_version(version, program.command[0], allow_old=allow_old_server)
    except BaseException as error:
        if server is not None:
            server.stop()
        key.discard()
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError):
            raise ServingError(f"tritonserver cannot be started: {error}") from None
        raise
    return server


def _check_embedded_can(repository: Path, names: tuple[str, ...], *, is_loopback: bool) -> None:
    if not is_loopback:
        raise ServingError(
            "the embedded server is of 2024, with known advisories, and binds to the loopback address only: set host=127.0.0.1, "
            "serve with NVIDIA's container, or set allow_old_server=true"
        )
    for name in names:
        config = read_config(repository, name)
        if config is not None and any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group):
            raise ServingError(
                f"model {name} asks for KIND_GPU, and the embedded server has no GPU support; "
                "publish with instance_kind KIND_CPU, or serve with NVIDIA's container"
            )


def _wait_until_ready(server: Server, timeout_s: float, *, num_models: int) -> None:
    deadline = time.monotonic() + timeout_s
    while not (server.is_ready() and _takes_key(server)):
        if (status := server.process.poll()) is not None:
            raise ServingError(
                f"the server ended with status {status} while it loaded its {num_models} models:\n{server.log_tail()}"
            )
        if time.monotonic() > deadline:
            raise ServingError(f"the server was not ready within {timeout_s:g} s ({num_models} models):\n{server.log_tail()}")
        time.sleep(0.02)


def _takes_key(server: Server) -> bool:
    """Return whether it is this server that answers: another may have taken the port since it was looked at."""
    try:
        with control.authorized(server.key.secret):
            control.ready_versions(server.http_url)
    except ServingError:
        return False
    return True


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
