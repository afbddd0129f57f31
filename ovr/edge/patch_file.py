"""A patch that makes one edge export another: what the file holds, and what is checked of it before any of it is used.

    "ovr edge patch\\n"
    size of the header (4 bytes, little-endian), header (JSON): the files of the base and of what comes of it, digests and sizes
    of each new file: ops, new bytes (see `delta`), each packed by zlib
    size of the signatures (4 bytes), signatures (JSON, see `edge_signatures`) of the digest of everything before them
    SHA-256 of everything before it

It names no paths: files are known by their names in `edge_files.FILES`. It may come from somebody else, whose digests are right.
"""

import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from ovr.core.bundle import BUNDLE_SIGNATURE
from ovr.core.files import canonical_json, sha256_bytes, strict_json
from ovr.edge.delta import (
    CHUNK_BYTES,
    MAX_OP_BYTES,
    MAX_OPS,
    Copy,
    Damaged,
    Op,
    Unpacked,
    check_ops,
    encoded,
    ops_in,
    rebuild,
)
from ovr.edge.payload import Span, folded, folded_size, unfolded
from ovr.errors import ArtifactError
from ovr.runtime.edge_files import EXPORT_CARD, FILES, MODELS
from ovr.runtime.edge_signatures import signatures_json, signatures_of

MAGIC = b"ovr edge patch\n"
SCHEMA_VERSION = 1
DIGEST_BYTES = 32
MAX_JSON_BYTES = 1 << 16  # of the header, and of the signatures
MAX_FILE_BYTES = 1 << 31  # of a new file, as of any ONNX file
MAX_SIGNATURE_BYTES = 1 << 26  # of a bundle's signature, which is held whole: of half a million files
# What comes of a patch may be as large as the base so many times and the patch so many times together, or 32 MiB.
MAX_BASES, MAX_UNPACKED, ALWAYS_BYTES = 4, 200, 32 << 20

Packed = tuple[int, int]  # bytes in the patch, and unpacked


@dataclass(frozen=True, slots=True)
class Part:
    """What a patch says of one new file."""

    name: str
    sha256: str
    size_bytes: int
    start: int  # of its ops in the patch; its new bytes follow them
    ops: Packed
    literals: Packed
    payload: Span = (0, 0)  # of a bundle's signature: what ops and new bytes give is unfolded there

    @property
    def unfolded_bytes(self) -> int:
        """How many bytes its ops and new bytes give."""
        return self.size_bytes - folded_size(self.payload[1]) + self.payload[1]

    @property
    def is_whole(self) -> bool:
        """Whether all of it is in the patch."""
        return self.literals[1] == self.unfolded_bytes


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch whose every byte was checked."""

    size_bytes: int
    sha256: str
    content_sha256: str  # of what is signed
    base: Mapping[str, tuple[str, int]]  # file -> its digest and size
    parts: tuple[Part, ...]
    signatures: Mapping[str, str]


def patch_bytes(
    base: Mapping[str, bytes],
    new: Mapping[str, bytes],
    copies: Callable[[bytes, bytes], list[Copy]],
    sign: Callable[[str], dict[str, str]] | None = None,
) -> bytes:
    """Return a patch, once it was applied in memory and gave every byte of `new`.

    Args:
        base, new: the files of both exports by their names.
        copies: what of its second argument is in its first; see `matches`.
        sign: returns the signatures of a digest.

    Raises:
        ArtifactError: what `read_patch` refuses: files that are too large, or too much larger than the base.
    """
    bodies, said = [], {}
    for name in sorted(new):
        old, made, payload = base.get(name, b""), new[name], {}
        if name == BUNDLE_SIGNATURE:
            old, (made, span) = unfolded(old)[0], unfolded(made)
            payload = {"payload": list(span)}
        ops, literals = _smallest(old, made, copies)
        packed = [zlib.compress(data, 9) for data in (ops, literals)]
        sizes = [[len(data), len(whole)] for data, whole in zip(packed, (ops, literals), strict=True)]
        said[name] = {**_said(new[name]), "ops": sizes[0], "literals": sizes[1], **payload}
        bodies += packed
    header = {"schema_version": SCHEMA_VERSION, "base": {name: _said(data) for name, data in base.items()}, "new": said}
    content = MAGIC + _sized(canonical_json(header)) + b"".join(bodies)
    signed = content + _sized(signatures_json({} if sign is None else sign(sha256_bytes(content))))
    data = signed + hashlib.sha256(signed).digest()
    file = io.BytesIO(data)
    for part in read_patch(file, "the new patch").parts:
        written = bytearray()
        write_part(file, part, io.BytesIO(base.get(part.name, b"")), written.extend, "the new patch")
        assert written == new[part.name]
    return data


def read_patch(file: BinaryIO, what: str) -> Patch:
    """Return what a patch says, once its digest is right and every number in it was checked.

    Args:
        what: how messages call it.

    Raises:
        ArtifactError: it is no patch, was cut short or changed, or says what cannot be.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        raise ArtifactError(f"{what} is no patch that `ovr edge diff` wrote")
    end = size - DIGEST_BYTES
    own = _sha256(file, max(end, 0))
    file.seek(max(end, 0))
    if file.read() != own.digest():
        raise ArtifactError(f"{what} was cut short or changed: its digest is not the one that it ends with; copy it again")
    try:
        header, start = _json(file, len(MAGIC), end)
        base, parts, start = _files(header, start)
        signatures, after = _json(file, start, end)
        if after != end:
            raise Damaged(f"{end - after} bytes follow where it should end")
        base_bytes = sum(size_bytes for _, size_bytes in base.values())
        most = max(ALWAYS_BYTES, MAX_BASES * base_bytes + MAX_UNPACKED * size)
        if (made := sum(part.size_bytes for part in parts)) > most:
            raise Damaged(f"it is to make {made} bytes; at most {most} are made of it and its base")
        for part in parts:
            old_size = base[part.name][1] if part.name in base else 0
            check_ops(_ops(file, part), old_size=old_size, new_size=part.unfolded_bytes, num_literals=part.literals[1])
    except (Damaged, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{what} is no patch that this ovr applies: {_why(error)}") from None
    content = _sha256(file, start).hexdigest()
    return Patch(size, own.hexdigest(), content, base, parts, signatures_of(signatures, what))


def write_part(file: BinaryIO, part: Part, old: BinaryIO, write: Callable[[bytes], object], what: str) -> None:
    """Write the bytes of a new file, piece by piece.

    Raises:
        ArtifactError: they are not those that the patch names.
    """
    digest = hashlib.sha256()

    def checked(piece: bytes) -> None:
        digest.update(piece)
        write(piece)

    literals = Unpacked(file, part.start + part.ops[0], part.literals[0])
    try:
        if part.name == BUNDLE_SIGNATURE:
            made = bytearray()
            rebuild(io.BytesIO(unfolded(old.read())[0]), _ops(file, part), literals, made.extend)
            checked(folded(bytes(made), part.payload))
        else:
            rebuild(old, _ops(file, part), literals, checked)
    except Damaged as error:
        raise ArtifactError(f"{what} does not make {part.name}: {error}") from None
    if digest.hexdigest() != part.sha256:
        raise ArtifactError(f"{what} does not make the {part.name} that it names: its digest is another")


def _smallest(old: bytes, new: bytes, copies: Callable[[bytes, bytes], list[Copy]]) -> tuple[bytes, bytes]:
    """Return the ops and the new bytes of a file, or all its bytes as new ones where that is no larger."""
    whole = encoded([], new)
    if not old:
        return whole
    found = copies(old, new)
    made = encoded(found, new)
    fits = len(found) < MAX_OPS and len(made[0]) <= MAX_OP_BYTES
    return min((made, whole), key=lambda parts: sum(len(zlib.compress(data, 9)) for data in parts)) if fits else whole


def _ops(file: BinaryIO, part: Part) -> Iterator[Op]:
    unpacked = Unpacked(file, part.start, part.ops[0])
    data = unpacked.read(part.ops[1])
    unpacked.close()
    return ops_in(data)


def _files(header: Any, start: int) -> tuple[dict[str, tuple[str, int]], tuple[Part, ...], int]:
    """Return the base, the parts, and where they end, of a header."""
    if header["schema_version"] != SCHEMA_VERSION:
        raise Damaged(f"it has schema_version {header['schema_version']!r}; this ovr reads {SCHEMA_VERSION}")
    base = {name: _digest_and_size(row) for name, row in header["base"].items()}
    parts = []
    for name, row in sorted(header["new"].items()):
        sizes = [_whole_number(size, MAX_FILE_BYTES) for key in ("ops", "literals") for size in row[key]]
        if len(sizes) != 4 or sizes[1] > MAX_OP_BYTES:
            raise Damaged(f"the sizes of {name[:60]} are {str(sizes)[:60]}")
        part = Part(name, *_digest_and_size(row), start, (sizes[0], sizes[1]), (sizes[2], sizes[3]), _payload(name, row))
        if name == BUNDLE_SIGNATURE and part.size_bytes > MAX_SIGNATURE_BYTES:
            raise Damaged(f"{name} is to be {part.size_bytes} bytes; at most {MAX_SIGNATURE_BYTES} are made")
        if sum(part.payload) > part.unfolded_bytes:
            raise Damaged(f"the payload of {name} is at {part.payload} of {part.size_bytes} bytes")
        parts.append(part)
        start += sizes[0] + sizes[2]
    for names in (base.keys(), {part.name for part in parts}):
        if unknown := sorted(names - set(FILES)):
            raise Damaged(f"it has a file {unknown[0][:60]!r}; expected some of {', '.join(FILES)}")
        if EXPORT_CARD not in names or len(names & set(MODELS)) != 1:
            raise Damaged(f"it has no {EXPORT_CARD}, or not one model")
    return base, tuple(parts), start


def _payload(name: str, row: Any) -> Span:
    """Return where the payload of a bundle's signature is; no other file has one."""
    if name != BUNDLE_SIGNATURE:
        return 0, 0
    start, size = (_whole_number(value, MAX_SIGNATURE_BYTES) for value in row["payload"])
    return start, size


def _digest_and_size(row: Any) -> tuple[str, int]:
    if not re.fullmatch("[0-9a-f]{64}", row["sha256"]):
        raise Damaged(f"{row['sha256'][:80]!r} is no SHA-256")
    return row["sha256"], _whole_number(row["size_bytes"], MAX_FILE_BYTES)


def _whole_number(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise Damaged(f"a size is {str(value)[:40]}; expected a whole number up to {most}")
    return value


def _json(file: BinaryIO, start: int, end: int) -> tuple[Any, int]:
    """Return the JSON value whose size stands at `start`, and where it ends."""
    if not 0 <= start <= end - 4:
        raise Damaged("it ends before its header or its signatures")
    file.seek(start)
    size = int.from_bytes(file.read(4), "little")
    if size > min(MAX_JSON_BYTES, end - start - 4):
        raise Damaged(f"its header or its signatures have {size} bytes; expected at most {min(MAX_JSON_BYTES, end - start - 4)}")
    return strict_json(file.read(size)), start + 4 + size


def _sha256(file: BinaryIO, end: int) -> Any:
    digest = hashlib.sha256()
    file.seek(0)
    for left in range(end, 0, -CHUNK_BYTES):
        digest.update(file.read(min(left, CHUNK_BYTES)))
    return digest


def _said(data: bytes) -> dict[str, Any]:
    return {"sha256": sha256_bytes(data), "size_bytes": len(data)}


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"its header lacks {error}"
    if isinstance(error, TypeError | AttributeError):  # Python's own words tell nothing of the header
        return "its header is of another shape than `ovr edge diff` writes"
    return str(error)
