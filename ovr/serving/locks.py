"""Who may change what a repository serves, or what a server has loaded of it: one publisher, or supervisors side by side.

A publisher holds the lock alone for as long as it works. A supervisor shares it for the moment in which it looks and reloads.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovr.core.files import fsync_directory, sweep_all
from ovr.errors import ArtifactError


def take_exclusive(descriptor: int) -> bool:
    """Lock the repository that is open as `descriptor`; return False where another publisher has it. Supervisors are waited for."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # granted beside supervisors, not beside a publisher
        except BlockingIOError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return True


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Make the repository where it is missing, keep other publishers out, and remove what killed ones left beside it.

    Raises:
        ArtifactError: another process is publishing, or the repository is a file, or a mounted file system of its own, or cannot be
            made.
    """
    existed = repository.exists()
    if existed and not repository.is_dir():
        raise ArtifactError(f"{repository} is a file; expected a directory, or a place to make one")
    try:
        repository.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{error.filename} cannot be made: {error.strerror}; nothing is published") from None
    if repository.stat().st_dev != repository.parent.stat().st_dev:
        raise ArtifactError(
            f"{repository} and {repository.parent} are on different file systems, so that no version could appear at once; "
            "make the repository a directory within the mounted one"
        )
    descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not take_exclusive(descriptor):
            raise ArtifactError(f"another process is publishing into {repository}")
        fsync_directory(repository.parent)
        sweep_all(repository.parent)
        yield
    finally:
        os.close(descriptor)
        if not existed and not any(repository.iterdir()):
            repository.rmdir()


@contextmanager
def shared(repository: Path) -> Iterator[bool]:
    """Yield whether no publisher is at work; none begins within the block then."""
    descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
