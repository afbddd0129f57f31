"""A lock between processes. Knows nothing of what it guards."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Keep every other process that locks the file at `path` waiting while the block runs. The file is made, and stays empty.

    It is opened for writing, so that the lock holds over NFS too; a process that is killed gives it back.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process holds %s; waiting for it", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
