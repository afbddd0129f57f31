"""What a running router says of its requests: lines of JSON, and spans that a collector of OpenTelemetry gets."""

import json
import os
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ovr.core.request_log import RequestLogSettings
from ovr.serving.flags import Traces
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle
from tests.clients import CLIENTS
from tests.triton.processes import until

pytestmark = pytest.mark.triton
IDS = ("cat", "dog", "owl")
VERSIONS = [4, 5, 6]


# An error that nothing in the router expects, for requests with `top_k` 77.
BROKEN = """
from ovr.runtime.triton.answer import Answers
outputs = Answers.outputs

def broken(self, scored, asked, wanted):
    if asked.policy.top_k == 77:
        raise ZeroDivisionError("no answer")
    return outputs(self, scored, asked, wanted)

Answers.outputs = broken
"""


class Collector:
    """Takes spans as collectors do: OTLP over HTTP, in JSON."""

    def __init__(self):
        self.spans: list[dict] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                told = json.loads(self.rfile.read(int(self.headers["content-length"])))
                for resource in told["resourceSpans"]:
                    (service,) = (
                        a["value"]["stringValue"] for a in resource["resource"]["attributes"] if a["key"] == "service.name"
                    )
                    spans.extend(span | {"service": service} for scope in resource["scopeSpans"] for span in scope["spans"])
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, trace_id, name):
        """Return the spans of a trace that have this name."""
        return [span for span in self.spans if (span["traceId"], span["name"]) == (trace_id, name)]


class Served:
    """A server, where its spans go, and its router's lines."""

    def __init__(self, server, bundle, collector, path):
        self.server, self.bundle, self.collector, self._path = server, bundle, collector, path

    def line(self, request_id):
        """Return the line about a request once it is written."""
        return until(lambda: next((line for line in self.lines() if line["request_id"] == request_id), None))

    def lines(self):
        whole, _, _ = self._path.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]


@pytest.fixture(scope="module")
def served(installed, tmp_path_factory):
    root = tmp_path_factory.mktemp("logged")
    bundle = small_bundle(root / "bundle", IDS, versions=VERSIONS)
    publish(bundle, root / "repo", request_log=RequestLogSettings(share=1.0), max_queue_delay_us=1000)
    with (root / "repo/ovr/1/model.py").open("a") as program:
        program.write(BROKEN)
    collector = Collector()
    fd = os.open(root / "lines", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with start(root / "repo", request_log=fd, traces=Traces(collector.url)) as server:
        os.close(fd)
        yield Served(server, bundle, collector, root / "lines")
    collector.server.shutdown()
    collector.server.server_close()


def posted(served, **body):
    request = urllib.request.Request(f"{served.server.http_url}/v2/models/ovr/infer", data=json.dumps(body).encode())
    with urllib.request.urlopen(request) as response:
        return json.loads(response.read())


def rows(*values):
    return [{"name": "x", "shape": [1, 6], "datatype": "FP32", "data": list(values)}]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_line_says_which_heads_of_which_bundle_answered_a_request(served, protocol, rng):
    with CLIENTS["threads"](getattr(served.server, f"{protocol}_url")) as client:
        client.predict(rng.normal(size=(3, 6)), classes=["owl", "cat"], request_id=f"{protocol} 1")
    line = served.line(f"{protocol} 1")
    assert line.pop("latency_ms") > 0
    assert line.pop("time").endswith("Z")
    assert line == {
        "request_id": f"{protocol} 1",
        "status": "OK",
        "rows": 3,
        "num_classes": 2,
        "classes": ["owl", "cat"],
        "num_unavailable": 0,
        "unavailable": [],
        "head_versions": {"owl": [6], "cat": [4]},
        "trace_id": None,
        "span_id": None,
        "model": "ovr",
        "version": 1,
        "bundle_sha256": served.bundle.bundle_sha256,
    }


def test_a_request_without_a_name_gets_one_that_its_answer_and_its_line_say(served):
    answer = posted(served, inputs=rows(1, 0, -1, 0.5, 2, 0))
    (name,) = next(output["data"] for output in answer["outputs"] if output["name"] == "request_id")
    assert served.line(name)["status"] == "OK"
    named = posted(served, id="mine", inputs=rows(1, 0, -1, 0.5, 2, 0), outputs=[{"name": "request_id"}])
    assert named["outputs"][0]["data"] == ["mine"]


@pytest.mark.parametrize(
    ("parameters", "values"), [({}, (1, 0, -1, 0.5, 2, 1e39)), ({"classes": "wolf-31337"}, (31337, 0, -1, 0.5, 2, 0))]
)
def test_a_request_that_is_refused_has_a_line_without_what_was_in_it(served, parameters, values):
    with pytest.raises(urllib.error.HTTPError) as caught:
        posted(served, inputs=rows(*values), parameters=parameters)
    told = json.loads(caught.value.read())["error"]
    line = served.line(told.rpartition("(request ")[2].rstrip(")"))
    assert line["status"] == "INVALID_ARGUMENT"
    assert (line["rows"], line["head_versions"]) == (1, None)
    assert "31337" not in json.dumps(line)


def test_an_error_that_nobody_expects_is_its_own_request_s_and_told_to_the_log_alone(served):
    expected = posted(served, id="well", inputs=rows(1, 0, -1, 0.5, 2, 0), outputs=[{"name": "prob"}])["outputs"]

    def client(number):
        for turn in range(10):
            if (number + turn) % 3:
                assert posted(served, inputs=rows(1, 0, -1, 0.5, 2, 0), outputs=[{"name": "prob"}])["outputs"] == expected
                continue
            with pytest.raises(urllib.error.HTTPError) as caught:
                posted(served, id=f"broken {number} {turn}", inputs=rows(1, 0, -1, 0.5, 2, 0), parameters={"top_k": 77})
            assert caught.value.code == 500
            assert json.loads(caught.value.read()) == {"error": "the request failed within the server, whose log says why"}

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(client, range(6)))
    line = served.line("broken 0 0")
    assert (line["status"], line["head_versions"]) == ("INTERNAL", None)
    log = served.server.log_path.read_text()
    assert "request 'broken 0 0' failed:" in log
    assert "ZeroDivisionError: no answer" in log


@pytest.mark.parametrize(("kind", "protocol"), [(kind, protocol) for kind in CLIENTS for protocol in ("http", "grpc")])
def test_a_client_s_trace_goes_on_in_the_server_and_says_which_heads_answered(served, kind, protocol, rng):
    parent, names = "00f067aa0ba902b7", {}
    tries = 8 if protocol == "grpc" else 1  # Triton takes some of gRPC's traceparents for malformed (docs/request_log.md)
    with CLIENTS[kind](getattr(served.server, f"{protocol}_url")) as client:
        for trace_id in (os.urandom(16).hex() for _ in range(tries)):
            names[trace_id] = client.predict(rng.normal(size=(2, 6)), traceparent=f"00-{trace_id}-{parent}-01").request_id
    trace_id, name = until(lambda: next((known for known in names.items() if served.collector.of(known[0], "InferRequest")), None))
    (whole,) = served.collector.of(trace_id, "InferRequest")
    (ours,) = until(lambda: served.collector.of(trace_id, "ovr.router"))
    (model,) = served.collector.of(trace_id, "ovr")
    assert (whole["parentSpanId"], model["parentSpanId"], ours["parentSpanId"]) == (parent, whole["spanId"], model["spanId"])
    assert {span["service"] for span in (whole, ours, model)} == {"ovr"}
    said = {attribute["key"]: next(iter(attribute["value"].values())) for attribute in (*model["attributes"], *ours["attributes"])}
    assert said["triton.request_id"] == said["ovr.request_id"] == name
    assert said["ovr.bundle_sha256"] == served.bundle.bundle_sha256
    assert json.loads(said["ovr.head_versions"]) == {"cat": [4], "dog": [5], "owl": [6]}
    line = served.line(name)
    assert (line["trace_id"], line["span_id"]) == (trace_id, model["spanId"])
