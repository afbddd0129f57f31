"""Where new bytes are among old ones, so that what changed is little. Used where a patch is made, and not on the device.

Two files are gone through side by side. What changed in place (a head's weights, a number in each row of a matrix) leaves them so;
where they no longer go together (a class more, a longer name), blocks that the old bytes have once are looked for in the new ones.
"""

import numpy as np
from numpy.typing import NDArray

from ovr.edge.delta import Copy

BLOCK = 16  # bytes that are looked up
MIN_COPY = 8  # fewer are cheaper as they are than as an op
NEAR = 64  # of a change that is longer, once it ends, it is asked whether the files still go together
LOST = 1 << 13  # of one that has not ended yet likewise
FIRST_WINDOW, LAST_WINDOW = 1 << 10, 1 << 18  # bytes that are compared at once
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]


def copies(old: bytes, new: bytes) -> list[Copy]:
    """Return what of `new` is in `old`: (start in old, start in new, size), in the order of `new`, none over another."""
    a, b = (np.frombuffer(data, np.uint8) for data in (old, new))
    blocks: _Blocks | None = None
    found: list[Copy] = []
    position = shift = done = sure = looked = 0  # in `new`, but for the shift from there to `old`
    window = FIRST_WINDOW
    while position < len(b):
        start = position + shift
        size = max(min(window, len(b) - position, len(a) - start), 0)
        runs = _runs(a[start : start + size] == b[position : position + size]) + position
        end = position + size if size == window else len(b)
        places = [(int(first), int(last)) for first, last in runs]
        if end == len(b) or end - sure > LOST:
            places.append((end, end))
        for first, last in places:
            if first - sure > NEAR:
                blocks = blocks or _Blocks(a)
                anchor = blocks.find(b, max(done, looked), first)
                looked = max(looked, first)
                if anchor is not None:
                    source, target = anchor
                    looked = target + 1
                    back = _same_before(a[:source], b[done:target])
                    position, shift, window = target - back, source - target, FIRST_WINDOW
                    sure = position
                    break
            if last > first:
                _add(found, (first + shift, first, last - first))
                done = last
                if last - first >= BLOCK:
                    sure = last
        else:
            position = end
            window = min(2 * window, LAST_WINDOW)
    return found


class _Blocks:
    """The blocks of some bytes that are there once, at multiples of their size."""

    def __init__(self, a: U8) -> None:
        self.a = a
        whole = a[: len(a) // BLOCK * BLOCK].view("<u8").reshape(-1, 2)
        mixed = _mixed(whole[:, 0], whole[:, 1])
        self.mixed, first, count = np.unique(mixed, return_index=True, return_counts=True)
        self.mixed, self.starts = self.mixed[count == 1], first[count == 1] * BLOCK

    def find(self, b: U8, begin: int, end: int) -> tuple[int, int] | None:
        """Return where the first of them that begins in b[begin:end] is, and where there; None where none does."""
        start, window, end = begin, FIRST_WINDOW, min(end, len(b) - BLOCK + 1) if len(self.mixed) else 0
        while start < end:
            stop = min(start + window, end)
            words = _words(b[start : stop + BLOCK - 1])
            mixed = _mixed(words[: stop - start], words[8 : 8 + stop - start])
            place = np.minimum(np.searchsorted(self.mixed, mixed), len(self.mixed) - 1)
            for hit in np.flatnonzero(self.mixed[place] == mixed):
                source, target = int(self.starts[place[hit]]), start + int(hit)
                if (self.a[source : source + BLOCK] == b[target : target + BLOCK]).all():
                    return source, target
            start, window = stop, min(2 * window, LAST_WINDOW)
        return None


def _words(b: U8) -> U64:
    """Return the eight bytes that begin at each place as a number."""
    words = np.empty(len(b) - 7, np.uint64)
    for offset in range(min(8, len(words))):
        part = b[offset : offset + (len(b) - offset) // 8 * 8]
        words[offset::8] = np.frombuffer(part.tobytes(), "<u8")
    return words


def _mixed(low: U64, high: U64) -> U64:
    mixed: U64 = (low * _MIX[0]) ^ ((high + _MIX[0]) * _MIX[1])
    return mixed


def _runs(equal: NDArray[np.bool_]) -> I64:
    """Return (first, behind the last) of each run of at least `MIN_COPY` trues."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], equal, [False]]).astype(np.int8)))
    runs = edges.reshape(-1, 2)
    kept: I64 = runs[runs[:, 1] - runs[:, 0] >= MIN_COPY]
    return kept


def _same_before(a: U8, b: U8) -> int:
    """Return how many bytes are the same at the ends of both."""
    size = min(len(a), len(b))
    equal = a[len(a) - size :][::-1] == b[len(b) - size :][::-1]
    return size if equal.all() else int(equal.argmin())


def _add(found: list[Copy], copy: Copy) -> None:
    """Add a copy, as one with the last where it goes on from it."""
    if found:
        source, target, size = found[-1]
        if (source + size, target + size) == copy[:2]:
            found[-1] = (source, target, size + copy[2])
            return
    found.append(copy)
