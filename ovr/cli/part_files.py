"""Scored chunks as parts of a file, and parts as the file. Knows no model."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from ovr.cli.answers import Answers
from ovr.cli.scoring import Scored
from ovr.core.files import staged_file
from ovr.errors import InputError
from ovr.runtime.batch.parts import Journal, Part

ROW_GROUP_BYTES = 1 << 24  # of Parquet; more rows wait in memory for no longer
MAX_SHOWN = 5  # refused rows that an error tells of


def write_parts(
    journal: Journal, scored: Iterator[Scored], answers: Answers, *, part_rows: int, on_error: str, progress: Callable[[int], Any]
) -> None:
    """Write the chunks as parts that begin every `part_rows` rows, or at the first chunk after that.

    Raises:
        InputError: a row was refused, and `on_error` is "fail"; the parts before it are kept.
    """
    for _, chunks in groupby(scored, lambda chunk: chunk.first // part_rows):
        number = len(journal.parts)
        num_rows, num_refused, counts = 0, 0, Counter[str]()
        with ExitStack() as stack:
            refused = None
            write = stack.enter_context(_writer(journal.part(number), answers, with_head=number == 0))
            for chunk in chunks:
                if chunk.refused and on_error == "fail":
                    raise InputError(_refusal(chunk))
                if chunk.refused and refused is None:
                    refused = stack.enter_context(staged_file(journal.refused(number)))
                for row, where, problem in chunk.refused:
                    line = {"row": row, "where": where, "problem": problem}
                    assert refused is not None
                    refused.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                write(chunk.written)
                num_rows += chunk.num_rows
                num_refused += len(chunk.refused)
                counts.update(chunk.counts)
                progress(chunk.num_rows)
        size, refused_size = (
            path.stat().st_size if path.exists() else 0 for path in (journal.part(number), journal.refused(number))
        )
        journal.add(Part(num_rows, num_refused, size, refused_size, dict(counts)))


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


@contextmanager
def _writer(path: Path, answers: Answers, *, with_head: bool) -> Iterator[Callable[[Any], None]]:
    """Yield what adds a chunk to a part, which appears when the block ends."""
    with staged_file(path) as file:
        if answers.ending == ".parquet":
            with _parquet_writer(file, answers) as writer:
                yield from _by_groups(writer)
            return
        if with_head:
            file.write(answers.head)

        def write(data: bytes) -> None:
            file.write(data)

        yield write


def _by_groups(writer: Any) -> Iterator[Callable[[Any], None]]:
    """Yield what adds tables to a Parquet file, in row groups of some MiB."""
    from pyarrow import concat_tables

    waiting: list[Any] = []

    def flush() -> None:
        if waiting:
            table = concat_tables(waiting)
            writer.write_table(table, row_group_size=len(table))
            waiting.clear()

    def write(table: Any) -> None:
        waiting.append(table)
        if sum(table.nbytes for table in waiting) >= ROW_GROUP_BYTES:
            flush()

    yield write
    flush()


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
