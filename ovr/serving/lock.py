"""One publisher at a time in a repository. Knows nothing of what it publishes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovr.core.files import fsync_directory, sweep_all
from ovr.errors import ArtifactError


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Make the repository where it is missing, keep other publishers out of it, and remove what killed ones left beside it.

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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(f"another process is publishing into {repository}") from None
        fsync_directory(repository.parent)
        sweep_all(repository.parent)
        yield
    finally:
        os.close(descriptor)
        if not existed and not any(repository.iterdir()):
            repository.rmdir()
