"""A real nginx with the generated configuration before two real servers."""

import gzip
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.grpc as grpc_api
from tritonclient.utils import InferenceServerException

from ovr import Client, EdgePredictor, Retry
from ovr.errors import ServingError
from ovr.serving import control
from ovr.serving.gateway import write_gateway
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle
from tests.gateways import OTHER_TOKEN, TOKEN, Relay, certificates, gate, gateway
from tests.triton.processes import until

pytestmark = [pytest.mark.triton, pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx (Debian: nginx-light)")]


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """A certificate authority, and certificates of it for the gateway and for a client."""
    pytest.importorskip("cryptography.x509", reason="certificates need pip install '.[sign]'")
    return certificates(tmp_path_factory.mktemp("pem"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("served") / "bundle", ("a", "b"))


@pytest.fixture(scope="module")
def repository(bundle):
    publish(bundle, bundle.path.parent / "repo")
    return bundle.path.parent / "repo"


@pytest.fixture(scope="module")
def served(bundle, repository, installed):
    """Two servers of one repository, and what its bundle answers to some rows."""
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    with start(repository) as first, start(repository) as second:
        yield [first, second], x, EdgePredictor(bundle.path).predict_proba(x)


@pytest.fixture(scope="module")
def address(tmp_path_factory, pem, served):
    with gate(tmp_path_factory.mktemp("gate"), pem, served[0]) as address:
        yield address


@pytest.fixture
def ask(pem):
    """Ask over HTTPS; return status, body and headers."""

    def ask(address, path, body=None, token=TOKEN, client=None, method=None, headers=()):
        context = ssl.create_default_context(cafile=pem / "ca.pem")
        if client is not None:
            context.load_cert_chain(pem / f"{client}.pem", pem / f"{client}.key")
        headers = {**({} if token is None else {"Authorization": f"Bearer {token}"}), **dict(headers)}
        request = urllib.request.Request(f"https://{address}{path}", data=body, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, context=context, timeout=30) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    return ask


def rows(x):
    data = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return json.dumps({"inputs": [data], "outputs": [{"name": "prob"}]}).encode()


@pytest.fixture
def over_grpc(pem):
    """A gRPC client of the gateway, and the metadata with the token."""
    clients = []

    def over_grpc(address, client=None):
        keys = (
            {} if client is None else {"private_key": str(pem / f"{client}.key"), "certificate_chain": str(pem / f"{client}.pem")}
        )
        clients.append(grpc_api.InferenceServerClient(address, ssl=True, root_certificates=str(pem / "ca.pem"), **keys))
        return clients[-1]

    yield over_grpc
    for client in clients:
        client.close()


def infer(client, x, token=TOKEN):
    given = grpc_api.InferInput("x", x.shape, "FP32")
    given.set_data_from_numpy(x)
    headers = None if token is None else {"authorization": f"Bearer {token}"}
    return client.infer("ovr", [given], headers=headers, client_timeout=30).as_numpy("prob")


def test_who_has_a_token_gets_the_servers_answers_over_https_and_grpc(address, served, ask, over_grpc):
    _, x, prob_NK = served
    status, body, headers = ask(address, "/v2/models/ovr/infer", rows(x))
    assert status == 200
    (output,) = json.loads(body)["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), prob_NK, atol=1e-6)
    assert len(headers["X-Request-Id"]) == 32
    assert ask(address, "/v2", headers={"X-Request-Id": "r-1"})[2]["X-Request-Id"] == "r-1"
    assert len(ask(address, "/v2", headers={"X-Request-Id": 'r"1'})[2]["X-Request-Id"]) == 32
    assert headers["Server"] == "nginx"  # and no version
    assert ask(address, "/v2/health/ready")[0] == 200
    assert ask(address, "/v2/models/ovr/versions/1/ready")[0] == 200
    np.testing.assert_allclose(infer(over_grpc(address), x), prob_NK, atol=1e-6)


def test_others_are_refused_with_words_and_no_path(address, served, ask, over_grpc):
    x = served[1]
    for token in (None, "x" * 20, TOKEN.upper(), TOKEN[:-1], "team-a"):
        status, body, _ = ask(address, "/v2/models/ovr/infer", rows(x), token=token)
        assert (status, json.loads(body)) == (401, {"error": "no token that is known; send authorization: Bearer TOKEN"})
        with pytest.raises(InferenceServerException, match="no token that is known") as caught:
            infer(over_grpc(address), x, token=token)
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    assert ask(address, "/v2")[0] == 200


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/v2/repository/index", "POST", 404),
        ("/v2/repository/models/ovr/unload", "POST", 404),
        ("/v2/models/../repository/index", "POST", 404),
        ("/v2/models/%2e%2e/repository/index", "POST", 404),
        ("/v2//repository//index", "POST", 404),
        ("/v2/models/ovr/trace/setting", "GET", 404),
        ("/v2/trace/setting", "POST", 404),
        ("/v2/logging", "POST", 404),
        ("/v2/systemsharedmemory/status", "GET", 404),
        ("/v2/cudasharedmemory/status", "GET", 404),
        ("/v2/models/ovr/infer%0a", "POST", 404),  # unescaped it would end the line of the request to the server
        ("/v2/models/ovr%0d%0ax:y/infer", "POST", 404),
        ("/v2%0a", "GET", 404),
        ("/v2/health/live%0a", "GET", 404),
        ("/v2/models/ovr/ready%0a", "GET", 404),
        ("/v2/models/ovr/infer", "GET", 405),
        ("/v2/models/ovr/config", "POST", 405),
        ("/metrics", "GET", 404),
        ("/", "GET", 404),
    ],
)
def test_what_changes_a_server_is_not_let_through(address, ask, path, method, status):
    got, body, _ = ask(address, path, b"{}" if method == "POST" else None, method=method)
    assert got == status
    assert set(json.loads(body)) == {"error"}


def test_grpc_lets_no_other_call_through(address, over_grpc):
    client, headers = over_grpc(address), {"authorization": f"Bearer {TOKEN}"}
    assert client.is_model_ready("ovr", headers=headers)
    for call in (
        client.get_model_repository_index,
        client.get_log_settings,
        client.get_trace_settings,
        client.get_system_shared_memory_status,
    ):
        with pytest.raises(InferenceServerException, match="there is no such API here") as caught:
            call(headers=headers)
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(InferenceServerException, match="there is no such API here"):
        client.unload_model("ovr", headers=headers)


def test_requests_that_are_too_large_are_refused_by_both_protocols(address, ask, over_grpc):
    x = np.zeros((60_000, 6), np.float32)
    status, body, _ = ask(address, "/v2/models/ovr/infer", rows(x))
    assert (status, json.loads(body)) == (413, {"error": "the request is larger than is let through"})
    with pytest.raises(InferenceServerException):
        infer(over_grpc(address), x)


def test_compressed_requests_are_refused_by_both_protocols(address, served, ask, over_grpc):
    x = served[1]
    status, body, _ = ask(address, "/v2/models/ovr/infer", gzip.compress(rows(x)), headers={"Content-Encoding": "gzip"})
    assert (status, json.loads(body)) == (415, {"error": "compressed requests are not taken"})
    given = grpc_api.InferInput("x", x.shape, "FP32")
    given.set_data_from_numpy(x)
    with pytest.raises(InferenceServerException, match="compressed requests are not taken"):
        over_grpc(address).infer("ovr", [given], headers={"authorization": f"Bearer {TOKEN}"}, compression_algorithm="gzip")


def test_one_client_that_asks_too_often_is_refused_and_another_is_not(tmp_path, pem, served, ask, over_grpc):
    x = served[1]
    with gate(tmp_path, pem, served[0], requests_per_s=1, burst=2) as address:
        answers = [ask(address, "/v2/models/ovr/infer", rows(x))[0] for _ in range(10)]
        assert answers[:3] == [200] * 3
        assert 429 in answers
        client = over_grpc(address)
        with pytest.raises(InferenceServerException, match="too many requests; try again later") as caught:
            [infer(client, x) for _ in range(10)]
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert ask(address, "/v2/models/ovr/infer", rows(x), token=OTHER_TOKEN)[0] == 200


def test_a_certificate_is_asked_for_and_one_of_the_authority_is_taken(tmp_path, pem, served, ask, over_grpc):
    servers, x, prob_NK = served
    with gate(tmp_path, pem, servers, client_ca=pem / "ca.pem", tokens=None) as address:
        status, body, _ = ask(address, "/v2/models/ovr/infer", rows(x), token=None)
        assert (status, json.loads(body)) == (400, {"error": "a certificate of a trusted authority is needed"})
        assert ask(address, "/v2/models/ovr/infer", rows(x), token=None, client="client")[0] == 200
        np.testing.assert_allclose(infer(over_grpc(address, "client"), x, token=None), prob_NK, atol=1e-6)
        with pytest.raises(InferenceServerException, match="status: 400"):  # nginx refuses before it knows that it is gRPC
            infer(over_grpc(address), x, token=None)
    logged = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert [line["client"] for line in logged] == ["", "CN=client", "CN=client", ""]
    assert [line["status"] for line in logged][:3] == [400, 200, 200]


def test_the_gateway_s_log_has_the_id_that_the_client_s_answer_has(tmp_path, pem, served):
    with gate(tmp_path, pem, served[0]) as address:
        for number, scheme in enumerate(("https", "grpcs")):
            with Client(f"{scheme}://{address}", root_certificates=pem / "ca.pem", token=TOKEN) as client:
                assert client.predict(served[1], request_id=f"r-{number}").request_id == f"r-{number}"
                client.predict(served[1], request_id="a b")  # no header's
    ids = [json.loads(line)["request_id"] for line in (tmp_path / "access.log").read_text().splitlines()]
    assert [ids.count(f"r-{number}") for number in range(2)] == [1, 1]
    assert "a b" not in ids


def test_what_one_model_cannot_answer_takes_no_server_from_others(address, served, ask):
    """A 503 of the router, and a 404 of a model that is unloaded, are no faults of the servers that nginx would leave alone."""
    servers, x, _ = served
    for server in servers:
        with control.authorized(server.key.secret):
            control.unload_model(server.http_url, "ovr_scores")
    try:
        for _ in range(8):
            assert ask(address, "/v2/models/ovr/infer", rows(x))[0] == 503
            assert ask(address, "/v2/models/ovr_scores/infer", rows(x))[0] == 404
            assert ask(address, "/v2/models/ovr/ready")[0] == 200
    finally:
        for server in servers:
            with control.authorized(server.key.secret):
                control.load_model(server.http_url, "ovr_scores")
    assert ask(address, "/v2/models/ovr/infer", rows(x))[0] == 200


def test_what_takes_too_long_is_not_asked_of_another_server(tmp_path, pem, served, ask):
    servers, x, _ = served
    with Relay(servers[0].http_url) as first, Relay(servers[1].http_url) as second:
        relays = [first, second]
        behind = [SimpleNamespace(http_url=relay.url, grpc_url=relay.url) for relay in relays]
        with gate(tmp_path, pem, behind, timeout_s=1) as address:
            for relay in relays:
                relay.held.set()
            status, body, _ = ask(address, "/v2/models/ovr/infer", rows(x))
            assert (status, json.loads(body)) == (504, {"error": "no server has answered in time"})
            assert sum(relay.num_connections for relay in relays) == 1
            for relay in relays:
                relay.held.clear()
            assert ask(address, "/v2/models/ovr/infer", rows(x))[0] == 200


def test_no_request_fails_for_good_while_one_of_two_servers_is_killed(address, served, ask, over_grpc):
    """HTTP clients need no retry of their own; gRPC ones retry once, as nginx cannot send a gRPC request twice."""
    servers, x, prob_NK = served
    killed, finished, failures, refused = threading.Event(), threading.Event(), [], []
    counts = {"http": 0, "grpc": 0, "after": 0}

    def over_http():
        while not finished.is_set():
            status, body, _ = ask(address, "/v2/models/ovr/infer", rows(x))
            if status != 200:
                failures.append((status, body))
                continue
            (output,) = json.loads(body)["outputs"]
            if np.abs(np.reshape(output["data"], output["shape"]) - prob_NK).max() > 1e-6:
                failures.append(output)
            counts["http"] += 1
            counts["after"] += killed.is_set()

    def over_grpc_too():
        client = over_grpc(address)
        while not finished.is_set():
            try:
                prob = infer(client, x)
            except InferenceServerException as error:
                refused.append(error.status())
                try:
                    prob = infer(client, x)
                except InferenceServerException as again:
                    failures.append(str(again))
                    continue
            if np.abs(prob - prob_NK).max() > 1e-6:
                failures.append(prob)
            counts["grpc"] += 1

    threads = [threading.Thread(target=over_http) for _ in range(4)] + [threading.Thread(target=over_grpc_too) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        os.killpg(servers[1].process.pid, signal.SIGKILL)  # and its models' processes, which may hold its connections
        killed.set()
        time.sleep(1.5)
    finally:
        finished.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert set(refused) <= {"StatusCode.UNAVAILABLE"}
    assert min(counts["http"], counts["grpc"], counts["after"]) > 10


@pytest.fixture
def supervised(repository):
    """`ovr serve` as a process, of which the gateway needs the addresses."""
    ports = [f"{name}_port=0" for name in ("http", "grpc", "metrics", "health")]
    command = [sys.executable, "-m", "ovr", "serve", f"repository={repository}", *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            told = dict(line.split() for line in iter(process.stdout.readline, "ready; stop with Ctrl-C\n") if line)
            yield SimpleNamespace(process=process, http_url=told["HTTP"], grpc_url=told["gRPC"])
        finally:
            process.terminate()
            process.communicate(timeout=60)


@contextmanager
def load(address, pem, served, retry):
    """Have two clients of each protocol ask all the time; yield how many answers each has, and what went wrong."""
    _, x, prob_NK = served
    over, counts, wrong = threading.Event(), {}, []

    def ask(number, scheme):
        with Client(f"{scheme}://{address}", root_certificates=pem / "ca.pem", token=TOKEN, retry=retry[scheme]) as client:
            while not over.is_set():
                try:
                    if np.abs(client.predict(x).prob_BK - prob_NK).max() > 1e-6:
                        wrong.append("other probabilities")
                except ServingError as error:
                    wrong.append(str(error))
                counts[number, scheme] = counts.get((number, scheme), 0) + 1

    threads = [threading.Thread(target=ask, args=(number, scheme)) for number in range(2) for scheme in ("https", "grpcs")]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(counts) == 4)
        yield counts, wrong
        before = dict(counts)
        until(lambda: all(counts[key] > before[key] + 3 for key in before))
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_no_request_fails_for_good_while_one_of_two_servers_ends_in_order(tmp_path, pem, served, supervised):
    """HTTP clients need no retry of their own; gRPC ones ask again until the server has gone: nginx does not read its refusals."""
    retry = {"https": Retry(attempts=1), "grpcs": Retry(attempts=50, first_delay_s=0.05, max_delay_s=0.5, budget=10_000)}
    servers = [served[0][0], supervised]
    with gate(tmp_path, pem, servers) as address, load(address, pem, served, retry) as (counts, wrong):
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.process.wait(60) == 0
        assert sum(counts.values()) > 20
    assert wrong == []
    answered = [json.loads(line)["servers"] for line in (tmp_path / "access.log").read_text().splitlines()]
    assert any(", " in servers for servers in answered)  # another was asked


@pytest.mark.exhaustive
def test_where_the_gateway_is_written_anew_before_a_server_ends_the_usual_retries_do(tmp_path, pem, served, supervised):
    servers, retry = [served[0][0], supervised], dict.fromkeys(("https", "grpcs"), Retry())
    with gate(tmp_path, pem, servers) as address, load(address, pem, served, retry) as (_, wrong):
        write_gateway(gateway(pem, servers[:1], int(address.rpartition(":")[2])), tmp_path)
        subprocess.run(["nginx", "-p", str(tmp_path), "-c", "nginx.conf", "-e", "stderr", "-s", "reload"], check=True)
        time.sleep(1)
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.process.wait(60) == 0
    assert wrong == []
