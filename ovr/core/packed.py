"""Files of arrays and gzipped ones: what they say of their size is held against what they are before anything is unpacked.

Nothing is ever extracted to a path that an archive names. Knows nothing of what the arrays mean.
"""

import gzip
import io
import math
import zipfile
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

MAX_RATIO = 200  # unpacked to packed bytes; text packs 20 times, tables of few values 100 times, and deflate up to 1032 times
MIN_LIMIT = 32 << 20  # bytes, below which no ratio is too large


def check_arrays(path: Path, *, compressed: bool = False) -> None:
    """Check an .npy or .npz file: plain arrays (no pickles), each as large as its header says.

    Args:
        compressed: whether the arrays of an .npz file may be packed (up to 200 times) as numpy's `savez_compressed` does.

    Raises:
        ValueError: it is not so.
        OSError: it cannot be read.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            _check_npy(file, size_bytes)
            return
        limit = max(MIN_LIMIT, MAX_RATIO * size_bytes) if compressed else size_bytes
        try:
            with zipfile.ZipFile(file) as archive:
                _check_members(archive, limit, compressed=compressed)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"it is a damaged zip file: {error}") from None


def open_gzip(path: Path) -> IO[bytes]:
    """Return the unpacked content of a gzipped file; reading raises BadGzipFile where it unpacks 200 times."""
    return io.BufferedReader(_Bounded(path), 1 << 16)


def open_gzip_text(path: Path, *, encoding: str, errors: str = "strict", newline: str | None = None) -> TextIO:
    """Return the text in a gzipped file, bounded as `open_gzip` bounds it."""
    return io.TextIOWrapper(open_gzip(path), encoding=encoding, errors=errors, newline=newline)


def _check_members(archive: zipfile.ZipFile, limit: int, *, compressed: bool) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise ValueError("two of its arrays have one name")
    if (total := sum(member.file_size for member in members)) > limit:
        raise ValueError(f"it unpacks to {total} bytes, of which at most {limit} are read")
    for member in members:
        name = member.filename
        if not name.endswith(".npy") or name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ValueError(f"it holds {name!r}, which is no name of an array")
        if not compressed and member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is packed; arrays of a bundle never are")
        with archive.open(member) as content:
            _check_npy(content, member.file_size)


def _check_npy(file: IO[bytes], size_bytes: int) -> None:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except Exception as error:  # of numpy and of Python's own tokenizer, which share no base class
        raise ValueError(f"its header is none of an array: {error}") from None
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never read: they can run code")
    expected = file.tell() + math.prod(shape) * dtype.itemsize
    if any(size < 0 for size in shape) or expected != size_bytes:
        raise ValueError(f"its header says {dtype} {shape}, {expected} bytes, and it has {size_bytes}")


class _Bounded(io.RawIOBase):
    """A gzipped file that stops where it unpacks to too much."""

    def __init__(self, path: Path) -> None:
        self.num_bytes = 0
        self._packed = path.open("rb")
        self._file = gzip.GzipFile(fileobj=self._packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        self.num_bytes += len(data)
        if self.num_bytes > max(MIN_LIMIT, MAX_RATIO * self._packed.tell()):
            raise gzip.BadGzipFile(
                f"its first {self._packed.tell()} bytes unpack to {self.num_bytes}, over {MAX_RATIO} times as many; unpack it first"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        self._packed.close()
        super().close()
