"""Clients of HTTP that ask again when they are answered, all in one loop over their sockets. Knows no model.

On the server's own machine they share its processors, so that what a request costs them is not the server's: here some 25 us, where
asyncio's streams take 90.
"""

import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from benchmarks.load import Target

PIECE = 1 << 16  # bytes that are read at a time
PAUSE_S = 0.01  # who is refused at once must not keep a processor busy
END = b"\r\n\r\n"
LENGTH = b"\r\ncontent-length: "


class Client:
    """One connection, made when it is needed."""

    def __init__(self, target: Target, turn: int, took: Callable[[bytes], None]) -> None:
        """Begin at the request `turn`; `took` is told of each answer, and where it raises, the request failed."""
        self.took = took
        parts = urlsplit(target.url)
        self._address = (parts.hostname, parts.port)
        self._requests, self._turn = target.requests, turn
        self._socket: socket.socket | None = None
        self._got = b""
        self._size = 0  # of the whole answer, once its head is there
        self.began_s = 0.0

    def ask(self) -> tuple[int, bool]:
        """Send the next request and return the number of the socket that the answer comes by, and whether it is a new one."""
        self.began_s, self._got, self._size = time.perf_counter(), b"", 0
        self._turn += 1
        request = self._requests[self._turn % len(self._requests)]
        is_new = self._socket is None
        if self._socket is None:
            self._socket = socket.create_connection(self._address)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(request)
        return self._socket.fileno(), is_new

    def hear(self) -> bytes | None:
        """Return the whole answer where it is there by now; raise where the connection is over."""
        assert self._socket is not None
        piece = self._socket.recv(PIECE)
        if not piece:
            raise ConnectionError("the connection is closed")
        self._got += piece
        if not self._size:
            end = self._got.find(END)
            if end < 0:
                return None
            fields = self._got[: end + 2].lower()
            at = fields.index(LENGTH) + len(LENGTH)
            self._size = end + len(END) + int(fields[at : fields.index(b"\r\n", at)])
        return self._got if len(self._got) >= self._size else None

    def close(self) -> None:
        """Let go of the connection; the next request makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def ask_again_and_again(
    clients: Sequence[Client], seconds: float, limit_s: float, *, failed: Callable[[Exception], None]
) -> tuple["array[float]", float]:
    """Let the clients ask for some seconds; return how long each answer took, and how long it was until the last.

    Args:
        limit_s: of one request; one that takes longer fails, once nobody else is answered.
        failed: told of each failure.
    """
    latency_s: array[float] = array("d")
    idle = deque((0.0, client) for client in clients)  # when each is to ask, and who
    waiting: dict[int, Client] = {}
    began = time.perf_counter()
    with select.epoll() as poll:

        def ask(client: Client) -> None:
            try:
                number, is_new = client.ask()
            except OSError as error:
                give_up(client, error)
                return
            waiting[number] = client
            if is_new:
                poll.register(number, select.EPOLLIN)

        def give_up(client: Client, error: Exception) -> None:
            client.close()
            failed(error)
            idle.append((time.perf_counter() + PAUSE_S, client))

        while True:
            now = time.perf_counter()
            is_over = now - began >= seconds
            if is_over and not waiting:
                return latency_s, now - began
            while idle and idle[0][0] <= now:
                client = idle.popleft()[1]
                if not is_over:
                    ask(client)
            heard = poll.poll(PAUSE_S if idle else 1.0)
            for number, _ in heard:
                if number not in waiting:  # done, and its server closes the connection
                    continue
                client = waiting[number]
                try:
                    answer = client.hear()
                    if answer is None:
                        continue
                    client.took(answer)
                except Exception as error:  # whatever it is, the request failed
                    del waiting[number]
                    give_up(client, error)
                    continue
                now = time.perf_counter()
                latency_s.append(now - client.began_s)
                del waiting[number]
                if now - began < seconds:
                    ask(client)
            if not heard:
                for number, client in list(waiting.items()):
                    if now - client.began_s > limit_s:
                        del waiting[number]
                        give_up(client, TimeoutError(f"no answer within {limit_s:g} s"))
