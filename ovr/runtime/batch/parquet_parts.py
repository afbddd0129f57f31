"""One Parquet file that is made in parts, each of which outlives the run that made it. Needs pyarrow (the extra `data`).

A part is some row groups and the footer that tells of them. The row groups stand at their final places from the first: each byte is
written once, and nothing is read again but the footers, of which that of the whole file is made at last.
"""

import io
import mmap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ovr.runtime.batch.answer_tables import compression, text_columns, with_statistics

if TYPE_CHECKING:
    from ovr.runtime.batch.answers import Answers

MAGIC = b"PAR1"
ROW_GROUP_BYTES = (1 << 24, 1 << 26)  # at least, at most: so many rows wait in memory
COLUMN_BYTES = 1 << 16  # of a row group, where there are many columns: each takes some 20 us whatever its size
BATCH_ROWS = 1 << 15  # that Arrow writes of a column at a time
LENGTH_BYTES = 4  # of the footer's length, which is followed by MAGIC


class RowGroups:
    """The row groups of a part, written from a place in a file on.

    Args:
        file: what is written, at its end.
        start: where that is: the bytes of all earlier parts, 0 for the first.
    """

    def __init__(self, file: BinaryIO, start: int, answers: "Answers") -> None:
        self._waiting: list[Any] = []
        self._waiting_rows = 0
        self._group_rows = group_rows(answers.schema)
        self._sink = _Sink(None if start else file)
        stream = pa.PythonFile(self._sink, "w")
        self._writer = pq.ParquetWriter(
            stream,
            answers.schema,
            # Dictionaries of probabilities, nearly all of which differ, would take ten times as long as the probabilities.
            use_dictionary=text_columns(answers),
            compression=compression(answers),
            write_statistics=with_statistics(answers),
            write_batch_size=BATCH_ROWS,
            store_schema=False,  # readers get plain texts of what was written as codes
        )
        self._writer.add_key_value_metadata({"ovr.bundle_sha256": answers.card.bundle_sha256})
        if start:
            _pass_over(stream, start - len(MAGIC))
        self._sink.target = file

    def write(self, batch: Any) -> None:
        """Add rows, which wait until they make a row group of some MiB."""
        self._waiting.append(batch)
        self._waiting_rows += len(batch)
        if self._waiting_rows >= self._group_rows:
            self._write_group()

    def finish(self) -> bytes:
        """Write what is left, and return the footer."""
        self._write_group()
        file, tail = self._sink.target, io.BytesIO()
        self._sink.target = tail
        self._writer.close()
        self._sink.target = None
        data = tail.getvalue()
        end = len(data) - len(MAGIC) - LENGTH_BYTES
        end -= int.from_bytes(data[end : end + LENGTH_BYTES], "little")
        assert file is not None
        file.write(data[:end])
        return data[end:]

    def abort(self) -> None:
        """Write nothing more."""
        self._sink.target = None
        self._writer.close()

    def _write_group(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting)
            self._writer.write_table(table, row_group_size=len(table))
            self._waiting.clear()
            self._waiting_rows = 0


def whole_footer(footers: Iterable[bytes]) -> bytes:
    """Return the footer of a file from those of its parts, in order."""
    whole: Any = None
    for footer in footers:
        part = pq.read_metadata(pa.BufferReader(MAGIC + footer))
        if whole is None:
            whole = part
        else:
            whole.append_row_groups(part)
    file = io.BytesIO()
    whole.write_metadata_file(file)
    return file.getvalue()[len(MAGIC) :]


class _Sink:
    """What Arrow writes to, as to a file of Python's; what comes while there is no target is left out."""

    closed = False

    def __init__(self, target: BinaryIO | None) -> None:
        self.target = target

    def write(self, data: Any) -> int:
        if self.target is not None:
            self.target.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        self.closed = True


def group_rows(schema: Any) -> int:
    """Return the least number of rows of a row group that is not the last of its part."""
    least, most = ROW_GROUP_BYTES
    row_bytes = sum(1 if pa.types.is_boolean(kind) else 4 if pa.types.is_float32(kind) else 8 for kind in schema.types)
    return max(1, min(most, max(least, COLUMN_BYTES * len(schema))) // row_bytes)


def _pass_over(stream: Any, num_bytes: int) -> None:
    """Let a stream count bytes that it does not get: Arrow tells of places from where a stream began, and takes no other start."""
    with mmap.mmap(-1, min(num_bytes, 1 << 30), prot=mmap.PROT_READ) as nothing:  # addresses, of which no page is ever touched
        whole = pa.py_buffer(nothing)
        while num_bytes:
            some = whole.slice(0, min(num_bytes, len(nothing)))
            num_bytes -= some.size
            stream.write(some)
            del some
        del whole
