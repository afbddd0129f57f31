"""The files of a bundle that may come later than the rest: its signatures. Knows not what was signed, nor who is trusted."""

import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path

from ovr.core.artifact import check_schema_version
from ovr.core.bundle import BUNDLE_SIGNATURE, HEAD_SIGNATURES
from ovr.core.files import canonical_json, read_json, write_file
from ovr.errors import ArtifactError

Signatures = dict[str, dict[str, str]]  # of heads: class id -> digest of the public key -> signature


@dataclass(frozen=True, slots=True)
class HeadSignatures:
    """What signatures/heads.json holds."""

    heads: Signatures = field(default_factory=dict)
    earlier: Signatures = field(default_factory=dict)  # of heads that are not in use: digest of what was signed -> likewise

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        earlier = {"earlier": self.earlier} if self.earlier else {}
        return canonical_json({"schema_version": 1, "heads": self.heads, **earlier})


def take_over(source: Path, target: Path) -> tuple[str, ...]:
    """Give a bundle's copy, or the router that serves it, the signatures that the bundle has; return the files that changed there.

    The bundle's signature takes the place of one that is there; signatures of heads come beside those that are there, in place of
    those of the same keys. What the bundle does not have stays. Each file changes at once.

    Args:
        source: the bundle's directory.
        target: a directory with `signatures/` likewise.

    Raises:
        ArtifactError: a file holds no signatures of heads.
    """
    changed = []
    if (source / HEAD_SIGNATURES).is_file() and add_head_signatures(target, head_signatures_in(source / HEAD_SIGNATURES)):
        changed.append(HEAD_SIGNATURES)
    ours, theirs = (directory / BUNDLE_SIGNATURE for directory in (source, target))
    if ours.is_file() and not (theirs.is_file() and theirs.read_bytes() == ours.read_bytes()):
        theirs.parent.mkdir(exist_ok=True)
        write_file(theirs, ours.read_bytes())
        changed.append(BUNDLE_SIGNATURE)
    return tuple(changed)


def signatures_in(file: Path) -> Signatures:
    """Return the signatures of heads in use in a file, unverified; see `head_signatures_in`."""
    return head_signatures_in(file).heads


def head_signatures_in(file: Path) -> HeadSignatures:
    """Return the signatures of heads in a file, unverified.

    Raises:
        ArtifactError: the file cannot be read.
    """
    value = read_json(file, beside_bytes=0)
    check_schema_version(value, str(file))
    found = HeadSignatures(value.get("heads"), value.get("earlier", {}))
    for rows in (found.heads, found.earlier):
        if not isinstance(rows, dict) or not all(
            isinstance(row, dict) and all(isinstance(made, str) for made in row.values()) for row in rows.values()
        ):
            raise ArtifactError(f"{file} holds no signatures of heads; delete it and sign them again")
    return found


def add_head_signatures(directory: Path, more: HeadSignatures) -> bool:
    """Write these signatures beside those that are there; return whether any is new. Of several who sign at once none is lost."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        file = directory / HEAD_SIGNATURES
        before = head_signatures_in(file) if file.is_file() else HeadSignatures()
        after = HeadSignatures(_joined(before.heads, more.heads), _joined(before.earlier, more.earlier))
        if after == before:
            return False
        file.parent.mkdir(exist_ok=True)
        write_file(file, after.to_bytes())
    finally:
        os.close(descriptor)
    return True


def _joined(there: Signatures, more: Signatures) -> Signatures:
    return there | {key: there.get(key, {}) | row for key, row in more.items()}
