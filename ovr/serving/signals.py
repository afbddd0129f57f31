"""SIGINT and SIGTERM while a server is started, served and stopped. Knows nothing of servers."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop(BaseException):
    """SIGINT or SIGTERM; a BaseException, so that no `except Exception` on the way takes it."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise `Stop` within the block at the first SIGINT or SIGTERM; from then on both are ignored until the block ends."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # A second signal must not break off the orderly stop.
        for name in STOP_SIGNALS:
            signal.signal(name, signal.SIG_IGN)
        raise Stop

    before = {name: signal.signal(name, interrupt) for name in STOP_SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block ends, so that no process is started or half-stopped and then forgotten."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    arrived: list[int] = []
    before = {name: signal.signal(name, lambda signum, frame: arrived.append(signum)) for name in STOP_SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        for signum in arrived:
            signal.raise_signal(signum)
