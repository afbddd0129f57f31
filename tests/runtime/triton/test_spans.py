"""Spans of the router for a collector that is not there; with one: tests/triton/test_request_log.py."""

import json
import socket

from ovr.runtime.triton import spans
from ovr.runtime.triton.request_log import Noted, fields_of


def test_a_collector_that_takes_no_spans_is_told_of_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv(spans.URL, f"http://127.0.0.1:{port}/v1/traces")
    told: list[str] = []
    send = spans.exporter(told.append)
    assert send is not None
    noted = Noted("r-1", "UNAVAILABLE", 1.5, 0.25, 2, traceparent=f"00-{'1' * 32}-{'2' * 16}-01")
    for _ in range(2):
        send([(noted, fields_of(noted, ("a", "b")))])
    assert len(told) == 1
    assert f"1 spans of the router were not taken at http://127.0.0.1:{port}/v1/traces: " in told[0]


def test_a_request_that_was_refused_is_an_error_in_its_trace():
    noted = Noted("r-1", "UNAVAILABLE", 1.5, 0.25, 2, traceparent=f"00-{'1' * 32}-{'2' * 16}-01")
    (resource,) = json.loads(spans.body([(noted, fields_of(noted, ("a", "b")))]))["resourceSpans"]
    (span,) = resource["scopeSpans"][0]["spans"]
    assert span["status"] == {"code": 2, "message": "UNAVAILABLE"}
    assert (span["startTimeUnixNano"], span["endTimeUnixNano"]) == ("1500000000", "1750000000")
    assert (span["traceId"], span["parentSpanId"]) == ("1" * 32, "2" * 16)


def test_without_a_collector_nothing_is_sent(monkeypatch):
    monkeypatch.delenv(spans.URL, raising=False)
    assert spans.exporter(print) is None
    monkeypatch.setenv(spans.URL, "collector:4318")
    assert spans.exporter(print) is None
