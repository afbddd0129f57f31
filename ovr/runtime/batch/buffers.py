"""Arrays that are used again when nobody holds them any more. Knows not what is in them."""

import sys
from collections.abc import Sequence
from math import prod
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST = 16  # arrays that are kept; more are given out, and left to Python
LEAST_BYTES = 1 << 18  # smaller ones Python's allocator keeps by itself


class Buffers:
    """Gives out arrays whose memory the system has not to clear anew, which for large ones takes as long as to fill them.

    An array is free when nothing holds it: no view of it, and nothing that was made of it without a copy, such as an Arrow array.
    """

    def __init__(self) -> None:
        self._kept: list[NDArray[np.uint8]] = []
        self._lock = Lock()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array that holds anything."""
        size_bytes = prod(shape) * np.dtype(dtype).itemsize
        if size_bytes < LEAST_BYTES:
            return np.empty(shape, dtype)
        return self._bytes(size_bytes)[:size_bytes].view(dtype).reshape(shape)

    def _bytes(self, size_bytes: int) -> NDArray[np.uint8]:
        with self._lock:
            for at in range(len(self._kept)):
                if _num_holders(self._kept, at) == _FREE and len(self._kept[at]) >= size_bytes:
                    return self._kept[at]
            made = np.empty(size_bytes, np.uint8)
            if len(self._kept) < MOST:
                self._kept.append(made)
            return made


def _num_holders(arrays: Sequence[Any], at: int) -> int:
    return sys.getrefcount(arrays[at])


_FREE = _num_holders([np.empty(0)], 0)  # of an array that only its list holds; versions of Python count it in their own ways
