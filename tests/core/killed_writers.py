"""Run as a script: kill a writer with SIGKILL at each of its system calls in turn, and check what is left after each.

    python -m tests.core.killed_writers DIRECTORY

The audit hook sees every open, mkdir, link, rename, replace and remove of the writer; the child process kills itself at the n-th.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ovr.core.bundle import HEAD_SIGNATURES, open_bundle
from ovr.core.files import write_file
from tests.core.parts import write

OLD, NEW = b"old" * 9999, b"new" * 99999
SIGNED = b'{"heads":{},"schema_version":1}'


def die_at(number: int, under: Path, *, first: str = "") -> None:
    """From now on count what this process does under `under`, or does there from event `first` on, and kill it at that number."""
    seen, counts = 0, not first

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen, counts
        if (event == "open" or event.startswith("os.")) and str(under) in str(arguments):
            counts = counts or event == first
            seen += counts
            if counts and seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed(number: int, under: Path, action: Callable[[], object], *, first: str = "") -> bool:
    """Return whether a child that did `action` was killed at its event `number`, or else got through; see `die_at`."""
    child = os.fork()
    if child == 0:
        die_at(number, under, first=first)
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def main(root: Path) -> None:
    """Check both writers; print at how many points each was killed."""
    final, number, half = root / "bundles" / "b", 1, 0
    while killed(number, root, lambda: write(final, signatures=lambda manifest: SIGNED)):
        if final.exists():
            open_bundle(final)
            assert (final / HEAD_SIGNATURES).read_bytes() == SIGNED, "a bundle that is there has its heads' signatures"
            shutil.rmtree(final)
        if final.parent.exists():
            half += bool(list(final.parent.iterdir()))
        write(final)
        assert [entry.name for entry in final.parent.iterdir()] == ["b"], "the next writer sweeps what the killed one left"
        open_bundle(final)
        shutil.rmtree(final.parent)
        number += 1
    print("bundle", number - 1, half)

    path, number, new = root / "file", 1, 0
    path.write_bytes(OLD)
    while killed(number, root, lambda: write_file(path, NEW)):
        content = path.read_bytes()
        assert content in (OLD, NEW)
        new += content == NEW
        write_file(path, OLD)
        assert not [entry for entry in root.iterdir() if entry.name.startswith(".file")]
        number += 1
    print("file", number - 1, new)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
