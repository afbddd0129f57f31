"""One server with a model a head: heads that are taken away, killed, stopped, slow or sick are done without, and taken back."""

import http.client
import os
import re
import signal
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc_api
from tritonclient.utils import InferenceServerException

from ovr import Client, EdgePredictor
from ovr.core.artifact import DecisionPolicy
from ovr.core.class_metrics import ClassMetricsSettings
from ovr.core.faults import Faults
from ovr.errors import ServingError
from ovr.serving import control
from ovr.serving.contents import read_config
from ovr.serving.contract import served_prob
from ovr.serving.pbtxt import to_text
from ovr.serving.probe import UNAVAILABLE, Probe
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle
from tests.triton.processes import until

pytestmark = pytest.mark.triton
IDS = ("a", "b", "must", "prior", "kept")
FAULTS = Faults(
    head_timeout_ms=1500,  # Triton gives a head up whose process is gone after a second
    scores_timeout_ms=2000,
    breaker_failures=2,
    breaker_pause_s=1.0,
    fallback_of={"must": "fail", "prior": "prior", "kept": "last_good"},
)
# Stands in for a head: does what is in the file beside it, and counts its calls there.
ODD_HEAD = """
import time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent

class TritonPythonModel:
    def execute(self, requests):
        with (HERE / "calls").open("a") as calls:
            calls.write("x")
        answer = (HERE / "answer").read_text()
        if answer == "slow":
            while (HERE / "answer").read_text() == "slow":
                time.sleep(0.01)
            answer = "0.5"
        if answer == "error":
            raise ValueError("out of order")
        arrays = [pb_utils.get_input_tensor_by_name(request, "features").as_numpy() for request in requests]
        if answer == "odd":
            answer = "0.5" if all(np.allclose(array, np.linspace(0, 1, array.shape[1])) for array in arrays) else "nan"
        sizes = [len(array) for array in arrays]
        probs = [np.full((size, 1), float(answer), np.float32) for size in sizes]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("prob", prob)]) for prob in probs]
"""
ODD_BACKBONE = ODD_HEAD.replace('"features"', '"x"').replace('"prob"', '"features"').replace("(size, 1)", "(size, 5)")


class Heads:
    """What is done to the heads of a running server."""

    def __init__(self, server, repository, bundle):
        self.server, self.repository, self.bundle = server, repository, bundle
        self.connection = grpc_api.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
        self.x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)

    def ask(self, **parameters):
        tensor = grpc_api.InferInput("x", list(self.x.shape), "FP32")
        tensor.set_data_from_numpy(self.x)
        return self.connection.infer("ovr", [tensor], parameters={"classes": "a,b,prior,kept", **parameters}, client_timeout=30)

    def unavailable(self, **parameters):
        """Return the classes that are unavailable in every row, after a check that the answer is one throughout."""
        answer = self.ask(**parameters)
        ids = parameters.get("classes", "a,b,prior,kept").split(",")
        missing_BC = answer.as_numpy("unavailable")
        assert (missing_BC == missing_BC[0]).all()
        assert not (answer.as_numpy("label") & missing_BC).any()
        assert ((answer.as_numpy("head_version") == 0) == missing_BC).all()
        names = {class_id for class_id, missing in zip(ids, missing_BC[0], strict=True) if missing}
        assert not names & {name.decode() for name in answer.as_numpy("top_class").flat}
        prob_BC = answer.as_numpy("prob")
        for column, class_id in enumerate(ids):
            if class_id == "prior" and class_id in names:
                assert np.allclose(prob_BC[:, column], 3 / 9)
            elif class_id in names:
                assert np.isnan(prob_BC[:, column]).all()
        return names

    def replace(self, model, version=2, source=ODD_HEAD):
        """Put another program in the place of a head, which does as it is told."""
        directory = self.repository / model
        config = read_config(self.repository, model)
        config.backend = "python"
        (directory / "config.pbtxt").write_text(to_text(config))
        for path in (directory / str(v) for v in config.version_policy.specific.versions):
            (path / "model.py").write_text(source)
            (path / "answer").write_text("0.25" if path.name == str(version) else "0.75")
        self.tell(model, "0.25", version)
        control.load_model(self.server.http_url, model)

    def tell(self, model, answer, version=2):
        (self.repository / model / str(version) / "answer").write_text(answer)

    def num_calls(self, model, version=2):
        calls = self.repository / model / str(version) / "calls"
        return len(calls.read_text()) if calls.exists() else 0

    def process_of(self, model):
        """Return the process that Triton runs a model in."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (path / "cmdline").read_bytes().split(b"\0")
                session = int((path / "stat").read_text().rpartition(")")[2].split()[3])
            except OSError:
                continue
            if session == self.server.process.pid and any(part.startswith(f"{model}_".encode()) for part in arguments):
                found.append(int(path.name))
        (process,) = found
        return process

    def until(self, expected, timeout_s=30):
        """Ask until exactly these classes are unavailable."""
        deadline = time.monotonic() + timeout_s
        while (names := self.unavailable()) != expected:
            assert time.monotonic() < deadline, names
            time.sleep(0.05)

    def metrics(self, name):
        """Return (labels, number) of each series."""
        with urllib.request.urlopen(self.server.metrics_url) as response:
            found = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", response.read().decode(), re.MULTILINE)
        return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(number)) for labels, number in found]

    def num_faults(self, head, fault):
        return sum(
            number for labels, number in self.metrics("ovr_head_faults_total") if (labels["head"], labels["fault"]) == (head, fault)
        )

    def num_open(self, class_id):
        """Return how many breakers are open, as /metrics says, None where it does not."""
        return next((n for labels, n in self.metrics("ovr_class_breaker_open") if labels["class"] == class_id), None)


@pytest.fixture(scope="module")
def heads(installed, tmp_path_factory):
    root = tmp_path_factory.mktemp("partial")
    policy = DecisionPolicy(mode="argmax", top_k=2)
    settings = {"layout": "per_head", "faults": FAULTS, "class_metrics": ClassMetricsSettings(max_classes=4, interval_s=0.1)}
    publish(small_bundle(root / "first", IDS, policy=policy), root / "repo", **settings)
    bundle = small_bundle(root / "second", IDS, policy=policy, head_seeds=[10, 11, 12, 13, 14], version=2)
    publish(bundle, root / "repo", **settings)
    assert list(read_config(root / "repo", "head_kept").version_policy.specific.versions) == [2, 1]
    assert list(read_config(root / "repo", "head_a").version_policy.specific.versions) == [2]
    with start(root / "repo") as server:
        with Client(server.grpc_url) as client:
            x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
            answer = client.predict(x)
            assert not answer.unavailable_BK.any()
            assert np.abs(answer.prob_BK - EdgePredictor(bundle.path).predict_proba(x)).max() <= 1e-6
        yield Heads(server, root / "repo", bundle)


def test_a_head_that_is_unloaded_is_left_out_and_comes_back(heads):
    assert heads.unavailable() == set()
    control.unload_model(heads.server.http_url, "head_a")
    assert heads.unavailable() == {"a"}
    with Client(heads.server.http_url) as client:
        answer = client.predict(heads.x)
    assert answer.unavailable_BK.tolist() == [[True, False, False, False, False]] * 3
    assert answer.records()[0]["unavailable"] == ["a"]
    assert answer.records()[0]["prob"]["a"] is None
    assert answer.labels() == [(max(row, key=row.get),) for row in known(answer)]
    assert heads.ask(fill=-1).as_numpy("prob")[:, 0].tolist() == [-1.0] * 3
    probe = Probe("ovr", None, {"x": heads.x[:1]}, ["prob", UNAVAILABLE])
    with closing(http.client.HTTPConnection(heads.server.http_url.partition("://")[2])) as connection:
        seen = probe.ask(connection)
    assert (seen.outcome, seen.unavailable, seen.not_finite) == ("ok", (0,), {"prob": (0,)})
    with pytest.raises(ServingError, match="class 'a' is unavailable at grpc://"):
        served_prob(heads.bundle, heads.x, url=heads.server.grpc_url)
    assert heads.unavailable() == {"a"}
    until(lambda: heads.num_faults("head_a", "skipped") and heads.num_open("a") == 1)
    control.load_model(heads.server.http_url, "head_a")
    heads.until(set())
    until(lambda: heads.num_open("a") == 0)


def num_of_all(heads):
    """Return how many requests the ensemble has answered since it was loaded; 0 while it is not, as where a head is not."""
    with suppress(InferenceServerException):
        (stats,) = heads.connection.get_inference_statistics("ovr_heads").model_stats
        return stats.inference_stats.success.count
    return 0


def test_all_heads_are_asked_by_one_call_until_one_of_them_fails(heads):
    every = ",".join(IDS)
    until(lambda: heads.unavailable(classes=every) == set() and num_of_all(heads))  # by now each has been called, and is well
    expected, before = heads.ask(classes="kept,a,b,prior"), num_of_all(heads)
    answer = heads.ask(classes="must,kept,a,b,prior")
    assert num_of_all(heads) == before + 1
    assert answer.as_numpy("prob")[:, 1:].tobytes() == expected.as_numpy("prob").tobytes()
    assert answer.as_numpy("head_version").tolist() == [[2] * 5] * 3
    control.unload_model(heads.server.http_url, "head_a")
    for _ in range(3):
        assert heads.unavailable(classes=every) == {"a"}
    assert num_of_all(heads) == 0
    control.load_model(heads.server.http_url, "head_a")
    until(lambda: heads.unavailable(classes=every) == set() and num_of_all(heads))


def test_a_head_that_is_slow_among_all_is_left_out_and_the_others_are_asked_without_it(heads):
    heads.replace("head_prior")
    every = ",".join(IDS)
    until(lambda: heads.unavailable(classes=every) == set() and num_of_all(heads))
    heads.tell("head_prior", "slow")
    before = heads.num_calls("head_prior")
    for _ in range(4):
        assert heads.unavailable(classes=every) == {"prior"}
    assert heads.num_calls("head_prior") <= before + 2  # with all and by itself, and then it is busy
    heads.tell("head_prior", "0.25")
    before = num_of_all(heads)
    until(lambda: heads.unavailable(classes=every) == set() and num_of_all(heads) > before)


def test_a_killed_head_is_left_out_until_it_is_loaded_again(heads):
    os.kill(heads.process_of("head_b"), signal.SIGKILL)
    assert heads.unavailable() == {"b"}
    with pytest.raises(ServingError, match="at work"):
        control.unload_model(heads.server.http_url, "head_b", timeout_s=0.5)
    control.load_model(heads.server.http_url, "head_b")
    heads.until(set())


def test_a_class_that_must_not_be_missing_refuses_the_requests_that_ask_for_it(heads):
    control.unload_model(heads.server.http_url, "head_must")
    assert heads.unavailable(classes="a,b") == set()
    with pytest.raises(InferenceServerException, match="unavailable, and must not be missing: 'must'") as caught:
        heads.ask(classes="a,must")
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    with pytest.raises(InferenceServerException, match="no head answers of those that are asked for: 'must'"):
        heads.ask(classes="must")
    control.load_model(heads.server.http_url, "head_must")
    time.sleep(FAULTS.breaker_pause_s)
    assert heads.unavailable(classes="a,must") == set()


def test_a_slow_head_is_not_waited_for_once_its_breaker_is_open(heads):
    heads.replace("head_a")
    heads.until(set())
    heads.tell("head_a", "slow")
    before = heads.num_calls("head_a")
    for _ in range(6):
        assert heads.unavailable() == {"a"}
    assert heads.num_calls("head_a") == before + 1
    heads.tell("head_a", "0.25")
    heads.until(set())
    assert heads.ask().as_numpy("prob")[:, 0].tolist() == [0.25] * 3


@pytest.mark.parametrize("answer", ["nan", "1.5", "error"])
def test_a_sick_head_is_left_out_and_no_longer_asked(heads, answer):
    heads.replace("head_prior")
    heads.until(set())
    heads.tell("head_prior", answer)
    before = heads.num_calls("head_prior")
    for _ in range(8):
        assert heads.unavailable() == {"prior"}
    # A sick one is asked for a plain row too. More than two failures are trials, where the eight take seconds.
    assert before + 2 <= heads.num_calls("head_prior") < before + 2 * 8
    heads.tell("head_prior", "0.125")
    heads.until(set())


@pytest.mark.parametrize("class_id", ["a", "prior"])
def test_a_sick_head_that_is_asked_for_alone_is_told_to_be_away_for_now(heads, class_id):
    heads.replace(f"head_{class_id}")
    heads.until(set())
    heads.tell(f"head_{class_id}", "nan")
    for _ in range(4):
        with pytest.raises(InferenceServerException, match=f"no head answers of those that are asked for: '{class_id}'") as caught:
            heads.ask(classes=class_id)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
    heads.tell(f"head_{class_id}", "0.125")
    heads.until(set())


def test_odd_rows_are_their_own_error_and_do_not_take_a_head_from_others(heads):
    heads.replace("head_prior")
    heads.until(set())
    until(lambda: heads.num_open("prior") in (None, 0))
    heads.tell("head_prior", "odd")
    before = heads.num_calls("head_prior")
    for turn in range(1, 6):
        with pytest.raises(InferenceServerException, match=r"row 0 gets no probability .* overflow within the model") as caught:
            heads.ask(classes="prior")
        assert caught.value.status() == "StatusCode.INTERNAL"
        assert heads.num_calls("head_prior") == before + 2 * turn
    heads.tell("head_prior", "0.125")
    assert heads.unavailable() == set()  # at once
    assert heads.num_open("prior") in (None, 0)


def test_the_version_before_answers_for_a_sick_head_and_says_so(heads):
    heads.replace("head_kept")
    heads.until(set())
    heads.tell("head_kept", "nan")
    for _ in range(4):
        answer = heads.ask()
        assert not answer.as_numpy("unavailable").any()
        assert answer.as_numpy("prob")[:, 3].tolist() == [0.75] * 3
        assert answer.as_numpy("head_version")[:, 3].tolist() == [1] * 3
        assert answer.as_numpy("head_version")[:, 0].tolist() == [2] * 3
    for url in (heads.server.http_url, heads.server.grpc_url):
        with Client(url) as client:
            assert client.predict(heads.x, classes=["kept", "a"]).head_versions().tolist() == [[1, 2]] * 3
    until(lambda: heads.num_faults("", "sick") and heads.num_open("") == 1)  # of a class without series of its own
    heads.tell("head_kept", "nan", version=1)
    heads.until({"kept"})
    heads.tell("head_kept", "0.25")
    heads.until(set())
    assert heads.ask().as_numpy("head_version")[:, 3].tolist() == [2] * 3


def test_a_backbone_that_hangs_is_given_up_and_asked_again_once_it_is_done(heads):
    heads.replace("backbone", 1, ODD_BACKBONE)
    heads.until(set())
    heads.tell("backbone", "slow", 1)
    with pytest.raises(InferenceServerException, match="backbone did not answer within 2 s") as caught:
        heads.ask()
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    calls = heads.num_calls("backbone", 1)
    with pytest.raises(InferenceServerException, match=r"backbone (still works on|did not answer)"):
        heads.ask()
    assert heads.num_calls("backbone", 1) == calls
    heads.tell("backbone", "0.25", 1)
    until(lambda: answers(heads))


def test_what_a_backbone_says_of_its_error_is_for_the_log_alone(heads):
    heads.replace("backbone", 1, ODD_BACKBONE)
    heads.until(set())
    heads.tell("backbone", "error", 1)
    with pytest.raises(InferenceServerException) as caught:
        heads.ask()
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert caught.value.message().partition(" (request")[0] == "backbone does not answer"
    assert "backbone does not answer: Failed to process the request" in heads.server.log_path.read_text()
    heads.tell("backbone", "0.25", 1)
    until(lambda: answers(heads))


def answers(heads):
    with suppress(InferenceServerException):
        return heads.unavailable() == set()
    return False


def test_a_stopped_head_is_left_out(heads):
    """Last, as this server does not survive that the process goes on: it is killed instead, and loaded again."""
    process = heads.process_of("head_b")
    os.kill(process, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert heads.unavailable() == {"b"}
    finally:
        os.kill(process, signal.SIGKILL)
    with pytest.raises(ServingError, match="at work"):
        control.unload_model(heads.server.http_url, "head_b", timeout_s=0.5)
    control.load_model(heads.server.http_url, "head_b")
    heads.until(set())


def known(answer):
    """Return the probabilities of each row by class, without what is not known."""
    return [{key: value for key, value in record["prob"].items() if value is not None} for record in answer.records()]
