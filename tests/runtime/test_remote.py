"""Addresses, requests as bytes, retries and what errors mean, without a server; with one: tests/triton/test_client.py."""

import asyncio
import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as services

from ovr import AsyncClient, Retry
from ovr.errors import ConfigError, DeadlineError, InputError, ServingError, UnavailableError
from ovr.runtime.remote import failures
from ovr.runtime.remote.address import parse
from ovr.runtime.remote.grpc import from_grpc, to_grpc
from ovr.runtime.remote.retry import Deadline, Failure, Retries
from ovr.runtime.remote.v2 import Request, Tensor, from_http, to_http
from ovr.serving.gateway import REFUSALS
from tests.bundles import small_bundle
from tests.clients import CLIENTS
from tests.gateways import Relay

ADDRESS = parse("http://host:8000")


@pytest.fixture(params=["threads", "loop"])
def make(request):
    return CLIENTS[request.param]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://user:secret@host", "has a user, a query or a fragment; give credentials as token= or headers="),
        ("grpc://host/path", "has the path '/path', and gRPC has none"),
        ("http://host:8000?x=1", "has a user, a query or a fragment"),
    ],
)
def test_addresses_that_say_too_much_are_refused(make, url, told):
    with pytest.raises(ServingError, match=told):
        make(url)


def test_an_address_is_taken_apart():
    assert parse("https://[::1]/team/").host_port == "[::1]:443"
    assert parse("https://[::1]/team/").path == "/team"
    assert [parse(f"{scheme}://host").port for scheme in ("http", "grpc", "grpcs")] == [8000, 8001, 443]
    assert parse("https://host:8000").port == 8000


@pytest.mark.parametrize(
    ("url", "settings", "told"),
    [
        ("http://h", {"timeout_s": 0}, "timeout_s is 0; expected a number of seconds above 0"),
        ("http://h", {"timeout_s": None}, "timeout_s is None; expected a number of seconds above 0"),
        ("http://h", {"max_request_bytes": 0}, "max_request_bytes is 0; expected a whole number of at least 1"),
        ("http://h", {"deadline_s": "1"}, "deadline_s is '1'; expected a number of seconds above 0"),
        ("http://h", {"max_in_flight": 0}, "max_in_flight is 0; expected a whole number of at least 1"),
        ("http://h", {"verify": False}, r"verify=False is given, but http://h does not speak TLS; expected https://"),
        ("grpc://h", {"root_certificates": "f"}, r"root_certificates is given, but .* expected grpcs://"),
        ("grpcs://h", {"verify": False}, r"verify=False is not possible with gRPC .*; give root_certificates=FILE"),
        ("https://h", {"private_key": "f"}, "private_key and certificate_chain belong together"),
        ("https://h", {"root_certificates": "none.pem"}, "the files of TLS cannot be used: .*root_certificates=none.pem"),
        ("grpcs://h", {"root_certificates": "none.pem"}, "the files of TLS cannot be used: .*none.pem"),
        ("http://h", {"headers": {"a b": "c"}}, "'a b' is no name of a header"),
        ("http://h", {"headers": {"a": "c\r\nd: e"}}, "the value of header 'a' cannot be sent"),
        ("http://h", {"headers": {"Authorization": "x"}, "token": "y"}, "token is given, and headers has an Authorization"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, url, settings, told):
    with pytest.raises(ConfigError, match=told):
        make(url, **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attempts": 0}, "attempts of Retry is 0; expected a whole number of at least 1"),
        ({"budget": 1.5}, r"budget of Retry is 1\.5; expected a whole number"),
        ({"first_delay_s": -1}, "first_delay_s of Retry is -1; expected a number of at least 0"),
    ],
)
def test_retries_that_cannot_be_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        Retry(**settings)


def test_requests_and_answers_go_through_both_protocols_unchanged(rng):
    x = rng.normal(size=(3, 2)).astype(np.float32)
    texts = np.array([["ä".encode()], [b""], [b"\x00"]], dtype=np.object_)
    request = Request("m", [Tensor("x", "FP32", x), Tensor("text", "BYTES", texts)], ["prob"], "id", "ask", {"top_k": 3, "t": 0.5})
    body, length = to_http(request)
    sizes = x.nbytes, 4 + 2 + 4 + 4 + 1
    assert body[length : length + sizes[0]] == x.tobytes()
    assert len(body) == length + sum(sizes)
    message = to_grpc(request)
    assert [len(raw) for raw in message.raw_input_contents] == list(sizes)
    assert message.parameters["top_k"].int64_param == 3
    assert message.parameters["t"].double_param == 0.5
    answer = pb.ModelInferResponse(model_version="7", id="id")
    for tensor in request.tensors:
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        answer.raw_output_contents.append(tensor.raw())
    arrays = from_grpc(answer).arrays
    assert (arrays["x"] == x).all()
    assert (arrays["text"] == texts).all()


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"hello", None),
        (b"{}", None),
        (b"[]", "2"),
        (b'{"model_version":"1","outputs":[{"name":"a","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}', None),
        (
            b'{"model_version":"1","outputs":[{"name":"a","datatype":"FP16","shape":[1],"parameters":{"binary_data_size":2}}]}ab',
            "109",
        ),
    ],
)
def test_an_answer_that_is_none_is_refused(body, length):
    with pytest.raises(ValueError):
        from_http(body, length)


def test_a_text_that_breaks_off_is_refused():
    answer = pb.ModelInferResponse(model_version="7")
    answer.outputs.add(name="a", datatype="BYTES", shape=[1])
    answer.raw_output_contents.append(b"\x05\x00\x00\x00ab")
    with pytest.raises(ValueError, match="ends in the middle of a value"):
        from_grpc(answer)


def test_pauses_grow_and_are_drawn_from_nothing_up():
    retries = Retries(Retry(attempts=10, first_delay_s=0.1, max_delay_s=0.5, budget=10_000))
    failure = Failure(UnavailableError("away"), may_retry=True)
    for attempt, longest_s in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (9, 0.5)):
        drawn = [retries.delay_s(failure, attempt, Deadline(None)) for _ in range(500)]
        assert 0 <= min(drawn) < 0.05 * longest_s
        assert 0.95 * longest_s < max(drawn) <= longest_s
    with pytest.raises(UnavailableError, match="away; tried 10 times"):
        retries.delay_s(failure, 10, Deadline(None))


def test_what_a_server_wants_to_be_left_alone_is_added_unless_it_is_too_long():
    retries = Retries(Retry(first_delay_s=0.0))
    assert retries.delay_s(Failure(UnavailableError("full"), may_retry=True, wait_s=3.0), 1, Deadline(None)) == 3.0
    with pytest.raises(UnavailableError, match=r"full; tried 1 times, the deadline of 2 s leaves no time for another"):
        retries.delay_s(Failure(UnavailableError("full"), may_retry=True, wait_s=3.0), 1, Deadline(2.0))
    with pytest.raises(UnavailableError, match="full; it asks to be left alone for 3600 s"):
        retries.delay_s(Failure(UnavailableError("full"), may_retry=True, wait_s=3600.0), 1, Deadline(None))


def test_requests_that_succeed_fill_the_budget_up_again():
    retries = Retries(Retry(first_delay_s=0.0, budget=2, budget_per_success=0.5))
    failure = Failure(UnavailableError("away"), may_retry=True)
    for _ in range(2):
        retries.delay_s(failure, 1, Deadline(None))
    with pytest.raises(UnavailableError, match="budget of retries is used up"):
        retries.delay_s(failure, 1, Deadline(None))
    for _ in range(100):
        retries.succeeded()
    for _ in range(2):
        retries.delay_s(failure, 1, Deadline(None))
    with pytest.raises(UnavailableError, match="budget of retries is used up"):
        retries.delay_s(failure, 1, Deadline(None))


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "may_retry", "told"),
    [
        (503, {}, b'{"error":"Exceeds maximum queue size"}', UnavailableError, True, "could not infer now: Exceeds maximum queue"),
        (429, {"retry-after": "7"}, b"", UnavailableError, True, "could not infer now: status 429"),
        (502, {}, b"<html>", UnavailableError, True, "status 502"),
        (400, {}, b'{"error":"row 2 holds nan"}', ServingError, False, "could not infer: row 2 holds nan"),
        (400, {}, b"The plain HTTP request was sent to HTTPS port", ServingError, False, "expected https://host:8000"),
        (500, {}, b'{"error":"in the model"}', ServingError, False, "could not infer: in the model"),
        (401, {}, b"", ServingError, False, "does not let this client in: status 401; give token= or headers="),
        (413, {}, b"<html>", ServingError, False, "too large .*; give a smaller max_request_bytes"),
        (404, {}, b'{"error":"unknown model: ovr"}', ServingError, False, "publish one there with `ovr publish`"),
        (404, {}, b"<html>", ServingError, False, "is no Triton server, .*status 404"),
        (400, {}, b'{"error":"model \'ovr\' has no available versions"}', UnavailableError, True, "no available versions"),
        (504, {}, b"", DeadlineError, False, "a gateway at .* waited too long"),
        (302, {"location": "/login"}, b"", ServingError, False, "it redirects to /login"),
    ],
)
def test_what_a_status_means(status, headers, body, kind, may_retry, told):
    failure = failures.of_status(ADDRESS, "infer", status, headers, body)
    assert (type(failure.error), failure.may_retry) == (kind, may_retry)
    assert failure.wait_s == float(headers.get("retry-after", 0))
    with pytest.raises(kind, match=told):
        raise failure.error


@pytest.mark.parametrize(
    ("error", "kind", "may_retry", "told"),
    [
        (ConnectionResetError("reset"), UnavailableError, True, "no server answers at http://host:8000: reset"),
        (ConnectionRefusedError("refused"), UnavailableError, True, "refused"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), UnavailableError, False, "unknown"),
        (socket.gaierror(socket.EAI_AGAIN, "later"), UnavailableError, True, "later"),
        (OSError(24, "too many open files"), UnavailableError, False, "too many open files"),
        (TimeoutError(), DeadlineError, False, "did not infer within 3 s"),
        (ssl.SSLError("CERTIFICATE_VERIFY_FAILED"), ServingError, False, "give root_certificates=FILE"),
        (ssl.SSLError("tlsv13 alert certificate required"), ServingError, False, "give private_key=FILE"),
        (ssl.SSLError("WRONG_VERSION_NUMBER"), ServingError, False, "it speaks no TLS at this port"),
        (ValueError("\x00\n odd"), ServingError, False, r"is no Triton server, .*: \? odd;"),
    ],
)
def test_what_an_error_of_a_connection_means(error, kind, may_retry, told):
    failure = failures.of_error(ADDRESS, error, "infer", 3.0)
    assert (type(failure.error), failure.may_retry) == (kind, may_retry)
    with pytest.raises(kind, match=told):
        raise failure.error


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"HTTP/1.1 400 Bad Request", "could not tell the model's configuration: no"),
        (b"HTTP/1.1 403 Forbidden", "does not let this client in"),
    ],
)
def test_what_a_server_refuses_is_asked_once(make, head, told):
    with Relay("http://127.0.0.1:9") as relay, make(relay.url, retry=Retry(first_delay_s=0.0)) as client:
        relay.canned = [head + b'\r\nContent-Length: 14\r\n\r\n{"error":"no"}'] * 3
        with pytest.raises(ServingError, match=told):
            client.card()
        assert len(relay.canned) == 2


@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"429 Too Many Requests"])
def test_what_a_server_cannot_take_now_is_asked_again(make, status):
    with Relay("http://127.0.0.1:9") as relay, make(relay.url, retry=Retry(first_delay_s=0.0)) as client:
        relay.canned = [b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 0\r\n\r\n"] * 9
        with pytest.raises(UnavailableError, match=rf"now: status {status[:3].decode()}; tried 4 times"):
            client.card()
        assert len(relay.canned) == 5


def test_headers_and_token_are_sent_with_a_path_in_front(make):
    with Relay("http://127.0.0.1:9") as relay:
        relay.canned = [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]
        with make(f"{relay.url}/team/", token="secret", headers={"X-Tenant": "t"}) as client, pytest.raises(ServingError):
            client.card()
    head = relay.received[0].lower()
    assert head.startswith(b"get /team/v2/models/ovr/config http/1.1\r\n")
    assert b"\r\nauthorization: bearer secret\r\n" in head
    assert b"\r\nx-tenant: t\r\n" in head


@contextmanager
def answering(servicer, num_threads=1):
    """Yield the address of a server of gRPC that answers so."""
    server = grpc.server(ThreadPoolExecutor(num_threads))
    services.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class Refusing(services.GRPCInferenceServiceServicer):
    """Answers every request with the next status, and remembers what came with it."""

    def __init__(self, statuses):
        self.statuses, self.metadata = iter(statuses), []

    def ModelConfig(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        context.abort(*next(self.statuses))


@pytest.mark.parametrize(
    ("code", "message", "kind", "num_asked", "told"),
    [
        ("UNAVAILABLE", "Exceeds maximum queue size", UnavailableError, 4, "now: Exceeds maximum queue size; tried 4 times"),
        ("RESOURCE_EXHAUSTED", "rate", UnavailableError, 4, "now: rate; tried 4 times"),
        ("RESOURCE_EXHAUSTED", "message larger than max (9 vs. 4)", ServingError, 1, "smaller max_request_bytes"),
        ("RESOURCE_EXHAUSTED", REFUSALS[413][2], ServingError, 1, "is too large .*; give a smaller max_request_bytes"),
        ("INTERNAL", "Received RST_STREAM with error code 2", UnavailableError, 4, "RST_STREAM"),
        ("INTERNAL", "in the model", ServingError, 1, "could not tell the model's configuration: in the model"),
        ("INVALID_ARGUMENT", "row 2", ServingError, 1, "could not tell the model's configuration: row 2"),
        ("INVALID_ARGUMENT", "incomplete string data for inference input 'x'", ServingError, 4, "incomplete string data"),
        ("NOT_FOUND", "unknown model", ServingError, 1, "unknown model; publish one there"),
        ("UNAUTHENTICATED", "who", ServingError, 1, "does not let this client in: who"),
        ("UNIMPLEMENTED", "unknown service", ServingError, 1, "is no Triton server"),
        ("DEADLINE_EXCEEDED", "", DeadlineError, 1, "did not tell the model's configuration within"),
    ],
)
def test_what_a_status_of_grpc_means(make, code, message, kind, num_asked, told):
    refusing = Refusing(repeat((grpc.StatusCode[code], message)))
    with answering(refusing) as url, make(url, token="secret", retry=Retry(first_delay_s=0.0)) as client:
        with pytest.raises(kind, match=told) as caught:
            client.card()
        assert type(caught.value) is kind
    assert len(refusing.metadata) == num_asked
    assert all(metadata["authorization"] == "Bearer secret" for metadata in refusing.metadata)


class Limited(services.GRPCInferenceServiceServicer):
    """Says that it takes so many rows, and takes none."""

    def __init__(self, card):
        self.asked = []
        self._config = model_config_pb2.ModelConfig(name="ovr", max_batch_size=64)
        for name, value in {"ovr.card": json.dumps(card.to_json()), "ovr.version": "1"}.items():
            self._config.parameters[name].string_value = value

    def ModelConfig(self, request, context):
        self.asked.append("config")
        return pb.ModelConfigResponse(config=self._config)

    def ModelInfer(self, request, context):
        self.asked.append(f"infer {request.inputs[0].shape[0]}")
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "inference request batch-size must be <= 8 for 'ovr'")


def test_rows_that_are_too_many_by_no_limit_that_is_told_are_an_error(make, tmp_path):
    limited = Limited(small_bundle(tmp_path / "bundle").card)
    told = r"could not infer rows 0 to 63: .*batch-size must be <= 8"
    with answering(limited) as url, make(url, max_in_flight=1) as client, pytest.raises(ServingError, match=told):
        client.predict(np.zeros((100, 6)))
    assert limited.asked == ["config", "infer 64", "config"]


def test_classes_and_rows_that_the_model_refuses_are_held_against_what_is_served_now(make, tmp_path):
    """Only the first of these is checked against what the client knows already, and no row of any is sent."""
    limited = Limited(small_bundle(tmp_path / "bundle").card)
    with answering(limited) as url, make(url) as client:
        for number, (rows, settings, told) in enumerate(
            (
                (np.zeros((1, 6)), {"classes": ["cow"]}, "has no class 'cow'"),
                (np.zeros((1, 7)), {}, r"rows have shape \(1, 7\)"),
                (np.full((1, 6), np.nan), {}, "holds nan"),
            ),
            start=1,
        ):
            with pytest.raises(InputError, match=told):
                client.predict(rows, **settings)
            assert limited.asked == ["config"] * number


class Silent(services.GRPCInferenceServiceServicer):
    """Answers nothing until it is let."""

    def __init__(self):
        self.num_asked, self.let = 0, threading.Event()

    def ModelConfig(self, request, context):
        self.num_asked += 1
        self.let.wait(20)
        return pb.ModelConfigResponse()


def test_close_ends_what_tasks_wait_for_and_a_task_that_is_cancelled_is_that():
    async def asked(url, count):
        client = AsyncClient(url)
        tasks = [asyncio.ensure_future(client.card()) for _ in range(3)]
        while count() < 3:
            await asyncio.sleep(0.01)
        tasks[0].cancel()
        await asyncio.sleep(0)
        await client.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    silent = Silent()
    with answering(silent, num_threads=3) as url:
        try:
            of_grpc = asyncio.run(asked(url, lambda: silent.num_asked))
        finally:
            silent.let.set()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = []
        thread = threading.Thread(target=lambda: [taken.append(listening.accept()[0]) for _ in range(3)])
        thread.start()
        of_http = asyncio.run(asked(f"http://127.0.0.1:{listening.getsockname()[1]}", lambda: len(taken)))
        thread.join()
        for sock in taken:
            sock.close()
    for cancelled, *ended in (of_grpc, of_http):
        assert isinstance(cancelled, asyncio.CancelledError)
        assert [type(error) for error in ended] == [ServingError] * 2
        assert all("is closed; make another" in str(error) for error in ended)
