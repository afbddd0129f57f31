"""Scored chunks as parts of a file, and parts as the file. Knows no model."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from ovr.cli.scoring import Scored
from ovr.core.files import staged_file
from ovr.errors import InputError
from ovr.runtime.batch.answers import Answers
from ovr.runtime.batch.parts import Journal, Part, StagedPart

ROW_GROUP_BYTES = 1 << 24  # of Parquet; more rows wait in memory for no longer
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
    """Write the chunks as parts that begin every `part_rows` rows, or at the first chunk after that, and the output of all parts.

    Parts are flushed to the disk in one thread and added to the output, earlier ones first, in another, while the next one is made.
    The output appears when it is complete, and before it the list of the rows that were refused, if any were.

    Args:
        progress: called with the number of rows done since the last call.
        check: called when all is done, before the output appears; what it raises keeps it from that.

    Raises:
        InputError: a row was refused, and `on_error` is "fail"; the parts before it are kept.
    """
    with (
        staged_file(journal.output) as file,
        Joined(file, answers) as joined,
        ThreadPoolExecutor(1, "ovr-join") as joining,
        ThreadPoolExecutor(1, "ovr-flush") as flushing,
    ):
        flushed: Future[None] | None = None
        added = [joining.submit(joined.add, journal.part(number)) for number in range(len(journal.parts))]
        try:
            for number, (_, chunks) in enumerate(groupby(scored, lambda chunk: chunk.first // part_rows), start=len(journal.parts)):
                part = OpenPart(journal, number, answers)
                try:
                    for chunk in chunks:
                        if chunk.refused and on_error == "fail":
                            raise InputError(_refusal(chunk))
                        part.write(chunk)
                        progress(chunk.num_rows)
                    part.finish()
                except BaseException:
                    part.abort()
                    raise
                if flushed is not None:
                    flushed.result()
                flushed = flushing.submit(part.commit)
                added.append(joining.submit(_add_flushed, joined, flushed, journal.part(number)))
            for done in added:
                done.result()
        except BaseException:
            joining.shutdown(cancel_futures=True)
            raise
        check()
        _list_refused(journal)


def _add_flushed(joined: "Joined", flushed: "Future[None]", part: Path) -> None:
    flushed.result()
    joined.add(part)


class Joined:
    """The output that is being made of parts."""

    def __init__(self, file: BinaryIO, answers: Answers) -> None:
        self._file = file
        self._writer: Any = None
        if answers.ending == ".parquet":
            from pyarrow.parquet import ParquetWriter

            from ovr.runtime.batch.answer_tables import text_columns

            # Dictionaries of probabilities, nearly all of which differ, would take ten times as long as the probabilities.
            self._writer = ParquetWriter(file, answers.schema, use_dictionary=text_columns(answers), compression="snappy")

    def add(self, part: Path) -> None:
        """Add a part: its bytes, or its record batches as row groups."""
        if self._writer is None:
            with part.open("rb") as file:
                shutil.copyfileobj(file, self._file, 1 << 20)
            return
        from pyarrow import OSFile, ipc

        with OSFile(str(part)) as source, ipc.open_file(source) as batches:
            for number in range(batches.num_record_batches):
                self._writer.write_batch(batches.get_batch(number))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()


class OpenPart:
    """A part that is being written: its answers, and the list of its refused rows, if there are any."""

    def __init__(self, journal: Journal, number: int, answers: Answers) -> None:
        self._journal, self._number = journal, number
        self._file = StagedPart(journal.part(number))
        self._refused: StagedPart | None = None
        self._num_rows = self._num_refused = 0
        self._counts = Counter[str]()
        self._writer: Any = None
        if answers.ending == ".parquet":
            from pyarrow import ipc

            self._writer = ipc.new_file(self._file.file, answers.schema)
        self._waiting: list[Any] = []
        self._waiting_bytes = 0
        if number == 0:
            self._file.file.write(answers.head)

    def write(self, chunk: Scored) -> None:
        """Add a chunk; of Parquet, rows wait until they make a row group of some MiB, which is a record batch of the part."""
        for row, where, problem in chunk.refused:
            self._refused = self._refused or StagedPart(self._journal.refused(self._number))
            line = {"row": row, "where": where, "problem": problem}
            self._refused.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        if self._writer is None:
            self._file.file.write(chunk.written)
        else:
            self._waiting.append(chunk.written)
            self._waiting_bytes += chunk.written.nbytes
            if self._waiting_bytes >= ROW_GROUP_BYTES:
                self._write_group()
        self._num_rows += chunk.num_rows
        self._num_refused += len(chunk.refused)
        self._counts.update(chunk.counts)

    def finish(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._write_group()
            self._writer.close()

    def commit(self) -> None:
        """Flush the files to the disk, give them their names, and let the journal tell of them."""
        refused_bytes = 0 if self._refused is None else self._refused.commit()
        self._journal.add(Part(self._num_rows, self._num_refused, self._file.commit(), refused_bytes, dict(self._counts)))

    def abort(self) -> None:
        """Remove what was written."""
        for staged in (self._file, self._refused):
            if staged is not None:
                staged.abort()

    def _write_group(self) -> None:
        from pyarrow import concat_tables

        if self._waiting and self._writer is not None:
            table = concat_tables(self._waiting).combine_chunks()
            self._writer.write_table(table)
            self._waiting.clear()
            self._waiting_bytes = 0


def _list_refused(journal: Journal) -> None:
    listed = refused_list(journal.output)
    if not journal.num_refused:
        listed.unlink(missing_ok=True)
        return
    with staged_file(listed) as file:
        for number, part in enumerate(journal.parts):
            if part.num_refused:
                file.write(journal.refused(number).read_bytes())


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
