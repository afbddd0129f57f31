"""Run as a script in a mount namespace of its own: publishing and head commands on a full and on a read-only disk.

    unshare -rm python -m tests.serving.small_disks DIRECTORY

DIRECTORY holds the bundles `first`, `second` and `third`, and must be on another file system than the disk that is mounted in it.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ovr.core.bundle import ModelBundle, open_bundle
from ovr.errors import OvrError
from ovr.lifecycle.heads import retire
from ovr.serving.repository import publish
from tests.serving.consistency import check_repository

ROOM_KIB = (0, 4, 8, 16, 32, 64, 96)


def leave(disk: Path, room_kib: int) -> Path:
    """Fill the disk but for so much, and return the file that does."""
    filler, status = disk / "filler", os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - 1024 * room_kib)
    return filler


def files(root: Path) -> dict[str, bytes | None]:
    """Return what lies under `root` apart from the filler, directories as None."""
    found = {path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}
    found.pop("filler", None)
    return found


def refused(disk: Path, work: Callable[[], object], *said: str) -> bool:
    """Return whether the work failed; then with these words, and the disk holds what it held."""
    before, told = files(disk), None
    try:
        work()
    except (OvrError, OSError) as error:
        told = str(error)
    if told is None:
        return False
    assert all(words in told for words in said), told
    assert files(disk) == before, set(files(disk)) ^ set(before)
    return True


def on_a_full_disk(disk: Path, first: ModelBundle, second: ModelBundle, layout: str) -> int:
    """Publish with more and more room; return how often there was too little."""
    repository, num_refused = disk / layout / "repo", 0
    repository.parent.mkdir()
    for bundle, served in ((first, None), (second, 1)):
        for room_kib in ROOM_KIB:
            filler = leave(disk, room_kib)
            told = "nothing is published" if served is None else "version 1 is served as before"
            work = partial(publish, bundle, repository, layout=layout)  # type: ignore[arg-type]
            failed = refused(disk, work, "No space left on device", told)
            filler.unlink()
            if not failed:
                break
            num_refused += 1
            assert served is None or check_repository(repository) == served
        else:
            publish(bundle, repository, layout=layout)  # type: ignore[arg-type]
    assert check_repository(repository) == 2
    return num_refused


def heads_on_a_full_disk(disk: Path, bundle: ModelBundle) -> int:
    """Retire a class with more and more room; return how often there was too little."""
    num_refused = 0
    (disk / "heads").mkdir()
    for room_kib in ROOM_KIB:
        filler = leave(disk, room_kib)
        failed = refused(disk, lambda: retire(bundle, disk / "heads" / "fewer", ["/"]), "No space left on device", "heads/fewer")
        filler.unlink()
        if not failed:
            break
        num_refused += 1
    else:
        retire(bundle, disk / "heads" / "fewer", ["/"])
    assert open_bundle(disk / "heads" / "fewer").taxonomy.ids == ("A",)
    return num_refused


def on_a_read_only_disk(disk: Path, bundle: ModelBundle) -> int:
    """Try all; return how often it was refused."""
    subprocess.run(["mount", "-o", "remount,ro,bind", disk, disk], check=True)
    repository = disk / "fused" / "repo"
    count = refused(disk, lambda: publish(bundle, repository), "Read-only file system", "version 2 is served as before")
    count += refused(disk, lambda: publish(bundle, disk / "new" / "repo"), "Read-only file system", "nothing is published")
    count += refused(disk, lambda: retire(bundle, disk / "heads" / "more", ["/"]), "Read-only file system", "heads/more")
    assert check_repository(repository) == 2
    assert len(open_bundle(disk / "heads" / "fewer").heads) == 1
    return count


def main(root: Path) -> None:
    """Print how often each was refused."""
    disk = root / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    first, second, third = (open_bundle(root / name) for name in ("first", "second", "third"))
    for layout in ("fused", "per_head"):
        print(layout, on_a_full_disk(disk, first, second, layout))
    print("heads", heads_on_a_full_disk(disk, second))
    print("read-only", on_a_read_only_disk(disk, third))
    print("mounted", refused(disk, lambda: publish(first, disk), "on different file systems"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
