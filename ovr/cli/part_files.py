"""Scored chunks as parts of a file, and parts as the file. Knows no model."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from ovr.cli.answers import Answers
from ovr.cli.scoring import Scored
from ovr.core.files import staged_file
from ovr.errors import InputError
from ovr.runtime.batch.parts import Journal, Part, StagedPart

ROW_GROUP_BYTES = 1 << 24  # of Parquet; more rows wait in memory for no longer
MAX_SHOWN = 5  # refused rows that an error tells of


def write_parts(
    journal: Journal, scored: Iterator[Scored], answers: Answers, *, part_rows: int, on_error: str, progress: Callable[[int], Any]
) -> None:
    """Write the chunks as parts that begin every `part_rows` rows, or at the first chunk after that.

    A part is flushed to the disk in a thread, while the next one is made.

    Raises:
        InputError: a row was refused, and `on_error` is "fail"; the parts before it are kept.
    """
    with ThreadPoolExecutor(1, "ovr-flush") as flushing:
        flushed: Future[None] | None = None
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
        if flushed is not None:
            flushed.result()


class OpenPart:
    """A part that is being written: its answers, and the list of its refused rows, if there are any."""

    def __init__(self, journal: Journal, number: int, answers: Answers) -> None:
        self._journal, self._number = journal, number
        self._file = StagedPart(journal.part(number))
        self._refused: StagedPart | None = None
        self._num_rows = self._num_refused = 0
        self._counts = Counter[str]()
        self._writer = _parquet_writer(self._file.file, answers) if answers.ending == ".parquet" else None
        self._waiting: list[Any] = []
        if number == 0:
            self._file.file.write(answers.head)

    def write(self, chunk: Scored) -> None:
        """Add a chunk; of Parquet, rows wait until they make a row group of some MiB."""
        for row, where, problem in chunk.refused:
            self._refused = self._refused or StagedPart(self._journal.refused(self._number))
            line = {"row": row, "where": where, "problem": problem}
            self._refused.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        if self._writer is None:
            self._file.file.write(chunk.written)
        else:
            self._waiting.append(chunk.written)
            if sum(table.nbytes for table in self._waiting) >= ROW_GROUP_BYTES:
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
            table = concat_tables(self._waiting)
            self._writer.write_table(table, row_group_size=max(1, len(table)))
            self._waiting.clear()


def join_parts(journal: Journal, answers: Answers) -> None:
    """Make the output of all parts, and the list of refused rows if there are any, which appears before it."""
    numbers = range(len(journal.parts))
    listed = refused_list(journal.output)
    if journal.num_refused:
        with staged_file(listed) as file:
            _append(file, [journal.refused(number) for number in numbers if journal.refused(number).exists()])
    else:
        listed.unlink(missing_ok=True)
    parts = [journal.part(number) for number in numbers]
    with staged_file(journal.output) as file:
        if answers.ending != ".parquet" or len(parts) == 1:
            _append(file, parts)
        else:
            _append_parquet(file, parts, answers)


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


def _parquet_writer(file: BinaryIO, answers: Answers) -> Any:
    from pyarrow.parquet import ParquetWriter

    from ovr.cli.answer_tables import schema, text_columns

    # Dictionaries of probabilities, nearly all of which differ, would take ten times as long as the probabilities.
    return ParquetWriter(file, schema(answers), use_dictionary=text_columns(answers), compression="snappy")


def _append(file: BinaryIO, paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as part:
            shutil.copyfileobj(part, file, 1 << 20)


def _append_parquet(file: BinaryIO, paths: list[Path], answers: Answers) -> None:
    from ovr.runtime.batch.cells import open_parquet

    with _parquet_writer(file, answers) as writer:
        for path in paths:
            with open_parquet(path) as part:
                for group in range(part.num_row_groups):
                    table = part.read_row_group(group, use_threads=False)
                    writer.write_table(table, row_group_size=len(table))


def counts_of(journal: Journal) -> Mapping[str, int]:
    """Return the sums of what the parts counted."""
    total = Counter[str]()
    for part in journal.parts:
        total.update(part.counts)
    return total
