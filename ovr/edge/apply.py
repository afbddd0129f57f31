"""A patch applied to an edge export on a device: the directory is the old one or the new one, whatever happens meanwhile."""

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ovr.core.exchange import replaced_directory, take_after
from ovr.core.files import sha256_file, staged_directory, sweep
from ovr.edge.patch_file import Patch, read_patch, write_part
from ovr.errors import ArtifactError
from ovr.runtime.edge_files import EXPORT_CARD, checked_model, export_files
from ovr.runtime.edge_signatures import PATCH_KIND, check_signed


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a patch."""

    patch: Patch
    path: Path
    is_new: bool  # False where the directory was what comes of the patch already

    def told(self) -> str:
        """Return what the terminal shows."""
        sizes = f"{sum(part.size_bytes for part in self.patch.parts)} bytes by a patch of {self.patch.size_bytes}"
        return f"{self.path}: {sizes}" if self.is_new else f"{self.path} is what the patch makes already; nothing was written"


def apply_patch(patch: Path, directory: Path, *, out: Path | None = None, trusted_keys: Sequence[Path] = ()) -> Applied:
    """Make an edge export what the patch makes of it, byte for byte, at once; nothing is written before all was checked.

    Args:
        out: a new directory for it; by default it takes the place of `directory`.
        trusted_keys: public keys, one of which must have signed the patch; without any, nobody needs to have.

    Raises:
        ArtifactError: the patch is none, was changed or cut short, is not signed by a trusted key, or is for another base; the
            directory is no edge export, or holds other files too; `out` exists or is within it; the two cannot change places here.
        ConfigError: a key cannot be used, or cryptography is not installed.
    """
    what = f"patch {patch}"
    if not patch.exists():
        raise ArtifactError(f"{what} does not exist")
    if not stat.S_ISREG(patch.stat().st_mode):  # to open a pipe is to wait
        raise ArtifactError(f"{what} is no regular file")
    with patch.open("rb") as file:
        read = read_patch(file, what)
        if trusted_keys:
            check_signed(PATCH_KIND, read.content_sha256, dict(read.signatures), trusted_keys, what=what)
        files = export_files(directory)
        there = {name: (sha256_file(found), found.stat().st_size) for name, found in files.items()}
        if out is None and there == {part.name: (part.sha256, part.size_bytes) for part in read.parts}:
            sweep(directory.resolve())  # of the old directory, by one that was killed before it had removed it
            return Applied(read, directory, is_new=False)
        _check_base(read, there, directory, what)
        if out is not None and out.resolve().is_relative_to(directory.resolve()):
            raise ArtifactError(f"out={out} is within {directory}, which takes no other files; choose a place outside of it")
        made = replaced_directory(directory) if out is None else staged_directory(out)
        with made as staging:
            if sha256_file(directory / EXPORT_CARD) != read.base[EXPORT_CARD][0]:
                raise ArtifactError(f"{directory} was changed by another process meanwhile; apply the patch again")
            _write(file, read, files, staging, directory, what)
            checked_model(staging)
    return Applied(read, directory if out is None else out, is_new=True)


def _check_base(patch: Patch, there: Mapping[str, tuple[str, int]], directory: Path, what: str) -> None:
    """Raise unless the files are those of the base, in size too: the sizes that a patch names have decided how much it may make."""
    if wrong := sorted(name for name in there.keys() | patch.base.keys() if there.get(name) != patch.base.get(name)):
        found, asked = there.get(wrong[0]), patch.base.get(wrong[0])
        raise ArtifactError(
            f"{what} is for another base than {directory}: {wrong[0]} is {_told(found, 'not there')}, the patch is for "
            f"{_told(asked, 'none')}; take the patch that was made from this export, or copy the new export whole"
        )


def _told(file: tuple[str, int] | None, absent: str) -> str:
    return absent if file is None else f"{file[0][:12]} of {file[1]} bytes"


def _write(file: BinaryIO, patch: Patch, files: Mapping[str, Path], staging: Path, directory: Path, what: str) -> None:
    for part in patch.parts:
        target = staging / part.name
        target.parent.mkdir(exist_ok=True)
        with files[part.name].open("rb") if part.name in files else BytesIO() as old, target.open("xb") as new:
            write_part(file, part, old, new.write, what)
        take_after(target, files.get(part.name, files[EXPORT_CARD]))
    for folder in {(staging / part.name).parent for part in patch.parts} - {staging}:  # once all is in it: it may be read-only
        take_after(folder, directory)
