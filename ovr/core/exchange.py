"""A directory whose content is replaced at once: whoever looks finds the old one whole, or the new one."""

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ovr.core.files import fsync_directory, fsync_tree, name_final, remove_tree, staging_name, sweep
from ovr.errors import ArtifactError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2(2)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of the directory `path` when the block ends, and vanishes when it raises.

    The old one is removed afterwards; what a process that is killed in between leaves is swept by the next writer. One writer at a
    time: what the block reads of `path` is what is replaced, unless others write there without this function.

    Raises:
        ArtifactError: another process is replacing it, or the two cannot change places at once here: no Linux, a file system
            without that, or a `path` where something is mounted.
    """
    path = path.resolve()  # a link stays one, to the new content
    sweep(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(f"{path} is being replaced by another process; wait until that is done") from None
        staging = staging_name(path)
        try:
            staging.mkdir()
            yield staging
            take_after(staging, path)
            fsync_tree(staging)
            exchange(staging, path)
            fsync_directory(path.parent)
        except BaseException as error:
            name_final(error, staging, path)
            raise
        finally:
            remove_tree(staging)  # the new content where it did not come so far, else the old one
    finally:
        os.close(descriptor)


def take_after(new: Path, old: Path) -> None:
    """Give a file or directory the mode of another and, where this process may, its owner."""
    found = old.stat()
    with suppress(PermissionError):
        os.chown(new, found.st_uid, found.st_gid)
    new.chmod(stat.S_IMODE(found.st_mode))


def exchange(one: Path, other: Path) -> None:
    """Let two paths of one file system change places, both at once.

    Raises:
        ArtifactError: that cannot be done here.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc has it from 2.28 on
    if call is not None and call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    number = errno.ENOSYS if call is None else ctypes.get_errno()
    raise ArtifactError(
        f"{other} cannot change places with what is to replace it ({os.strerror(number)}); have it made as a new directory (out)"
    )
