"""Starting and stopping the real server."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import tritonclient.http as http_api
from tritonclient.utils import InferenceServerException

from ovr import Client
from ovr.core.class_metrics import ClassMetricsSettings
from ovr.errors import ServingError
from ovr.serving.repository import publish
from ovr.serving.server import SHM, start
from ovr.serving.supervisor import supervise
from ovr.serving.watched import Patience
from tests.bundles import small_bundle
from tests.triton.processes import children, processes_of, until

pytestmark = pytest.mark.triton


@pytest.fixture
def repository(tmp_path):
    publish(small_bundle(tmp_path / "bundle"), tmp_path / "repo")
    return tmp_path / "repo"


def test_a_server_gets_ready_stops_in_order_and_leaves_nothing(repository, started):
    server = started(repository)
    assert in_shm(os.getpid())
    scratch, session = server.log_path.parent, server.process.pid
    before = tree(repository)
    server.stop()  # kills what has not ended in time: then the status is not 0
    assert server.process.returncode == 0
    assert in_shm(os.getpid()) == []
    assert not scratch.exists()
    assert processes_of(session) == []
    assert tree(repository) == before
    server.stop()  # again is no error


def test_a_killed_server_leaves_nothing_either(repository, started):
    server = started(repository)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    assert in_shm(os.getpid())
    server.stop()
    assert in_shm(os.getpid()) == []
    until(lambda: processes_of(server.process.pid) == [])  # killed they are; the system takes a moment to take them away


def test_two_servers_serve_one_repository_side_by_side(repository, started, rng):
    first, second = started(repository), started(repository)
    x = rng.normal(size=(4, 6))
    with Client(first.http_url) as one, Client(second.grpc_url) as other:
        assert (one.predict(x).prob_BK == other.predict(x).prob_BK).all()
        first.stop()
        assert len(other.predict(x)) == 4
        with pytest.raises(ServingError, match=f"no server answers at {first.http_url}"):
            one.predict(x)


def test_a_grpc_client_says_that_its_server_is_gone(repository, started, rng):
    server = started(repository)
    with Client(server.grpc_url, timeout_s=10) as client:
        client.card()
        server.stop()
        with pytest.raises(ServingError, match=f"no server answers at {server.grpc_url}"):
            client.predict(rng.normal(size=(4, 6)))


def test_a_model_that_cannot_be_loaded_is_told_with_the_end_of_the_log(repository, installed):
    model = repository / "ovr_scores/1/model.onnx"
    model.unlink()  # it shares its bytes with the bundle
    model.write_bytes(b"no model")
    with pytest.raises(ServingError, match=r"(?s)ended with status .* while it loaded its 2 models:.*ovr_scores"):
        start(repository)


def test_a_server_that_takes_too_long_is_stopped(repository, installed):
    with pytest.raises(ServingError, match=r"was not ready within 0\.01 s \(2 models\)"):
        start(repository, timeout_s=0.01)
    assert in_shm(os.getpid()) == []


def test_without_model_control_models_cannot_be_loaded(repository, started, tmp_path):
    server = started(repository, model_control="none")
    with pytest.raises(ServingError, match=r"the server refused .*: explicit model load / unload is not allowed"):
        publish(small_bundle(tmp_path / "next", seed=1), repository, server=server.http_url)


def test_a_model_that_is_not_ovr_s_is_said_so(repository, started):
    router = repository / "ovr/config.pbtxt"
    text = router.read_text()
    router.write_text(text[: text.index("parameters")])
    server = started(repository)
    with Client(server.http_url) as client, pytest.raises(ServingError, match="'ovr' that was not published by ovr"):
        client.card()


SERVE = """
import sys
from pathlib import Path
from ovr.serving.server import start
from ovr.serving.supervisor import supervise
from ovr.serving.watched import Patience
def begin(**ports):
    return start(Path(sys.argv[1]), **ports)
def tell(server):
    print(server.http_url, flush=True)
supervise(begin, Path(sys.argv[1]), ports={}, patience=Patience(), on_ready=tell)
print("stopped", flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["starting", "ready"])
def test_a_signal_stops_the_server_in_order(repository, installed, tmp_path, signum, moment):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-c", SERVE, str(repository)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(scratch)})
    if moment == "ready":
        assert process.stdout.readline().startswith("http://127.0.0.1:")
    else:
        until(lambda: children(process.pid))
    process.send_signal(signum)
    process.send_signal(signum)  # an impatient user
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "stopped\n")
    assert in_shm(process.pid) == []
    assert list(scratch.iterdir()) == []


def test_the_signal_handlers_are_given_back(repository, installed):
    before = signal.getsignal(signal.SIGTERM)
    supervise(
        lambda **ports: start(repository, **ports),
        repository,
        ports={},
        patience=Patience(),
        on_ready=lambda server: os.kill(os.getpid(), signal.SIGTERM),
    )
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_for_all_addresses_is_reached_on_this_machine(repository, started, rng):
    server = started(repository, host="0.0.0.0", allow_old_server=True)
    for url in (server.http_url, server.grpc_url):
        assert "//127.0.0.1:" in url
        with Client(url) as client:
            assert len(client.predict(rng.normal(size=(4, 6)))) == 4


def test_the_metrics_count_what_was_asked(repository, started, rng):
    server = started(repository)
    with Client(server.http_url) as client:
        client.predict(rng.normal(size=(4, 6)))

    def text():
        with urllib.request.urlopen(server.metrics_url) as response:
            return response.read().decode()

    # Triton counts a request after it has been answered.
    until(lambda: 'nv_inference_count{model="ovr",version="1"} 4' in text())
    assert 'nv_inference_count{model="ovr_scores",version="1"} 4' in text()


def test_rows_that_do_not_fit_are_counted_apart(tmp_path, started, rng):
    publish(small_bundle(tmp_path / "bundle"), tmp_path / "repo", class_metrics=ClassMetricsSettings(interval_s=0.1))
    server = started(tmp_path / "repo")
    with Client(server.http_url) as client:
        client.predict(rng.normal(size=(4, 6)))
    x = np.zeros((3, 6), np.float32)
    x[1] = np.nan
    tensor = http_api.InferInput("x", [3, 6], "FP32")
    tensor.set_data_from_numpy(x)
    with (
        http_api.InferenceServerClient(server.http_url.removeprefix("http://")) as connection,
        pytest.raises(InferenceServerException, match="row 1, column 0 holds nan"),
    ):
        connection.infer("ovr", [tensor])

    def counted():
        with urllib.request.urlopen(server.metrics_url) as response:
            lines = [line for line in response.read().decode().splitlines() if line.startswith("ovr_rows_total{")]
        return {line.partition('outcome="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}

    until(lambda: sum(counted().values()) >= 7)  # they are told every interval_s
    assert counted() == {"passed": 6, "refused": 1}


def test_a_taken_port_is_said_before_the_server_is_started(repository, installed):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"grpc_port {port} on 127.0.0.1 cannot be used: .*in use"):
            start(repository, grpc_port=port)


def test_a_freed_port_can_be_used_at_once(repository, started):
    server = started(repository)
    port = int(server.http_url.rpartition(":")[2])
    with Client(server.http_url) as client:
        client.card()
        server.stop()
    assert started(repository, http_port=port).http_url == server.http_url


def test_a_tritonserver_on_the_path_is_preferred_and_needs_no_embedded_one(repository, tmp_path, monkeypatch):
    binary = tmp_path / "bin/tritonserver"
    binary.parent.mkdir()
    binary.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:{os.environ['PATH']}")
    with pytest.raises(ServingError, match=r"(?s)ended with status 3.*--load-model=ovr_scores --load-model=ovr") as caught:
        start(repository, home=tmp_path / "none", install=False)
    assert "--backend-directory" not in str(caught.value)
    shutil.rmtree(tmp_path / "bin")


def in_shm(pid):
    """Return what servers started by process `pid` have in /dev/shm."""
    return list(SHM.glob(f"ovr-{pid}-*"))


def tree(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}
