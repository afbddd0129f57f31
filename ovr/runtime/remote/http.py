"""Requests over HTTP/1.1, one at a time on each connection of a pool: with threads by the standard library, or on an event loop.

A connection is kept for the next request once its answer was read whole, and closed after anything else.
"""

import http.client
import io
import json
import select
import socket
import ssl
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from ovr.errors import ServingError
from ovr.runtime.remote.address import Address, Security
from ovr.runtime.remote.failures import no_triton, of_error, of_status, too_slow, unreachable
from ovr.runtime.remote.retry import Failure
from ovr.runtime.remote.v2 import HEADER_LENGTH, Answer, Request, from_http, to_http

MAX_IDLE = 64  # connections that are kept
CONNECT_S = 10.0  # and no longer, however long the answer may take
READ_BYTES = 1 << 20
SMALL_BYTES = 1 << 16  # of a body that is copied, to go with its head
KEEP_ALIVE_S = 15.0  # of an idle connection on an event loop; aiohttp's own default


class Http:
    """Connections to one server. Safe for threads."""

    def __init__(self, address: Address, security: Security) -> None:
        """Prepare them; none is made yet."""
        self._address = address
        lines = [f"{name}: {value}\r\n" for name, value in {"user-agent": "ovr", **security.headers}.items()]
        self._head = f" HTTP/1.1\r\nhost: {address.host_port}\r\naccept-encoding: identity\r\n{''.join(lines)}"
        self._context = security.context() if address.is_secure else None
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._busy: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._closed = False

    def infer(self, request: Request, timeout_s: float) -> Answer:
        """Return the answer, or raise Failure."""
        body, length = to_http(request)
        sizes = f"content-type: application/octet-stream\r\ncontent-length: {len(body)}\r\n{HEADER_LENGTH}: {length}\r\n\r\n"
        own = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        head = f"POST {self._address.path}/v2/models/{quote(request.model)}/infer{self._head}{own}{sizes}"
        got = self._exchange(head, body, request.what, timeout_s)
        return answer_of(self._address, request.what, *got)

    def config(self, model: str, timeout_s: float) -> tuple[dict[str, str], int]:
        """Return a model's parameters and largest batch, or raise Failure."""
        head = f"GET {self._address.path}/v2/models/{quote(model)}/config{self._head}\r\n"
        got = self._exchange(head, b"", "tell the model's configuration", timeout_s)
        return config_of(self._address, *got)

    def close(self) -> None:
        """Close all connections, those that wait for an answer too."""
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()
            for connection in self._busy:
                if (sock := connection.sock) is not None:
                    with suppress(OSError):  # wakes the thread that reads from it, which then closes it
                        sock.shutdown(socket.SHUT_RDWR)

    def _exchange(self, head: str, body: bytes, what: str, timeout_s: float) -> tuple[int, Any, bytes]:
        ends = time.monotonic() + timeout_s
        connection, response, usable = self._take(), None, False
        try:
            sock = self._connected(connection, timeout_s)
            sock.settimeout(max(ends - time.monotonic(), 1e-3))
            # http.client itself would send head and body one by one, and build the head anew each time: 70 us of a request.
            sock.sendall(head.encode() + body if len(body) <= SMALL_BYTES else head.encode())
            if len(body) > SMALL_BYTES:
                sock.sendall(body)
            response = http.client.HTTPResponse(sock, method=head.partition(" ")[0])
            response.begin()
            parts = []
            while part := response.read1(READ_BYTES):
                parts.append(part)
                if response.length == 0:
                    break
                if (left_s := ends - time.monotonic()) <= 0:
                    raise TimeoutError
                sock.settimeout(left_s)
            if response.length:
                raise ConnectionError(f"the answer ended {response.length} bytes before its end")
            usable = not response.will_close
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise closed(self._address) if self._closed else of_error(self._address, error, what, timeout_s) from None
        finally:
            if response is not None:
                response.close()
            self._give_back(connection, usable=usable)
        return response.status, response.headers, b"".join(parts)

    def _connected(self, connection: http.client.HTTPConnection, timeout_s: float) -> socket.socket:
        if connection.sock is None:
            connection.timeout = min(timeout_s, CONNECT_S)
            try:
                connection.connect()
            except TimeoutError:
                if timeout_s > CONNECT_S:
                    raise unreachable(self._address, f"no connection within {CONNECT_S:g} s") from None
                raise
        sock: socket.socket = connection.sock
        return sock

    def _take(self) -> http.client.HTTPConnection:
        """Return a connection that nobody uses, and that the server has not closed since."""
        with self._lock:
            if self._closed:
                raise closed(self._address)
            while self._idle:
                connection = self._idle.pop()
                if not _has_news(connection):
                    self._busy.add(connection)
                    return connection
                connection.close()
            address = self._address
            if self._context is not None:
                connection = http.client.HTTPSConnection(address.host, address.port, context=self._context)
            else:
                connection = http.client.HTTPConnection(address.host, address.port)
            self._busy.add(connection)
            return connection

    def _give_back(self, connection: http.client.HTTPConnection, *, usable: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if usable and not self._closed and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()


class AsyncHttp:
    """Connections to one server, used on one event loop."""

    def __init__(self, address: Address, security: Security) -> None:
        """Prepare them; none is made yet."""
        self._address = address
        self._headers = {"user-agent": "ovr", **security.headers}
        self._context = security.context() if address.is_secure else None
        self._session: Any = None
        self._closed = False

    async def infer(self, request: Request, timeout_s: float) -> Answer:
        """Return the answer, or raise Failure."""
        body, length = to_http(request)
        headers = {**request.headers, HEADER_LENGTH: str(length), "content-type": "application/octet-stream"}
        path = f"/v2/models/{quote(request.model)}/infer"
        got = await self._exchange("POST", path, headers, body, request.what, timeout_s)
        return answer_of(self._address, request.what, *got)

    async def config(self, model: str, timeout_s: float) -> tuple[dict[str, str], int]:
        """Return a model's parameters and largest batch, or raise Failure."""
        path = f"/v2/models/{quote(model)}/config"
        got = await self._exchange("GET", path, {}, None, "tell the model's configuration", timeout_s)
        return config_of(self._address, *got)

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _exchange(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None, what: str, timeout_s: float
    ) -> tuple[int, Any, bytes]:
        import aiohttp

        if self._closed:
            raise closed(self._address)
        if self._session is None:  # wants to be made on the loop that it is used on
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, auto_decompress=False)
        scheme = "https" if self._address.is_secure else "http"
        try:
            async with self._session.request(
                method,
                f"{scheme}://{self._address.host_port}{self._address.path}{path}",
                data=body if body is None or len(body) <= READ_BYTES else io.BytesIO(body),  # more at once would hold the loop
                skip_auto_headers=("Accept-Encoding",),
                headers=headers,
                ssl=True if self._context is None else self._context,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S),
                allow_redirects=False,
            ) as response:
                return response.status, response.headers, await response.read()
        except aiohttp.ConnectionTimeoutError as error:
            if timeout_s > CONNECT_S:
                raise unreachable(self._address, f"no connection within {CONNECT_S:g} s") from error
            raise too_slow(self._address, what, timeout_s) from None
        except TimeoutError:
            raise too_slow(self._address, what, timeout_s) from None
        except (aiohttp.ClientError, OSError) as error:
            if self._closed:
                raise closed(self._address) from None
            if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError):
                inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error.certificate_error
                raise of_error(
                    self._address, inner if str(inner) else ConnectionError(type(inner).__name__), what, timeout_s
                ) from None
            if isinstance(error, aiohttp.ClientResponseError):  # what answered is no HTTP
                raise no_triton(self._address, error.message or error) from None
            raise of_error(self._address, ConnectionError(str(error) or type(error).__name__), what, timeout_s) from None


def answer_of(address: Address, what: str, status: int, headers: Any, body: bytes) -> Answer:
    """Return the answer in an HTTP response, or raise Failure."""
    if status != 200:
        raise of_status(address, what, status, headers, body)
    try:
        return from_http(body, headers.get(HEADER_LENGTH))
    except ValueError as error:
        raise no_triton(address, error) from None


def config_of(address: Address, status: int, headers: Any, body: bytes) -> tuple[dict[str, str], int]:
    """Return a model's parameters and largest batch in an HTTP response, or raise Failure."""
    if status != 200:
        raise of_status(address, "tell the model's configuration", status, headers, body)
    try:
        config = json.loads(body)
        parameters = {str(key): str(value["string_value"]) for key, value in config.get("parameters", {}).items()}
        return parameters, int(config["max_batch_size"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise no_triton(address, f"no model configuration ({type(error).__name__} {error})") from None


def closed(address: Address) -> Failure:
    """Return the failure of a request through a client that was closed."""
    return Failure(ServingError(f"this client of {address.url} is closed; make another"))


def _has_news(connection: http.client.HTTPConnection) -> bool:
    """Return whether an idle connection has something to read: the server has closed it."""
    sock = connection.sock
    if sock is None:
        return True
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))
