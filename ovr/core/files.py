"""Files and directories that appear whole or not at all, and the digests that prove what they hold.

Knows nothing of what is written. Everything is staged beside its final place (a rename is atomic only within one
file system), flushed to the disk and then renamed. What a killed process leaves behind is named `.<name>.tmp-<host>-<pid>-<random>`
and is swept by the next writer of the same name on the same host (another host's processes cannot be seen from here).
"""

import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ovr.errors import ArtifactError

CHUNK_BYTES = 1 << 20
MAX_JSON_BYTES = 1 << 30  # ten million classes with ids of some 80 characters
# Of JSON that may come from somebody else, and the values in it: parsing so much takes some 200 MiB. What describes large files may
# be larger by as much as they are: a class has more than 8 bytes of weights for each value that is said of it.
FOREIGN_JSON_BYTES, FOREIGN_JSON_VALUES = 1 << 24, 1 << 20


def sha256_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the file at `path`, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the one UTF-8 JSON text of `value` that digests are taken of: sorted keys, no blanks, no NaN.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON does not have.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_json(path: Path, *, beside_bytes: int | None = None) -> Any:
    """Return the JSON value in `path`.

    Args:
        beside_bytes: how large what it describes is, which sets how large a file from somebody else may be: 16 MiB and a million
            values, and 4 bytes and an eighth of a value more for each. None: ovr wrote it here, or it was read before.

    Raises:
        ArtifactError: the file is missing, no regular file, too large (at most 1 GiB), or not JSON; it holds NaN or infinity, which
            JSON does not have, or an object with one key twice, of which readers take the one or the other.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # to open a pipe is to wait
            raise ArtifactError(f"{path} cannot be read as JSON: it is no regular file")
        _check_json_bytes(found.st_size, beside_bytes, str(path))
        data = path.read_bytes()
        if beside_bytes is not None:
            check_foreign_json(data, beside_bytes=beside_bytes, what=str(path))
        return strict_json(data)
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON: {error}") from None


def check_foreign_json(data: bytes, *, beside_bytes: int, what: str) -> None:
    """Raise ArtifactError where JSON that may come from somebody else is larger than `read_json` takes it; it is not parsed.

    Args:
        beside_bytes: how large what it describes is.
        what: how the error calls it.
    """
    _check_json_bytes(len(data), beside_bytes, what)
    num_values, most = sum(map(data.count, (b",", b"[", b"{"))), FOREIGN_JSON_VALUES + beside_bytes // 8
    if num_values > most:
        raise ArtifactError(f"{what} has some {num_values} values; at most {most} are read as JSON")


def _check_json_bytes(size: int, beside_bytes: int | None, what: str) -> None:
    most = MAX_JSON_BYTES if beside_bytes is None else min(MAX_JSON_BYTES, FOREIGN_JSON_BYTES + 4 * beside_bytes)
    if size > most:
        raise ArtifactError(f"{what} is {size} bytes; at most {most} are read as JSON")


def bytes_on_disk(path: Path) -> int:
    """Return what a file takes on the disk, where holes take nothing; its size where that is not told (Windows)."""
    found = path.stat()
    return min(found.st_size, 512 * int(getattr(found, "st_blocks", found.st_size)))


def strict_json(data: bytes) -> Any:
    """Return the JSON value in `data`.

    Raises:
        ValueError: it is none, holds NaN or infinity, or an object with one key twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(data, object_pairs_hook=_no_key_twice, parse_constant=_no_number, parse_float=_finite)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice[:60]!r} is there twice")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text[:60]}, which no float64 can hold")
    return value


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash at any point leaves the old content or the new."""
    with staged_file(path) as file:
        file.write(data)


@contextmanager
def staged_file(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file that becomes `path` when the block ends, in place of what was there, and vanishes when it raises."""
    sweep(path)
    staging = staging_name(path)
    try:
        with staging.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
        fsync_directory(path.parent)
    except BaseException as error:
        staging.unlink(missing_ok=True)
        name_final(error, staging, path)
        raise


def check_new(path: Path) -> None:
    """Refuse a path where `staged_directory` cannot make a directory.

    Raises:
        ArtifactError: there is something, or a file where one of its parents should be.
    """
    if os.path.lexists(path):
        raise ArtifactError(f"{path} exists already and is never overwritten; choose another place or remove it")
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise ArtifactError(f"{path} cannot be made: {above} is no directory; choose another place")


@contextmanager
def staged_directory(final: Path, *, beside: Path | None = None) -> Iterator[Path]:
    """Yield an empty directory that becomes `final` when the block ends, and vanishes when it raises.

    Args:
        final: must not exist.
        beside: the directory to stage in, on the same file system as `final`; by default the parent of `final`.

    Raises:
        ArtifactError: `final` exists, before the block or by the time that it ends, or would lie below a file.
    """
    check_new(final)
    parent = final.parent if beside is None else beside
    parent.mkdir(parents=True, exist_ok=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(parent / final.name)
    staging = staging_name(parent / final.name)
    try:
        staging.mkdir()
        yield staging
        fsync_tree(staging)
        if os.path.lexists(final):
            raise ArtifactError(f"{final} appeared while it was being written; the other writer's version is kept")
        try:
            os.rename(staging, final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise ArtifactError(f"{final} appeared while it was being written; the other writer's version is kept") from None
        fsync_directory(final.parent)
    except BaseException as error:
        remove_tree(staging)
        name_final(error, staging, final)
        raise


def discard(path: Path, *, beside: Path) -> None:
    """Remove the directory `path`, if there is one: it vanishes at once, by a rename into `beside` on the same file system."""
    if not os.path.lexists(path):  # where nothing can be written renaming what is not there is another error
        return
    staging = staging_name(beside / path.name)
    try:
        os.rename(path, staging)
    except FileNotFoundError:
        return
    fsync_directory(path.parent)
    shutil.rmtree(staging)


def remove_tree(path: Path) -> None:
    """Remove a directory with all in it, also where modes of its directories forbid that; what cannot be removed stays."""
    with suppress(OSError):
        path.chmod(stat.S_IRWXU)
    for directory, names, _ in os.walk(path):
        for child in (Path(directory, name) for name in names):
            if not child.is_symlink():
                with suppress(OSError):
                    child.chmod(stat.S_IRWXU)
    shutil.rmtree(path, ignore_errors=True)


def place(staging: Path, parts: Mapping[str, bytes | Path]) -> None:
    """Put `parts` (relative POSIX path -> content, or an existing file to share by hard link) under `staging`."""
    for relative, content in parts.items():
        target = staging / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
            continue
        try:
            os.link(content.resolve(), target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(content, target)


def sweep(path: Path) -> None:
    """Remove what writers of `path` that are no longer alive have left beside it."""
    _sweep(path.parent, re.escape(path.name))


def sweep_all(directory: Path) -> None:
    """Remove what writers of anything in `directory` that are no longer alive have left there."""
    _sweep(directory, ".+")


def _sweep(directory: Path, name: str) -> None:
    pattern = re.compile(rf"\.{name}\.tmp-{_host()}-(\d{{1,9}})-[0-9a-f]{{8}}")
    if not directory.is_dir():
        return
    for entry in os.scandir(directory):
        match = pattern.fullmatch(entry.name)
        if match is None or _is_alive(int(match[1])):
            continue
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            Path(entry.path).unlink(missing_ok=True)


def fsync_directory(path: Path) -> None:
    """Flush the directory entry itself: without it a rename may be lost with the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def name_final(error: BaseException, staging: Path, final: Path) -> None:
    """Say which file could not be written, by its final name: a full disk is reported without any, or with a copy's source."""
    if not isinstance(error, OSError) or error.errno is None:
        return
    written = error.filename2 or error.filename or staging
    if isinstance(written, str | Path) and Path(written).is_relative_to(staging):
        error.filename, error.filename2 = str(final / Path(written).relative_to(staging)), None


def staging_name(path: Path) -> Path:
    """Return a new name beside `path`, which `sweep` knows once this process is gone."""
    return path.with_name(f".{path.name}.tmp-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")


def _host() -> str:
    """Return eight characters that tell this host, or container, from others which share the file system."""
    return sha256_bytes(platform.node().encode())[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def fsync_tree(root: Path) -> None:
    """Flush every file and directory below `root`, and `root` itself."""
    for directory, _, names in os.walk(root, topdown=False):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_directory(Path(directory))
