"""Spans of the router beside those of Triton, as OTLP over HTTP in JSON. Knows nothing of Triton's objects.

Triton's own spans have no place for what a model knows: which heads answered, of which bundle, how many rows.
"""

import json
import os
from collections.abc import Callable
from typing import Any

from ovr.runtime.triton.request_log import OK, Exported, Noted

URL = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"  # environment, by OpenTelemetry's name
TIMEOUT_S = 2.0
NAME = "ovr.router"
INTERNAL, ERROR = 1, 2  # SPAN_KIND_INTERNAL and STATUS_CODE_ERROR of OTLP
LEFT_OUT = ("time", "latency_ms", "trace_id", "span_id")  # the span's own fields say these


def exporter(tell: Callable[[str], Any]) -> Callable[[Exported], Any] | None:
    """Return what sends spans to the collector that the environment names, None where it names none.

    Args:
        tell: told when the collector takes no spans, once until it takes some again.
    """
    url = os.environ.get(URL, "")
    if not url.startswith(("http://", "https://")):
        return None
    from urllib.request import Request, urlopen

    failing = False

    def send(exported: Exported) -> None:
        nonlocal failing
        try:
            with urlopen(
                Request(url, data=body(exported), headers={"Content-Type": "application/json"}), timeout=TIMEOUT_S
            ) as response:
                response.read()
        except (OSError, ValueError) as error:
            if not failing:
                tell(f"{len(exported)} spans of the router were not taken at {url}: {error}")
            failing = True
        else:
            failing = False

    return send


def body(exported: Exported) -> bytes:
    """Return the message `ExportTraceServiceRequest` with a span a request, each within the one that Triton has of it."""
    spans = [_span(noted, fields) for noted, fields in exported]
    scope = {"scope": {"name": "ovr"}, "spans": spans}
    resource = {"attributes": [_attribute("service.name", "ovr")]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}, separators=(",", ":")).encode()


def _span(noted: Noted, fields: dict[str, Any]) -> dict[str, Any]:
    began_ns = int(noted.began_s * 1e9)
    span = {
        "traceId": fields["trace_id"],
        "spanId": os.urandom(8).hex(),
        "parentSpanId": fields["span_id"],
        "name": NAME,
        "kind": INTERNAL,
        "startTimeUnixNano": str(began_ns),
        "endTimeUnixNano": str(began_ns + int(noted.latency_s * 1e9)),
        "attributes": [
            _attribute(f"ovr.{key}", value) for key, value in fields.items() if value is not None and key not in LEFT_OUT
        ],
    }
    return span if noted.status == OK else span | {"status": {"code": ERROR, "message": noted.status}}


def _attribute(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"stringValue": value if isinstance(value, str) else json.dumps(value)}}
