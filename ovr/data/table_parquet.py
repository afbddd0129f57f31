"""Columns of Parquet files as compact arrays, of the kinds that their types say. Needs pyarrow (the extra `data`).

N = rows, V = different texts of a column, B = rows of a batch, P = rows with a problem
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ovr.data.compact import CHUNK_CELLS, LIST_SEPARATOR, NUMBER, TEXT, TIME, ColumnReader, Columns, Reading, kept_names, left_out
from ovr.errors import DataError
from ovr.input.cells import MISSING, read_numbers, read_times, text_of


def read_parquet(path: Path, reading: Reading) -> Columns:
    """Return the columns of a Parquet file, of the kinds that its types say where `reading` gives none.

    Numbers are float64, times microseconds (of a zone: UTC); texts, truth values ("True") and, of a column with kind text, lists
    of texts are codes of texts.

    Raises:
        DataError: pyarrow is not installed; the file cannot be read or has no rows; a column is not there, is of another type, or
            holds what is not of its given kind.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("Parquet files are read with pyarrow; install it with: pip install 'ovr[data]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            kept = kept_names(path, names, reading)
            columns = {name: ColumnReader(name, reading, path) for name in kept}
            adders = {name: _adder(columns[name], file.schema_arrow.field(name).type) for name in kept}
            num_rows = 0
            for batch in file.iter_batches(batch_size=max(64, CHUNK_CELLS // len(names)), columns=kept, use_threads=False):
                for name, cells in zip(batch.schema.names, batch.columns, strict=True):
                    adders[name](cells)
                num_rows += len(batch)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None
    if not num_rows:
        raise DataError(f"{path} has no rows")
    return Columns(path, {name: columns[name].result() for name in kept}, left_out(names, kept), None)


def _adder(column: ColumnReader, arrow_type: Any) -> Callable[[Any], None]:
    """Return what adds an Arrow array to `column`."""
    import pyarrow
    from pyarrow import types

    def numbers(cells: Any) -> None:
        value_B = cells.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
        infinite_P = np.flatnonzero(np.isinf(value_B))
        if len(infinite_P):
            raise DataError(f"{column.path}, column {column.name!r} holds {value_B[infinite_P[0]]}; expected finite numbers")
        column.add_values(value_B, infinite_P, (), None)

    def times(cells: Any) -> None:
        time_B = cells.cast(pyarrow.timestamp("us")).to_numpy(zero_copy_only=False)
        column.add_values(*read_times(time_B, (), ()), (), None)

    def texts(cells: Any) -> None:
        coded = cells if types.is_dictionary(arrow_type) else cells.dictionary_encode()
        index_B = coded.indices.cast(pyarrow.int64()).fill_null(MISSING).to_numpy(zero_copy_only=False)
        values = [text_of(value) for value in coded.dictionary.to_pylist()]
        if column.kind == TEXT:
            column.add_values_of(values, index_B)
            return
        read = read_numbers if column.kind == NUMBER else lambda cells, marks: read_times(cells, marks, column.formats)
        value_V, bad_V = read([value or "" for value in values], {*column.marks, ""})
        bad_P = np.flatnonzero(np.isin(index_B, bad_V))
        column.add_values(np.append(value_V, np.nan)[index_B], bad_P, [None if i < 0 else values[i] for i in index_B], None)

    def lists(cells: Any) -> None:
        joined = [None if cell is None else LIST_SEPARATOR.join(str(text_of(part)) for part in cell) for cell in cells.to_pylist()]
        column.add_values_of(joined, np.arange(len(joined)))

    is_number = types.is_integer(arrow_type) or types.is_floating(arrow_type) or types.is_decimal(arrow_type)
    is_text = types.is_string(arrow_type) or types.is_large_string(arrow_type) or types.is_boolean(arrow_type)
    if is_number or types.is_null(arrow_type):
        column.kind = column.kind or NUMBER
        if column.kind == TIME:
            raise DataError(f"{column.path}, column {column.name!r} holds {arrow_type}; expected times")
        return numbers if column.kind == NUMBER else texts
    if types.is_timestamp(arrow_type) or types.is_date(arrow_type):
        column.kind = column.kind or TIME
        if column.kind == NUMBER:
            raise DataError(f"{column.path}, column {column.name!r} holds {arrow_type}; expected numbers")
        return times if column.kind == TIME else texts
    if is_text or (types.is_dictionary(arrow_type) and types.is_string(arrow_type.value_type)):
        column.kind = column.kind or TEXT
        return texts
    if column.kind == TEXT and (types.is_list(arrow_type) or types.is_large_list(arrow_type)):
        return lists
    raise DataError(
        f"{column.path}, column {column.name!r} is of type {arrow_type}; expected numbers, texts or times "
        f"(data.source.drop=[{column.name}] leaves it out)"
    )
