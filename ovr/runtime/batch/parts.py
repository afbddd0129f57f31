"""What a run that may be killed leaves on the disk: its output as far as it goes, and a journal of the parts of it that are whole.

Knows files, not what is in them. Beside `answers.csv` stands the folder `_answers.csv.partial` until the output is complete: in it
`journal.jsonl`, a line that says what is being made of what, then one a part; and files that grow by parts, each of which is on the
disk before the journal tells of it: `rows.csv`, which becomes the output by a rename, `refused.jsonl`, and for Parquet `footers`.
What a file holds beyond the last part that the journal tells of is cut off, and made again.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ovr.core.files import canonical_json, fsync_directory, sha256_bytes, staged_file
from ovr.errors import InputError

SCHEMA_VERSION = 2
SAMPLES = 64  # blocks of a large file that its digest is of
SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is on the disk: the rows of the input that it is of, and by how much each file grew."""

    num_rows: int
    num_refused: int
    size_bytes: int
    refused_bytes: int
    counts: Mapping[str, int]
    footer_bytes: int = 0


class GrowingFile:
    """A file in a locked folder that parts are added to; what it holds beyond `size_bytes`, of parts that count, is cut off."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.file = path.open("ab")
        self.file.truncate(size_bytes)
        self.file.seek(0, os.SEEK_END)
        self.size_bytes = size_bytes

    def end_part(self) -> int:
        """Hand the rest of a part to the system, and return by how much the file grew."""
        before, self.size_bytes = self.size_bytes, self.file.tell()
        self.file.flush()
        return self.size_bytes - before

    def sync(self) -> None:
        """Flush what the system has of the file to the disk."""
        os.fsync(self.file.fileno())


class Journal:
    """The parts of one output, of which one process at a time adds more."""

    def __init__(self, output: Path, folder: Path) -> None:
        self.output = output
        self.parts: list[Part] = []
        self.folder = folder
        self.rows = folder / f"rows{output.suffix}"
        self.refused = folder / "refused.jsonl"
        self.footers = folder / "footers"
        self.is_complete = False  # whether the output has its name already

    @property
    def num_rows(self) -> int:
        """How many rows of the input the parts are of."""
        return sum(part.num_rows for part in self.parts)

    @property
    def num_refused(self) -> int:
        """How many of these were refused."""
        return sum(part.num_refused for part in self.parts)

    def add(self, part: Part) -> None:
        """Tell of the next part, which is on the disk."""
        self._tell(asdict(part))
        self.parts.append(part)

    def complete(self) -> None:
        """Let the output appear, all of which is on the disk, in place of what was there."""
        self._tell({"complete_bytes": self.rows.stat().st_size})
        os.replace(self.rows, self.output)
        fsync_directory(self.output.parent)

    def discard(self) -> None:
        """Remove journal and parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tell(self, line: Mapping[str, Any]) -> None:
        with (self.folder / "journal.jsonl").open("ab") as file:
            file.write(canonical_json(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def partial_folder(output: Path) -> Path:
    """Return where the parts of an output are; readers of whole folders pass over names that begin so."""
    return output.with_name(f"_{output.name}.partial")


@contextmanager
def journal_of(
    output: Path, about: Mapping[str, Any], *, on_error: str = "fail", resume: bool, overwrite: bool
) -> Iterator[Journal]:
    """Yield the journal of an output, locked; with `resume` and parts of an earlier run, it tells of these.

    When the block raises, parts stay, for a later run to go on from; where there are none, nothing stays.

    Args:
        about: plain values that must be the same for one run to go on with another's parts, by their names for a message.
        on_error: what is done with refused rows; it must be the same too, once there are any.
        overwrite: without `resume`, whether earlier parts are discarded.

    Raises:
        InputError: another process makes this output; there are parts, and neither of the two is said; or they are of other
            things than `about`, and `resume` is said; or the journal cannot be read.
    """
    folder = partial_folder(output)
    folder.mkdir(exist_ok=True)
    head = {"schema_version": SCHEMA_VERSION, "on_error": on_error, **about}
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing {output}; wait for it, or choose another output") from None
        journal = Journal(output, folder)
        before, journal.parts, complete_bytes = _read(journal)
        if journal.parts and not resume:
            if not overwrite:
                raise InputError(
                    f"{output} was begun and not finished: {journal.num_rows} rows are in {folder}; resume=true goes on with them, "
                    "overwrite=true begins anew"
                )
            journal.parts = []
        if journal.parts:
            _check_same(before if journal.num_refused else before | {"on_error": on_error}, head, output)
            journal.is_complete = _is_complete(journal, complete_bytes)
            if not journal.is_complete:
                journal.parts = _whole_parts(journal)
        for left in folder.glob(".*.tmp*"):
            left.unlink()
        with staged_file(folder / "journal.jsonl") as file:  # without the torn line that a kill may leave
            complete = [{"complete_bytes": complete_bytes}] if journal.is_complete else []
            for line in (head, *map(asdict, journal.parts), *complete):
                file.write(canonical_json(line) + b"\n")
        fsync_directory(folder.parent)
        try:
            yield journal
        except BaseException:
            if not journal.parts:
                journal.discard()
            raise


def identity(path: Path, *, files: Sequence[Path] | None = None) -> dict[str, Any]:
    """Return what tells an input from another: its size, time of change and a digest of blocks spread over it; not its place.

    A file of up to 4 MiB is digested whole, of a larger one 64 blocks of 64 KiB, the first and the last among them. Of a folder or
    a list of `files`, their names, sizes and times are.
    """
    if files is not None:
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        size_bytes = sum(size for _, size, _ in stats)
        return {"size_bytes": size_bytes, "changed_ns": 0, "sha256": sha256_bytes(canonical_json(stats))}
    stat = path.stat()
    last = max(0, stat.st_size - SAMPLE_BYTES)
    starts = sorted({last * n // (SAMPLES - 1) for n in range(SAMPLES)})
    data = []
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            data.append(file.read(SAMPLE_BYTES))
    return {"size_bytes": stat.st_size, "changed_ns": stat.st_mtime_ns, "sha256": sha256_bytes(b"".join(data))}


def _read(journal: Journal) -> tuple[dict[str, Any], list[Part], int | None]:
    """Return what the journal is about, its parts, and the size of the output that was complete; a torn last line is none."""
    try:
        lines = (journal.folder / "journal.jsonl").read_bytes().split(b"\n")[:-1]
        head, *told = (json.loads(line) for line in lines)
        complete_bytes = told.pop()["complete_bytes"] if told and "complete_bytes" in told[-1] else None
        return head, [Part(**part) for part in told], complete_bytes
    except FileNotFoundError:
        return {}, [], None
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{journal.folder}/journal.jsonl cannot be read ({error}); remove the folder to begin {journal.output} anew"
        ) from None


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    changed = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += [f"{name} {key}: {old.get(key)!r}, now {new.get(key)!r}" for key in new if old.get(key) != new[key]]
        elif old != new:
            changed.append(f"{name}: {old!r}, now {new!r}")
    if changed:
        raise InputError(
            f"{output} was begun with something else than this run has ({'; '.join(changed)}); resume=true needs the same, "
            "overwrite=true without resume begins anew"
        )


def _is_complete(journal: Journal, complete_bytes: int | None) -> bool:
    """Return whether the output has its name already: a run may be killed between that and the end."""
    if complete_bytes is None or journal.rows.exists():
        return False
    return journal.output.is_file() and journal.output.stat().st_size == complete_bytes


def _whole_parts(journal: Journal) -> list[Part]:
    """Return the parts up to the first that a file is too short for, as after a loss of power."""
    sizes = [path.stat().st_size if path.is_file() else 0 for path in (journal.rows, journal.refused, journal.footers)]
    for number, part in enumerate(journal.parts):
        for place, grown_bytes in enumerate((part.size_bytes, part.refused_bytes, part.footer_bytes)):
            sizes[place] -= grown_bytes
        if min(sizes) < 0:
            return journal.parts[:number]
    return journal.parts
