"""Starting and stopping Triton on a repository: the `tritonserver` on PATH, else the embedded one. Knows nothing of bundles.

The server binds to the loopback address, loads exactly the models of the repository, and has a region prefix of its own in
/dev/shm, so that nothing of it is left there once it has stopped.
"""

import http.client
import ipaddress
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

from tritonclient.grpc import model_config_pb2 as pb

from ovr.errors import ArtifactError, ConfigError, ServingError
from ovr.runtime.triton import onnxruntime_backend_source
from ovr.serving import embedded
from ovr.serving.contents import model_names, read_config

log = logging.getLogger(__name__)

SHM = Path("/dev/shm")
STOP_TIMEOUT_S = 5.0
DRAIN_S = 3  # of the 5: what Triton gives the requests in flight
LOG_TAIL_LINES = 25
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server:
    """A running Triton server; as a context manager it is stopped at the end of the block."""

    def __init__(
        self, process: subprocess.Popen[bytes], *, host: str, ports: dict[str, int], scratch: Path, shm_prefix: str
    ) -> None:
        """Take over a started process; `start` is the way to get one."""
        self.process = process
        host = "127.0.0.1" if host == "0.0.0.0" else host
        self.http_url = f"http://{host}:{ports['http']}"
        self.grpc_url = f"grpc://{host}:{ports['grpc']}"
        self.metrics_url = f"http://{host}:{ports['metrics']}/metrics"
        self._address = (host, ports["http"])
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
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def is_ready(self) -> bool:
        """Return whether the server answers that it is ready."""
        connection = http.client.HTTPConnection(*self._address, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End the server: requests in flight are answered, within 5 seconds it is gone, and so is what it had in /dev/shm."""
        with _signals_deferred():
            if self.process.poll() is None:
                self.process.terminate()
                try:
                    self.process.wait(STOP_TIMEOUT_S - 1)
                except subprocess.TimeoutExpired:
                    log.warning("the server did not stop within %.0f s and is killed", STOP_TIMEOUT_S - 1)
            _kill_group(self.process.pid)  # the server itself where it hangs, and stubs that outlived it
            self.process.wait()
            for path in SHM.glob(f"{self._shm_prefix}*"):
                path.unlink(missing_ok=True)
            shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def start(
    repository: Path,
    *,
    host: str = "127.0.0.1",
    http_port: int = 0,
    grpc_port: int = 0,
    metrics_port: int = 0,
    model_control: Literal["explicit", "none"] = "explicit",
    timeout_s: float = 120.0,
    install: bool = True,
    home: Path | None = None,
) -> Server:
    """Start Triton on `repository` and return it once all its models are ready.

    Args:
        http_port: 0 takes any free port; so do the others.
        model_control: "explicit" lets clients load and unload models; on the loopback address only.
        timeout_s: how long the models may take to load.
        install: install the embedded server where no `tritonserver` is on PATH and it is not there yet.
        home: where embedded servers lie; by default `ovr.serving.embedded.default_home()`.

    Raises:
        ArtifactError: the repository is missing, empty or damaged.
        ConfigError: a value that cannot be used.
        ServingError: a port is taken, there is no server, it cannot serve this repository, or it did not get ready in time (with
            the end of its log).
    """
    if model_control not in ("explicit", "none"):
        raise ConfigError(f"model_control is {model_control!r}; expected 'explicit' or 'none'")
    if not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise ConfigError(f"timeout_s is {timeout_s!r}; expected a number above 0")
    repository = repository.absolute()
    if not repository.is_dir():
        raise ArtifactError(f"the repository {repository} does not exist; publish a bundle there with `ovr publish`")
    names = model_names(repository)
    try:
        is_loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise ServingError(
            f"host is {host!r}; expected an IPv4 address such as 127.0.0.1, or 0.0.0.0 for all of this machine's"
        ) from None
    if model_control == "explicit" and not is_loopback:
        raise ServingError(f"model control is open to everyone who reaches {host}; bind to 127.0.0.1 or set model_control=none")
    ports = _ports(host, {"http": http_port, "grpc": grpc_port, "metrics": metrics_port})
    scratch = Path(tempfile.mkdtemp(prefix="ovr-triton-"))
    shm_prefix = f"ovr-{os.getpid()}-{secrets.token_hex(4)}-"
    server = None
    try:
        command, env = _program(repository, names, scratch, install=install, home=home)
        command += _flags(repository, names, host, ports, model_control, shm_prefix)
        with _signals_deferred(), (scratch / "server.log").open("wb") as log_file:
            # A session of its own: Ctrl-C at the terminal reaches this process only, which then stops the server in order.
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log_file, stderr=subprocess.STDOUT, start_new_session=True
            )
            server = Server(process, host=host, ports=ports, scratch=scratch, shm_prefix=shm_prefix)
        _wait_until_ready(server, timeout_s, num_models=len(names))
    except BaseException as error:
        if server is not None:
            server.stop()
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError):
            raise ServingError(f"tritonserver cannot be started: {error}") from None
        raise
    return server


def serve_until_signal(begin: Callable[[], Server], on_ready: Callable[[Server], None]) -> None:
    """Run a server until SIGINT or SIGTERM arrives, then stop it; a signal while it starts stops it too.

    Args:
        begin: starts the server.
        on_ready: called with it when it is ready, to tell the user where it is.

    Raises:
        ServingError: the server cannot be started, or ended by itself.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # A second signal must not break off the orderly stop.
        for name in STOP_SIGNALS:
            signal.signal(name, signal.SIG_IGN)
        raise _Stop

    before = {name: signal.signal(name, interrupt) for name in STOP_SIGNALS}
    try:
        with begin() as server:
            on_ready(server)
            status = server.process.wait()
            raise ServingError(f"the server ended with status {status}:\n{server.log_tail()}")
    except _Stop:
        log.info("stopped")
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


class _Stop(BaseException):
    """SIGINT or SIGTERM while serving; a BaseException, so that no `except Exception` on the way takes it."""


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block ends, so that no process is started or half-stopped and then forgotten."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    arrived: list[int] = []
    before = {name: signal.signal(name, lambda signum, frame: arrived.append(signum)) for name in STOP_SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        for signum in arrived:
            signal.raise_signal(signum)


def _ports(host: str, wanted: dict[str, int]) -> dict[str, int]:
    """Return the ports, 0 replaced by free ones, after trying to bind each."""
    sockets: list[socket.socket] = []
    ports = {}
    try:
        for name, port in wanted.items():
            sockets.append(bound := socket.socket())
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind((host, port))
                bound.listen(1)
            except (OSError, OverflowError, TypeError) as error:
                raise ServingError(
                    f"{name}_port {port!r} on {host} cannot be used: {error}; choose another, or 0 for a free one"
                ) from None
            ports[name] = bound.getsockname()[1]
    finally:
        for bound in sockets:
            bound.close()
    return ports


def _program(
    repository: Path, names: tuple[str, ...], scratch: Path, *, install: bool, home: Path | None
) -> tuple[list[str], dict[str, str]]:
    """Return the server's command without flags, and its environment."""
    if (native := shutil.which("tritonserver")) is not None:
        log.info("serving with %s", native)
        return [native], dict(os.environ)
    _check_cpu_only(repository, names)
    if (server := embedded.find(home)) is None:
        if not install:
            raise ServingError(
                f"no tritonserver is on PATH, and the embedded one is not installed in {home or embedded.default_home()}; "
                "install it with `python -m ovr.serving.embedded`"
            )
        server = embedded.install(home)
    log.info("serving with the embedded Triton server: for this machine and for tests; production is NVIDIA's container")
    backends = scratch / "backends"
    (backends / "onnxruntime").mkdir(parents=True)
    (backends / "python").symlink_to(server.python_backend)
    (backends / "onnxruntime" / "model.py").write_bytes(onnxruntime_backend_source())
    return [str(server.tritonserver), f"--backend-directory={backends}"], server.environment()


def _check_cpu_only(repository: Path, names: tuple[str, ...]) -> None:
    for name in names:
        config = read_config(repository, name)
        if config is not None and any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group):
            raise ServingError(
                f"model {name} asks for KIND_GPU, and the embedded server has no GPU support; "
                "publish with instance_kind KIND_CPU, or serve with NVIDIA's container"
            )


def _flags(
    repository: Path, names: tuple[str, ...], host: str, ports: dict[str, int], model_control: str, shm_prefix: str
) -> list[str]:
    flags = [
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={DRAIN_S}",
        f"--http-address={host}",
        f"--grpc-address={host}",
        f"--metrics-address={host}",
        f"--http-port={ports['http']}",
        f"--grpc-port={ports['grpc']}",
        f"--metrics-port={ports['metrics']}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--model-control-mode={model_control}",
    ]
    return flags + ([f"--load-model={name}" for name in names] if model_control == "explicit" else [])


def _wait_until_ready(server: Server, timeout_s: float, *, num_models: int) -> None:
    deadline = time.monotonic() + timeout_s
    while not server.is_ready():
        if (status := server.process.poll()) is not None:
            raise ServingError(
                f"the server ended with status {status} while it loaded its {num_models} models:\n{server.log_tail()}"
            )
        if time.monotonic() > deadline:
            raise ServingError(f"the server was not ready within {timeout_s:g} s ({num_models} models):\n{server.log_tail()}")
        time.sleep(0.02)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
