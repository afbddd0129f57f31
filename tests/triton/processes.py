"""Servers' processes, found and killed from outside."""

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path


def until(condition, timeout_s=30):
    """Return what `condition` does once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def children(parent):
    """Return the live children of a process."""
    return _live(1, parent)


def processes_of(session):
    """Return the live processes of a session."""
    return _live(3, session)


def _live(field, value):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[field]) == value and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def stub_of(server, model):
    """Return the process of a Python model of the tritonserver with process `server`."""
    found = []
    for pid in children(server):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if f"/{model}/".encode() in command:
            found.append(pid)
    assert len(found) == 1, (model, found)
    return found[0]


def kill(pid):
    """Kill a process at once."""
    os.kill(pid, signal.SIGKILL)


@contextmanager
def stopped(*pids):
    """Have processes hang within the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
