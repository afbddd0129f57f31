"""`ovr serve` as a process: what dies under it answers again with nobody's help, and it ends in order."""

import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import tritonclient.http as http_api
from tritonclient.utils import InferenceServerException

from ovr import Client, EdgePredictor
from ovr.cli.main import main
from ovr.errors import ServingError
from ovr.serving import control
from ovr.serving.health import Health
from ovr.serving.repository import publish
from ovr.serving.server import start
from ovr.serving.supervisor import Supervisor, supervise
from ovr.serving.watched import Patience
from tests.bundles import small_bundle
from tests.cli.test_main import error_of
from tests.triton.processes import children, kill, stopped, stub_of, until

pytestmark = pytest.mark.triton
ANY = ["http_port=0", "grpc_port=0", "metrics_port=0", "health_port=0"]
X = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


class Served:
    """`ovr serve` in a process of its own."""

    def __init__(self, repository, *settings):
        command = [sys.executable, "-m", "ovr", "serve", f"repository={repository}", *ANY, "supervision.interval_s=0.1", *settings]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.told = {}
        for line in self.process.stdout:
            if line.startswith("ready"):
                break
            name, value = line.split()
            self.told[name] = value

    def models(self):
        with urllib.request.urlopen(f"{self.told['health']}/models", timeout=10) as response:
            return json.load(response)

    def triton(self):
        return self.models()["server"]["pid"]

    def restarts(self, model):
        return {line["model"]: line["restarts"] for line in self.models()["models"]}.get(model)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.told['health']}/ready", timeout=10) as response:
                return response.status == 200
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        output = self.process.communicate(timeout=60)
        return self.process.returncode, *output


@pytest.fixture
def serve():
    """`Served`, with every process ended at the end of the test."""
    begun = []

    def begin(*args):
        begun.append(Served(*args))
        return begun[-1]

    yield begin
    for served in begun:
        if served.process.poll() is None:
            served.end()
        served.process.communicate()


@pytest.fixture(scope="module")
def supervised(installed, tmp_path_factory):
    """One server with layout per_head, which the tests below do harm to one after another; and its bundle."""
    root = tmp_path_factory.mktemp("supervised")
    bundle = small_bundle(root / "bundle", ("cat", "dog"))
    publish(bundle, root / "repo", layout="per_head")
    served = Served(root / "repo")
    try:
        until(served.is_ready)
        yield served, bundle, root
    finally:
        if served.process.poll() is None:
            served.end()
        served.process.communicate()


@pytest.mark.parametrize("model", ["ovr_scores", "ovr", "head_dog"])
def test_a_model_whose_process_is_killed_answers_again(supervised, model):
    served, bundle, _ = supervised
    before, triton = served.restarts(model), served.triton()
    kill(stub_of(triton, model))
    until(lambda: served.restarts(model) != before)
    until(lambda: all(line["state"] == "ok" for line in served.models()["models"]))
    assert served.restarts(model) == before + 1
    assert served.is_ready()
    assert served.triton() == triton
    with Client(served.told["HTTP"]) as client:
        np.testing.assert_allclose(client.predict(X).prob_BK, EdgePredictor(bundle.path).predict_proba(X), atol=1e-6)
    assert ask_heads(served.told["HTTP"]) == pytest.approx(EdgePredictor(bundle.path).predict_proba(X)[:, 1], abs=1e-6)


def ask_heads(url):
    tensor = http_api.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X)
    with http_api.InferenceServerClient(url.removeprefix("http://")) as connection:
        return connection.infer("ovr_heads", [tensor]).as_numpy("prob_dog")[:, 0]


def test_a_server_that_is_killed_is_started_again_on_its_ports(supervised):
    served, bundle, _ = supervised
    before = served.models()["server"]
    kill(before["pid"])
    until(lambda: served.models()["server"]["pid"] != before["pid"] and served.is_ready())
    after = served.models()["server"]
    assert (after["http"], after["restarts"]) == (before["http"], before["restarts"] + 1)
    for url in (served.told["HTTP"], served.told["gRPC"]):
        with Client(url) as client:
            assert client.predict(X).card == bundle.card


def test_a_publication_is_no_fault(supervised):
    served, _, root = supervised
    before = {line["model"]: line["restarts"] for line in served.models()["models"]}
    second = small_bundle(root / "second", ("cat", "dog"), seed=1, head_seeds=[7, 8], version=2)
    assert main(["publish", f"bundle={second.path}", f"repository={root / 'repo'}", f"server={served.told['HTTP']}",
                 "serving.layout=per_head"]) == 0  # fmt: skip
    with Client(served.told["HTTP"]) as client:
        assert client.predict(X).card == second.card
    until(lambda: {tuple(line["versions"]) for line in served.models()["models"]} == {(2,)} and served.is_ready())
    assert {line["model"]: line["restarts"] for line in served.models()["models"]} == before
    kill(stub_of(served.triton(), "ovr_scores"))  # what was published is what is loaded again
    until(lambda: served.restarts("ovr_scores") == before["ovr_scores"] + 1)
    until(served.is_ready)
    with Client(served.told["gRPC"]) as client:
        assert client.predict(X).card == second.card


def test_the_status_tells_model_by_model(supervised, capsys):
    served, _, _ = supervised
    until(lambda: served.is_ready() and all(line["state"] == "ok" for line in served.models()["models"]))
    assert main(["serve", "status", f"health={served.told['health']}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["model", "version", "state", "inference", "restarts", "since"]
    assert {line.split()[0] for line in lines[3:]} == {"backbone", "head_cat", "head_dog", "ovr", "ovr_heads", "ovr_scores"}
    assert main(["serve", "status", f"health={served.told['health']}", "json=true"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ready"
    with urllib.request.urlopen(f"{served.told['health']}/heads", timeout=10) as response:
        heads = json.load(response)["heads"]
    assert [(head["class"], head["model"], head["state"]) for head in heads] == [(c, f"head_{c}", "ok") for c in ("cat", "dog")]


def test_a_status_of_nobody_is_an_error(capsys):
    assert "no `ovr serve` answers at http://127.0.0.1:9" in error_of(capsys, "serve", "status", "health=http://127.0.0.1:9")
    assert "health=127.0.0.1 is no address" in error_of(capsys, "serve", "status", "health=127.0.0.1")


@pytest.fixture
def repository(installed, tmp_path):
    publish(small_bundle(tmp_path / "bundle"), tmp_path / "repo")
    return tmp_path / "repo"


def change_router(repository, code):
    router = repository / "ovr/1/model.py"
    text = f"{router.read_text()}\n{code}\n"
    router.unlink()
    router.write_text(text)


def test_a_model_that_always_dies_is_given_up_loudly(repository, serve):
    change_router(repository, "import os\nTritonPythonModel.execute = lambda self, requests: os._exit(1)")
    served = serve(repository, "supervision.max_restarts=1", "supervision.backoff_s=0")
    _, stderr = served.process.communicate(timeout=60)
    assert served.process.returncode == 1
    assert "error: model ovr dead again (Stub process 'ovr_0_0' is not healthy.) after 1 reloads in a row; gave up:\n" in stderr
    assert "successfully loaded 'ovr'" in stderr.rpartition("gave up:")[2]
    assert children(served.process.pid) == []


def test_at_the_end_what_is_in_flight_is_answered_and_the_rest_is_refused(repository, serve):
    change_router(repository, """
import time
execute = TritonPythonModel.execute
TritonPythonModel.execute = lambda self, requests: time.sleep(0.2) or execute(self, requests)
""")  # fmt: skip
    served = serve(repository)
    asked, lasts = [], []

    def ask():
        tensor = http_api.InferInput("x", list(X.shape), "FP32")
        tensor.set_data_from_numpy(X)
        with http_api.InferenceServerClient(served.told["HTTP"].removeprefix("http://"), network_timeout=60) as connection:
            try:
                while True:
                    asked.append(connection.infer("ovr", [tensor]).as_numpy("prob"))
            except (InferenceServerException, OSError) as error:
                lasts.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(asked) >= 8)
    status, _, stderr = served.end()
    for thread in threads:
        thread.join()
    assert (status, "Traceback" in stderr) == (0, False)
    # Each client got answers until one request was refused before anything was done for it; none was broken off.
    assert len(lasts) == 4
    assert all("Request for unknown model: 'ovr' has no available versions" in str(error) for error in lasts), lasts


def test_a_server_that_may_not_be_started_again_is_given_up_with_its_log(repository):
    patience = Patience(max_restarts=0)
    with pytest.raises(ServingError, match=r"(?s)the server ended with status -9 after 0 restarts in a row; gave up:\n.*Started"):
        supervise(lambda **ports: start(repository, **ports), repository, ports={}, patience=patience,
                  on_ready=lambda server: kill(server.process.pid))  # fmt: skip


@pytest.mark.exhaustive
def test_a_server_that_cannot_be_started_again_is_given_up(repository):
    def harm(server):
        (repository / "ovr_scores/1/model.onnx").unlink()
        kill(server.process.pid)

    patience = Patience(max_restarts=1, interval_s=0.01)
    with pytest.raises(
        ServingError, match=r"(?s)cannot be started again \(the server ended with status .* after 1 restarts in a row; gave"
    ):
        supervise(lambda **ports: start(repository, **ports), repository, ports={}, patience=patience, on_ready=harm)


@pytest.mark.exhaustive
def test_without_model_control_a_model_that_died_takes_the_server_with_it(repository):
    supervisor = Supervisor(lambda **ports: start(repository, model_control="none", **ports), repository, patience=Patience())
    supervisor.start({})
    try:
        first = supervisor.server
        supervisor.step()
        assert {name: watched.state for name, watched in supervisor.models.items()} == {"ovr_scores": "ok", "ovr": "ok"}
        kill(stub_of(first.process.pid, "ovr_scores"))
        until(lambda: supervisor.step() == 0.0)
        assert supervisor.restarts.total == 1
        assert (supervisor.server is not first, supervisor.server.ports) == (True, first.ports)
        supervisor.step()
        assert supervisor.models["ovr"].state == "ok"
    finally:
        supervisor.server.stop()


@pytest.mark.exhaustive
def test_what_is_published_into_the_repository_alone_is_not_loaded(repository, tmp_path):
    supervisor = Supervisor(lambda **ports: start(repository, **ports), repository, patience=Patience())
    supervisor.start({})
    try:
        supervisor.step()
        publish(small_bundle(tmp_path / "second", seed=1), repository)
        supervisor.step()
        kill(stub_of(supervisor.server.process.pid, "ovr_scores"))
        until(lambda: supervisor.step() == 0.0)
        supervisor.step()
        assert {name: (w.versions, w.state) for name, w in supervisor.models.items()} == {
            "ovr_scores": ((1,), "ok"),
            "ovr": ((1,), "ok"),
        }
    finally:
        supervisor.server.stop()


def test_what_hangs_is_not_ready_from_the_first_row_on_that_is_not_answered(installed, tmp_path, monkeypatch):
    publish(small_bundle(tmp_path / "bundle", ("cat", "dog")), repository := tmp_path / "repo", layout="per_head")
    health, patience = Health(None), Patience(probe_timeout_s=0.3, slow_probes=6)
    supervisor = Supervisor(lambda **ports: start(repository, **ports), repository, patience=patience, health=health)

    def ready():
        supervisor.step()
        return health.answer("/ready")[0] == 200

    def reason():
        supervisor.step()
        return health.answer("/ready")[1]["reason"]

    def unlisted(url, *, timeout_s=None, listed=control.ready_versions):
        if timeout_s is None:
            return listed(url)
        raise ServingError("timed out")

    supervisor.start({})
    try:
        until(ready)
        first = supervisor.server
        triton = first.process.pid
        with stopped(stub_of(triton, "ovr")):
            assert reason() == "model ovr slow: no answer within 0.3 s"
            with monkeypatch.context() as patched:  # as while something is loaded
                patched.setattr(control, "ready_versions", unlisted)
                assert reason() == "model ovr slow: no answer within 0.3 s"
        until(ready)
        with stopped(triton):
            assert reason().startswith("the server does not answer: ")
        until(ready)
        heads = ("head_cat", "head_dog")
        with stopped(*(stub_of(triton, head) for head in heads)):
            seen = []
            for _ in range(2):
                supervisor.step()
                seen.append({head for head in heads if supervisor.models[head].state == "slow"})
        assert [len(some) for some in seen] == [1, 2]  # one does not answer in time in a round, in turn
        until(lambda: ready() and all(watched.state == "ok" for watched in supervisor.models.values()))
        monkeypatch.setattr(control, "ready_versions", unlisted)
        for _ in range(patience.slow_probes):
            until(ready)
        assert supervisor.server is first
        kill(stub_of(triton, "ovr"))
        until(lambda: supervisor.step() == 0.0)
        assert (supervisor.server is not first, supervisor.restarts.total) == (True, 1)
    finally:
        supervisor.server.stop()
