"""What it means that a request failed: what a caller is told to do, and whether the request may be sent again.

Inference changes nothing in the server, so that a request may be sent again whatever became of it; what is asked here is whether
that can help. A connection that broke and a server that is away, starting or full may answer the next time. A request that the
server refused would be refused again, and one that took too long would take as long, and more of a server that is slow already.
"""

import errno
import json
import socket
import ssl
from http.client import HTTPException, IncompleteRead
from typing import Any

from ovr.errors import DeadlineError, ServingError, UnavailableError
from ovr.runtime.remote.address import Address
from ovr.runtime.remote.retry import Failure

STARTING = ("has no available versions", "is not ready", "is not healthy")  # of a model that is loaded, or must be, again
TOO_MANY_ROWS = "batch-size must be <="  # Triton's words
OF_ANOTHER = "incomplete string data for inference input"  # of one in a batch, said to all; this client's texts are whole
OTHER_PORT = "the default ports are 8000 for http://, 8001 for grpc://, and 443 for https:// and grpcs://"


class TooManyRows(ServingError):
    """A request with more rows than the model takes now."""


def unreachable(address: Address, reason: object, *, may_retry: bool = True) -> Failure:
    """Return the failure of a request that found no server, or lost it."""
    asked = f"is it started, and does it speak {address.scheme} at {address.host_port}?"
    error = UnavailableError(f"no server answers at {address.url}: {_line(reason)}; {asked}")
    return Failure(error, may_retry=may_retry)


def too_slow(address: Address, what: str, timeout_s: float) -> Failure:
    """Return the failure of a request that got no answer in time."""
    told = f"the server at {address.url} did not {what} within {timeout_s:.3g} s; send fewer rows a request or wait longer"
    return Failure(DeadlineError(told))


def no_triton(address: Address, reason: object) -> Failure:
    """Return the failure of a request that something else answered."""
    return Failure(
        ServingError(
            f"what answers at {address.url} is no Triton server, or not this protocol's port: {_line(reason)}; {OTHER_PORT}"
        )
    )


def refused(address: Address, what: str, message: object) -> Failure:
    """Return the failure of a request that the server answered with an error.

    Triton (2.51) refuses a whole batch where one request's text is shorter than it says.
    """
    kind = TooManyRows if TOO_MANY_ROWS in str(message) else ServingError
    return Failure(kind(f"the server at {address.url} could not {what}: {message}"), may_retry=OF_ANOTHER in str(message))


def of_tls(address: Address, reason: str) -> Failure | None:
    """Return the failure where `reason` is one of TLS that does not go away, else None."""
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        say = "give root_certificates=FILE of the authority that signed its certificate, and the name that it was made for"
    elif any(word in reason for word in ("CERTIFICATE_REQUIRED", "certificate required", "BAD_CERTIFICATE", "HANDSHAKE_FAILURE")):
        say = "it asks for a client's certificate: give private_key=FILE and certificate_chain=FILE that it trusts"
    elif any(word in reason for word in ("WRONG_VERSION_NUMBER", "wrong version number", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")):
        plain = address.scheme.removesuffix("s")
        say = f"it speaks no TLS at this port: expected {plain}://{address.host_port}, or the port of TLS"
    else:
        return None
    return Failure(ServingError(f"the connection to {address.url} cannot be secured: {reason}; {say}"))


def of_error(address: Address, error: Exception, what: str, timeout_s: float) -> Failure:
    """Return what an error of a socket or of HTTP means."""
    if isinstance(error, TimeoutError):
        return too_slow(address, what, timeout_s)
    if isinstance(error, ssl.SSLError) and (failure := of_tls(address, str(error))) is not None:
        return failure
    if isinstance(error, socket.gaierror):
        return unreachable(address, error, may_retry=error.errno == socket.EAI_AGAIN)
    if isinstance(error, IncompleteRead | OSError):
        return unreachable(address, error, may_retry=not (isinstance(error, OSError) and error.errno == errno.EMFILE))
    assert isinstance(error, HTTPException | ValueError), error
    return no_triton(address, error or type(error).__name__)


def of_status(address: Address, what: str, status: int, headers: Any, body: bytes) -> Failure:
    """Return what an HTTP status other than 200 means; `headers` has `get`."""
    message = _message(body)
    shown = f"status {status}" + (f", {message}" if message else "")
    if status in (429, 502, 503) or (message is not None and any(words in message for words in STARTING)):
        wait = str(headers.get("retry-after") or "0")
        error = UnavailableError(f"the server at {address.url} could not {what} now: {message or shown}")
        return Failure(error, may_retry=True, wait_s=float(wait) if wait.isdigit() else 0.0)
    if status in (401, 403, 407):
        return _not_allowed(address, shown)
    if status in (408, 504):
        return Failure(DeadlineError(f"a gateway at {address.url} waited too long for the server to {what}: {shown}"))
    if status == 413:
        return _too_large(address, shown)
    if 300 <= status < 400:
        return no_triton(address, f"{shown}, it redirects to {headers.get('location')}; give that address")
    if message is None:  # Triton says what is wrong as JSON
        if b"plain HTTP request was sent to HTTPS port" in body:
            return no_triton(address, f"{shown}, it speaks TLS: expected https://{address.host_port}")
        return no_triton(address, shown)
    if status == 404:
        return _no_model(address, message)
    return refused(address, what, message)


def of_code(address: Address, what: str, code: str, message: str, timeout_s: float) -> Failure:
    """Return what a status of gRPC, such as "UNAVAILABLE", means."""
    if code == "DEADLINE_EXCEEDED":
        return too_slow(address, what, timeout_s)
    if code == "UNAVAILABLE":
        if (failure := of_tls(address, message)) is not None:
            return failure
        if "http1" in message or "HTTP/1" in message or "http2 frame" in message:
            return no_triton(address, message)
        if any(
            words in message
            for words in ("connect", "onnection", "ocket", "DNS", "GOAWAY", "recvmsg", "sendmsg", "handshake", "resolving")
        ):
            return unreachable(address, message)
    if code in ("UNAVAILABLE", "CANCELLED") or any(words in message for words in (*STARTING, "RST_STREAM", "Stream removed")):
        return Failure(UnavailableError(f"the server at {address.url} could not {what} now: {message}"), may_retry=True)
    if code == "RESOURCE_EXHAUSTED":
        if "larger than" in message:  # gRPC's own words, and those of `ovr.serving.gateway`
            return _too_large(address, message)
        return Failure(UnavailableError(f"the server at {address.url} could not {what} now: {message}"), may_retry=True)
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return _not_allowed(address, message)
    if code == "UNIMPLEMENTED":
        return no_triton(address, message)
    if code == "NOT_FOUND":
        return _no_model(address, message)
    return refused(address, what, message)


def _no_model(address: Address, message: str) -> Failure:
    return Failure(
        ServingError(f"the server at {address.url} does not serve a bundle of ovr: {message}; publish one there with `ovr publish`")
    )


def _not_allowed(address: Address, message: str) -> Failure:
    return Failure(ServingError(f"{address.url} does not let this client in: {message}; give token= or headers= that it knows"))


def _too_large(address: Address, message: str) -> Failure:
    return Failure(ServingError(f"the request is too large for {address.url}: {message}; give a smaller max_request_bytes"))


def _line(reason: object) -> str:
    """Return a reason that may hold whatever a stranger sent, or nothing, as one printable line."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:300]


def _message(body: bytes) -> str | None:
    try:
        value = json.loads(body)
        return str(value["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
