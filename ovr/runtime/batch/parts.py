"""What a run that may be killed leaves on the disk: parts of its output that appear whole, and a journal of them.

Knows files, not what is in them. Beside `answers.csv` stands the folder `_answers.csv.partial` until all parts are joined: in it
`journal.jsonl`, a line that says what is being made of what, then one a part, each written after its part has its name; and
`part-000000.csv` and so on. A part that the journal does not tell of, or that is not whole, is made again.
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

SCHEMA_VERSION = 1
SAMPLES = 64  # blocks of a large file that its digest is of
SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is on the disk: the rows of the input that it is of, and its files' sizes."""

    num_rows: int
    num_refused: int
    size_bytes: int
    refused_bytes: int
    counts: Mapping[str, int]


class StagedPart:
    """A file that is being written in a locked folder, and has its name when it is on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._staging = path.with_name(f".{path.name}.tmp")
        self.file = self._staging.open("wb")

    def commit(self) -> int:
        """Give the file its name, and return its size."""
        self.file.flush()
        os.fsync(self.file.fileno())
        size_bytes = self.file.tell()
        self.file.close()
        os.replace(self._staging, self._path)
        return size_bytes

    def abort(self) -> None:
        """Remove the file."""
        self.file.close()
        self._staging.unlink(missing_ok=True)


class Journal:
    """The parts of one output, of which one process at a time adds more."""

    def __init__(self, output: Path, folder: Path) -> None:
        self.output = output
        self.folder = folder
        self.parts: list[Part] = []

    @property
    def num_rows(self) -> int:
        """How many rows of the input the parts are of."""
        return sum(part.num_rows for part in self.parts)

    @property
    def num_refused(self) -> int:
        """How many of these were refused."""
        return sum(part.num_refused for part in self.parts)

    def part(self, number: int) -> Path:
        """Return the place of a part."""
        ending = (
            ".arrow" if self.output.suffix == ".parquet" else self.output.suffix
        )  # a Parquet file cannot be made of others as it is
        return self.folder / f"part-{number:06d}{ending}"

    def refused(self, number: int) -> Path:
        """Return the place of the list of a part's refused rows, which is there if there are any."""
        return self.folder / f"refused-{number:06d}.jsonl"

    def add(self, part: Part) -> None:
        """Tell of the next part, whose files have their names already."""
        with (self.folder / "journal.jsonl").open("ab") as file:
            file.write(canonical_json(asdict(part)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.parts.append(part)

    def discard(self) -> None:
        """Remove journal and parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


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
        before, journal.parts = _read(journal)
        if journal.parts and not resume:
            if not overwrite:
                raise InputError(
                    f"{output} was begun and not finished: {journal.num_rows} rows are in {folder}; resume=true goes on with them, "
                    "overwrite=true begins anew"
                )
            journal.parts = []
        if journal.parts:
            _check_same(before if journal.num_refused else before | {"on_error": on_error}, head, output)
            journal.parts = _whole_parts(journal)
        for left in folder.glob(".*.tmp*"):
            left.unlink()
        with staged_file(folder / "journal.jsonl") as file:  # without the torn line that a kill may leave
            for line in (head, *map(asdict, journal.parts)):
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


def _read(journal: Journal) -> tuple[dict[str, Any], list[Part]]:
    """Return what the journal is about, and its parts; lines from the first torn one on count for nothing."""
    try:
        lines = (journal.folder / "journal.jsonl").read_bytes().split(b"\n")[:-1]
        head, *parts = (json.loads(line) for line in lines)
        return head, [Part(**part) for part in parts]
    except FileNotFoundError:
        return {}, []
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


def _whole_parts(journal: Journal) -> list[Part]:
    """Return the parts up to the first whose files have not the sizes that the journal tells, as after a loss of power."""
    for number, part in enumerate(journal.parts):
        for path, size in ((journal.part(number), part.size_bytes), (journal.refused(number), part.refused_bytes)):
            if size != (path.stat().st_size if path.is_file() else 0):
                return journal.parts[:number]
    return journal.parts
