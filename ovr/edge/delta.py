"""Bytes as copies of other bytes and what is new among them. Knows nothing of files, or of what the bytes mean.

An op is three numbers: how far to move on in the old bytes, how many of them to copy, and how many new ones follow. New bytes stand
for as many old ones, which are passed over. So a weight that changed in each row of a matrix, at equal steps, is the same op over
and over, which packs to next to nothing.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

CHUNK_BYTES, PACKED_BYTES = 1 << 20, 1 << 16
MAX_OPS = 1 << 18
MAX_OP_BYTES = 1 << 22  # of all ops, unpacked
_MAX_VARINT_BYTES = 6  # 2^42

Copy = tuple[int, int, int]  # start in the old bytes, start in the new ones, number of bytes
Op = tuple[int, int, int]  # start in the old bytes, number of bytes copied, number of new bytes after them


class Damaged(Exception):
    """What keeps a delta from being one of these bytes."""


def encoded(copies: Iterable[Copy], new: bytes) -> tuple[bytes, bytes]:
    """Return the ops, and the new bytes, that give `new`.

    Args:
        copies: in their order in `new`, none over another.
    """
    ops, literals = bytearray(), bytearray()
    move, size, end, at = 0, 0, 0, 0  # the op that is open, the end of its copy in `new`, and where the old bytes then are

    def close(until: int) -> None:
        nonlocal at
        for number in ((move << 1) ^ (move >> 63), size, until - end):
            _put(ops, number)
        literals.extend(new[end:until])
        at += move + size + until - end

    for start, target, count in copies:
        if target or ops or end:
            close(target)
        move, size, end = start - at, count, target + count
    close(len(new))
    return bytes(ops), bytes(literals)


def ops_in(data: bytes) -> Iterator[Op]:
    """Yield the ops of a delta.

    Raises:
        Damaged: it is none, or has too many ops.
    """
    position = at = 0
    for _ in range(MAX_OPS):
        if position == len(data):
            return
        numbers = []
        for _ in range(3):
            number, position = _get(data, position)
            numbers.append(number)
        move, size, count = numbers
        start = at + ((move >> 1) ^ -(move & 1))
        at = start + size + count
        yield start, size, count
    if position != len(data):
        raise Damaged(f"it has more than {MAX_OPS} ops")


def check_ops(ops: Iterable[Op], *, old_size: int, new_size: int, num_literals: int) -> None:
    """Raise Damaged unless the ops copy within the old bytes, and give as many as there are to be with all that are new."""
    made = used = 0
    for start, size, count in ops:
        if size and not 0 <= start <= old_size - size:
            raise Damaged(f"it copies bytes {start} to {start + size} of {old_size}")
        made, used = made + size + count, used + count
        if made > new_size:
            break
    if (made, used) != (new_size, num_literals):
        raise Damaged(f"its ops make {made} bytes with {used} new ones; expected {new_size} with {num_literals}")


def rebuild(old: BinaryIO, ops: Iterable[Op], literals: "Unpacked", write: Callable[[bytes], object]) -> None:
    """Write what ops that were checked make of a file's bytes, piece by piece.

    Raises:
        Damaged: the file is shorter than it was, or there are fewer or more new bytes.
    """
    for start, size, count in ops:
        if size:
            old.seek(start)
        for left in range(size, 0, -CHUNK_BYTES):
            piece = old.read(min(left, CHUNK_BYTES))
            if len(piece) != min(left, CHUNK_BYTES):
                raise Damaged("what it is made of became shorter")
            write(piece)
        for left in range(count, 0, -CHUNK_BYTES):
            write(literals.read(min(left, CHUNK_BYTES)))
    literals.close()


class Unpacked:
    """The bytes of a zlib stream that is a part of a file, as they are asked for: no more than two chunks are held."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        """Take the stream of `size` bytes that begins at `start`."""
        self._file, self._position, self._end = file, start, start + size
        self._stream, self._ready = zlib.decompressobj(), memoryview(b"")

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes, or raise Damaged."""
        made = bytearray()
        while len(made) < size:
            if not self._ready and not self._unpack():
                raise Damaged(f"it ends {size - len(made)} bytes too early")
            piece = self._ready[: size - len(made)]
            made += piece
            self._ready = self._ready[len(piece) :]
        return bytes(made)

    def close(self) -> None:
        """Raise Damaged unless the stream ends here, and the part of the file with it."""
        if self._ready or self._unpack():
            raise Damaged("it unpacks to more bytes than it says")
        if self._stream.unused_data or self._position != self._end:
            raise Damaged("something follows where it ends")

    def _unpack(self) -> bool:
        """Return whether the stream went on."""
        while not self._stream.eof:
            packed = self._stream.unconsumed_tail or self._next()
            try:
                self._ready = memoryview(self._stream.decompress(packed, PACKED_BYTES))
            except zlib.error as error:
                raise Damaged(f"it cannot be unpacked: {error}") from None
            if self._ready:
                return True
            if not packed:
                raise Damaged("it ends within what is packed")
        return False

    def _next(self) -> bytes:
        self._file.seek(self._position)
        piece = self._file.read(min(PACKED_BYTES, self._end - self._position))
        self._position += len(piece)
        return piece


def _put(data: bytearray, number: int) -> None:
    while number >= 0x80:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)


def _get(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if position >= len(data):
            raise Damaged("it ends within an op")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise Damaged("a number in an op does not end")
