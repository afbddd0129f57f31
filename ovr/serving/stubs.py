"""The processes that Triton's Python backend runs models in, as Linux shows them. Knows nothing of what they answer.

Where there is no /proc, or Triton runs models otherwise, there are none.
"""

from collections import Counter
from pathlib import Path

PROC = Path("/proc")
STUB = "triton_python_backend_stub"

ModelVersion = tuple[str, int]


def find_stubs(server: int) -> dict[int, ModelVersion]:
    """Return the live processes of the server with process `server`, and the model and version that each runs."""
    found = {}
    for child in _children(server):
        try:
            command = (PROC / str(child) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended since
            continue
        if Path(command[0]).name != STUB or len(command) < 2:
            continue
        version = Path(command[1]).parent  # REPOSITORY/MODEL/VERSION/FILE
        if version.name.isdecimal():
            found[child] = (version.parent.name, int(version.name))
    return found


def lost(before: dict[int, ModelVersion], server: int) -> frozenset[ModelVersion]:
    """Return the versions that fewer processes are left of than there were `before`.

    While a model is replaced by itself the new process is there before the old one goes, so that this is no loss.
    """
    if all(map(is_alive, before)):
        return frozenset()
    left = Counter(find_stubs(server).values())
    return frozenset(key for key, count in Counter(before.values()).items() if left[key] < count)


def is_alive(process: int) -> bool:
    """Return whether a process runs: one that has ended and that nobody has waited for does not."""
    try:
        return (PROC / str(process) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def _children(parent: int) -> list[int]:
    children: list[int] = []
    for thread in (PROC / str(parent) / "task").glob("*/children"):  # each has those that it started
        try:
            children += map(int, thread.read_text().split())
        except OSError:
            continue
    return children
