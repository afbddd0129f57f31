"""The payload of a bundle's signature: base64, which is taken apart before two are compared. Knows nothing of what is signed.

A file of the bundle more, or a longer name, moves all characters of what follows; the bytes that they stand for stay.
"""

import base64
import re

_BASE64 = re.compile(rb"[A-Za-z0-9+/]{64,}={0,2}")
Span = tuple[int, int]  # where the payload begins, and its bytes once decoded; none where the second is 0


def unfolded(data: bytes) -> tuple[bytes, Span]:
    """Return the bytes with their longest base64 text decoded, and where that is; as they are where it would not come back so."""
    found = max(_BASE64.finditer(data), key=lambda match: len(match[0]), default=None)
    if found is None or len(found[0]) % 4:
        return data, (0, 0)
    decoded = base64.b64decode(found[0])
    if base64.b64encode(decoded) != found[0]:  # bits beyond its end
        return data, (0, 0)
    return data[: found.start()] + decoded + data[found.end() :], (found.start(), len(decoded))


def folded(data: bytes, span: Span) -> bytes:
    """Return the bytes that `unfolded` was given."""
    start, size = span
    return data[:start] + base64.b64encode(data[start : start + size]) + data[start + size :]


def folded_size(size: int) -> int:
    """Return how many characters so many bytes are in base64."""
    return -(-size // 3) * 4
