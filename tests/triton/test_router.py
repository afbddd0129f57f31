"""The router's parameters over HTTP and gRPC, alone and with others in one batch, in both layouts; the examples of its page."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc_api
import tritonclient.http as http_api
from tritonclient.utils import InferenceServerException

from ovr import EdgePredictor
from ovr.core.artifact import DecisionPolicy
from ovr.core.faults import Faults
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle

pytestmark = pytest.mark.triton
IDS = ("cat", "dog", "owl", "a, b")
PAGE = Path(__file__).parents[2] / "docs/router.md"


@pytest.fixture(scope="module", params=["fused", "per_head"])
def served(request, installed, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    policy = DecisionPolicy(mode="multilabel", abstain_below=0.3, top_k=2)
    bundle = small_bundle(root / "bundle", IDS, policy=policy, versions=[4, 5, 6, 7])
    faults = Faults(head_timeout_ms=20_000)
    publish(bundle, root / "repo", layout=request.param, max_batch_size=64, max_queue_delay_us=2000, faults=faults)
    with start(root / "repo") as server:
        yield server, bundle


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(3).normal(size=(40, 6)).astype(np.float32)


@pytest.fixture(params=[http_api, grpc_api], ids=["http", "grpc"])
def ask(request, served):
    with connected(request.param, served[0]) as connection:
        yield lambda x, **parameters: infer(request.param, connection, x, parameters)


def connected(api, server):
    return api.InferenceServerClient((server.http_url if api is http_api else server.grpc_url).partition("://")[2])


def infer(api, connection, x, parameters):
    tensor = api.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return connection.infer("ovr", [tensor], parameters=parameters, request_id="r-1")


def test_classes_come_alone_in_the_order_asked_and_are_decided_among(ask, served, x):
    edge = EdgePredictor(served[1].path).predict(x)
    answer = ask(x, classes='["a, b", "dog"]', threshold='{"dog": 0.9}', top_k=1)
    prob_BC = answer.as_numpy("prob")
    assert np.abs(prob_BC - edge.prob_BK[:, [3, 1]]).max() <= 1e-6
    assert (answer.as_numpy("head_version") == [7, 5]).all()
    abstained_B = prob_BC.max(axis=1) < 0.3
    assert (answer.as_numpy("abstained")[:, 0] == abstained_B).all()
    threshold_C = np.float32([served[1].card.thresholds[3], 0.9])
    assert (answer.as_numpy("label") == (prob_BC >= threshold_C) & ~abstained_B[:, None]).all()
    assert answer.as_numpy("top").tolist() == prob_BC.argmax(axis=1)[:, None].tolist()
    assert [name.decode() for name in answer.as_numpy("top_class")[:, 0]] == [("a, b", "dog")[k] for k in prob_BC.argmax(axis=1)]
    assert not answer.as_numpy("unavailable").any()


def test_an_answer_says_which_bundle_gave_it(ask, served, x):
    assert ask(x[:2]).as_numpy("bundle_sha256").tolist() == [[served[1].bundle_sha256.encode()]] * 2


def test_top_k_may_be_more_than_there_are(ask, x):
    answer = ask(x, top_k=99)
    assert answer.as_numpy("top").shape == (40, 4)
    order_BK = np.argsort(-answer.as_numpy("prob"), axis=1, kind="stable")
    assert (answer.as_numpy("top") == order_BK).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"topk": 1}, "unknown parameter 'topk'; there are top_k, classes, threshold, cohort, fill"),
        ({"classes": "cta"}, r"no class of this model: 'cta' .nearest: cat"),
        ({"threshold": 1.5}, "parameter threshold is 1.5; expected a number from 0 to 1"),
        ({"cohort": "F"}, "this model has one calibration for all rows"),
    ],
)
def test_parameters_that_cannot_be_used_are_the_client_s_error(ask, x, parameters, message):
    with pytest.raises(InferenceServerException, match=message) as caught:
        ask(x, **parameters)
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


@pytest.mark.parametrize("own", [{"timeout": 60_000_000, "priority": 0}, {"sequence_id": 7, "sequence_start": True}])
def test_what_the_protocol_itself_knows_is_none_of_the_router_s(served, x, own):
    body = {"inputs": [{"name": "x", "shape": [1, 6], "datatype": "FP32", "data": x[0].tolist()}], "parameters": own}
    answer = json.loads(posted(f"{served[0].http_url}/v2/models/ovr/infer", body))
    assert {output["name"] for output in answer["outputs"]} >= {"prob", "unavailable"}


def test_a_list_is_refused_by_triton_itself(served, x):
    body = {
        "inputs": [{"name": "x", "shape": [1, 6], "datatype": "FP32", "data": x[0].tolist()}],
        "parameters": {"classes": ["cat"]},
    }
    with pytest.raises(urllib.error.HTTPError) as caught:
        posted(f"{served[0].http_url}/v2/models/ovr/infer", body)
    assert "should be either 'int', 'bool', or 'string'" in caught.value.read().decode()


def test_requests_of_one_batch_are_each_answered_by_their_own_parameters(served, x):
    """The bytes of every answer are those that its request gets alone, whatever its neighbours ask for."""
    wishes = [
        {},
        {"classes": "owl"},
        {"classes": "owl,cat", "top_k": 1},
        {"threshold": 0.2},
        {"threshold": '{"cat": 0.0}', "classes": "cat"},
        {"top_k": 4},
        {"nothing": 1},
        {"classes": "nobody"},
    ]
    outputs = ("prob", "label", "abstained", "top", "top_class", "head_version", "unavailable", "prob_none")
    jobs = [(wish, x[start : start + size]) for wish in wishes for start, size in ((0, 1), (1, 3), (5, 11))]

    def asked(api, connection, job):
        try:
            answer = infer(api, connection, job[1], job[0])
        except InferenceServerException as error:
            return str(error.message())
        return [answer.as_numpy(name).tolist() for name in outputs]

    with connected(grpc_api, served[0]) as connection:
        expected = [asked(grpc_api, connection, job) for job in jobs]
        before = num_executions(connection)
    assert sum(isinstance(answer, str) for answer in expected) == 6
    wrong = []

    def client(number):
        api = (http_api, grpc_api)[number % 2]
        with connected(api, served[0]) as connection:
            for index in np.random.default_rng(number).permutation(len(jobs)):
                if asked(api, connection, jobs[index]) != expected[index]:
                    wrong.append(jobs[index][0])

    together(client, 8)
    assert wrong == []
    with connected(grpc_api, served[0]) as connection:
        assert num_executions(connection) - before < 8 * len(jobs)  # some were in one batch


def test_parameters_that_are_no_utf_8_are_their_own_request_s_error(served, x):
    """Triton hands them over as they are. Requests beside them, in one batch, are answered."""
    url, tensor = f"{served[0].http_url}/v2/models/ovr/infer", {"name": "x", "shape": [1, 6], "datatype": "FP32"}
    good = json.dumps({"inputs": [{**tensor, "data": x[0].tolist()}], "outputs": [{"name": "prob"}]}).encode()
    bad = good[:-1] + b', "parameters": {"classes": "\xff"}}'
    expected, wrong, told = json.loads(posted(url, good))["outputs"], [], []

    def client(number):
        for turn in range(15):
            if (number + turn) % 3:
                if (got := json.loads(posted(url, good))["outputs"]) != expected:
                    wrong.append(got)
                continue
            with pytest.raises(urllib.error.HTTPError) as caught:
                posted(url, bad)
            told.append((caught.value.code, json.loads(caught.value.read())["error"].partition(" (request")[0]))

    together(client, 6)
    assert wrong == []
    assert told == [(400, "the request's parameters are not UTF-8: invalid start byte")] * 30


def together(client, num_clients):
    """Call `client` with the number of each, at the same time; an error is raised here."""
    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(client, range(num_clients)))


def num_executions(connection):
    (stats,) = connection.get_inference_statistics("ovr", as_json=True)["model_stats"]
    return int(stats["execution_count"])


def posted(url, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data)) as response:
        return response.read()


def test_the_examples_of_the_page_run(served, tmp_path):
    """Those for curl and for tritonclient, one after the other, against this server."""
    server = served[0]
    examples = re.findall(r"<!-- run: router -->\n```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for kind, _ in examples] == ["bash", "python"]
    for kind, code in examples:
        code = code.replace("http://127.0.0.1:8000", server.http_url)
        code = code.replace("127.0.0.1:8000", server.http_url.partition("://")[2])
        code = code.replace("127.0.0.1:8001", server.grpc_url.partition("://")[2])
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "dog" in done.stdout
