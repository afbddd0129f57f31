"""Scored chunks as parts of a file, and the file. Knows no model."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ovr.cli.scoring import Scored
from ovr.core.files import staged_file
from ovr.errors import InputError
from ovr.runtime.batch.answers import Answers
from ovr.runtime.batch.parts import GrowingFile, Journal, Part

MAX_SHOWN = 5  # refused rows that an error tells of


def write_parts(
    journal: Journal,
    scored: Iterator[Scored],
    answers: Answers,
    *,
    part_rows: int,
    on_error: str,
    progress: Callable[[int], Any],
    check: Callable[[], Any],
) -> None:
    """Write the chunks as parts that begin every `part_rows` rows, or at the first chunk after that, and let the output appear.

    A part is flushed to the disk in a thread, while the next one is made. Before the output appears the list of the rows that were
    refused, if any were.

    Args:
        progress: called with the number of rows done since the last call.
        check: called when all is done, before the output appears; what it raises keeps it from that.

    Raises:
        InputError: a row was refused, and `on_error` is "fail"; the parts before it are kept.
    """
    with PartFiles(journal, answers) as files:
        with ThreadPoolExecutor(1, "ovr-flush") as flushing:
            flushed: Future[None] | None = None
            for _, chunks in groupby(scored, lambda chunk: chunk.first // part_rows):
                part = OpenPart(files, answers)
                try:
                    for chunk in chunks:
                        if chunk.refused and on_error == "fail":
                            raise InputError(_refusal(chunk))
                        part.write(chunk)
                        progress(chunk.num_rows)
                    made = part.finish()
                except BaseException:
                    part.abort()
                    raise
                if flushed is not None:
                    flushed.result()
                flushed = flushing.submit(files.commit, made)
            if flushed is not None:
                flushed.result()
        check()
        files.end()
    _list_refused(journal)
    journal.complete()


class PartFiles:
    """The files of one output that grow by parts."""

    def __init__(self, journal: Journal, answers: Answers) -> None:
        self._journal = journal
        parts = journal.parts
        self.rows = GrowingFile(journal.rows, sum(part.size_bytes for part in parts))
        self.refused = GrowingFile(journal.refused, sum(part.refused_bytes for part in parts))
        self.footers = GrowingFile(journal.footers, sum(part.footer_bytes for part in parts))
        self._all = (self.rows, self.refused, self.footers)
        self._is_parquet = answers.ending == ".parquet"
        if not parts:
            self.rows.file.write(answers.head)

    def commit(self, part: Part) -> None:
        """Flush a part to the disk, and let the journal tell of it."""
        for file in self._all:
            file.sync()
        self._journal.add(part)

    def end(self) -> None:
        """Add what a file ends with, and flush it to the disk."""
        if self._is_parquet:
            from ovr.runtime.batch.parquet_parts import whole_footer

            with self._journal.footers.open("rb") as file:
                self.rows.file.write(whole_footer(file.read(part.footer_bytes) for part in self._journal.parts))
            self.rows.end_part()
        self.rows.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._all:
            file.file.close()


class OpenPart:
    """A part that is being written: its answers, and the list of its refused rows, if there are any."""

    def __init__(self, files: PartFiles, answers: Answers) -> None:
        self._files = files
        self._num_rows = self._num_refused = 0
        self._counts = Counter[str]()
        self._groups: Any = None
        if answers.ending == ".parquet":
            from ovr.runtime.batch.parquet_parts import RowGroups

            self._groups = RowGroups(files.rows.file, files.rows.size_bytes, answers)

    def write(self, chunk: Scored) -> None:
        """Add a chunk."""
        for row, where, problem in chunk.refused:
            line = {"row": row, "where": where, "problem": problem}
            self._files.refused.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        if self._groups is None:
            self._files.rows.file.write(chunk.written)
        else:
            self._groups.write(chunk.written)
        self._num_rows += chunk.num_rows
        self._num_refused += len(chunk.refused)
        self._counts.update(chunk.counts)

    def finish(self) -> Part:
        """Write what is left, and return what the part is."""
        footer_bytes = 0
        if self._groups is not None:
            self._files.footers.file.write(self._groups.finish())
            footer_bytes = self._files.footers.end_part()
        size_bytes, refused_bytes = self._files.rows.end_part(), self._files.refused.end_part()
        return Part(self._num_rows, self._num_refused, size_bytes, refused_bytes, dict(self._counts), footer_bytes)

    def abort(self) -> None:
        """Write nothing more; what is there of the part is cut off when the next run goes on."""
        if self._groups is not None:
            self._groups.abort()


def _list_refused(journal: Journal) -> None:
    listed = refused_list(journal.output)
    if not journal.num_refused:
        listed.unlink(missing_ok=True)
        return
    with journal.refused.open("rb") as source, staged_file(listed) as file:
        shutil.copyfileobj(source, file)


def refused_list(output: Path) -> Path:
    """Return where the rows that were refused are listed; readers of whole folders pass over names that begin so."""
    return output.with_name(f"_{output.name}.refused.jsonl")


def _refusal(chunk: Scored) -> str:
    shown = "; ".join(f"{where}: {problem}" for _, where, problem in chunk.refused[:MAX_SHOWN])
    more = f"; and {len(chunk.refused) - MAX_SHOWN} more" if len(chunk.refused) > MAX_SHOWN else ""
    total = chunk.first + chunk.num_rows
    of = f"{total}" if chunk.first == 0 else f"the first {total}"
    return (
        f"{total - len(chunk.refused)} of {of} rows passed the model's checks, {len(chunk.refused)} were refused: {shown}{more} "
        "(on_error=skip leaves such rows out, on_error=empty leaves them empty)"
    )


def counts_of(journal: Journal) -> Mapping[str, int]:
    """Return the sums of what the parts counted."""
    total = Counter[str]()
    for part in journal.parts:
        total.update(part.counts)
    return total
