"""Columns of Parquet files as cells, without a Python object a cell where that is possible. Needs pyarrow (the extra `data`).

N = rows, D = values of a list
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import InputError
from ovr.input.cells import MISSING, Coded

EXACT_INTEGERS = 1 << 53  # float64 holds whole numbers up to it


@contextmanager
def open_parquet(path: Path, buffer_bytes: int = 0) -> Iterator[Any]:
    """Yield pyarrow's ParquetFile; with `buffer_bytes`, what it reads of a column at a time.

    Raises:
        InputError: pyarrow is not installed; the file is missing, damaged or no Parquet, also where that shows inside the block.
    """
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading Parquet needs pyarrow: pip install 'ovr[data]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=buffer_bytes, pre_buffer=False) as file:
            yield file
    except pyarrow.lib.ArrowInvalid as error:
        raise InputError(f"{path} is not Parquet: {error}") from None


def cells_of(column: Any) -> Any:
    """Return an Arrow array as cells: numbers and times (N,), texts as codes, lists of numbers (N, D), else Python values.

    Whole numbers with missing ones among them become float64 where that holds all of them; what is missing is NaN or NaT.
    """
    import pyarrow.types as types

    kind = column.type
    if types.is_dictionary(kind) or types.is_string(kind) or types.is_large_string(kind):
        return _texts(column)
    if types.is_floating(kind):
        return column.to_numpy(zero_copy_only=False)
    if types.is_integer(kind):
        return _integers(column)
    if types.is_timestamp(kind) and kind.tz is None:
        return column.to_numpy(zero_copy_only=False)
    if types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind):
        return _lists(column)
    return column.to_pylist()


def _texts(column: Any) -> Any:
    import pyarrow.types as types

    coded = column if types.is_dictionary(column.type) else column.dictionary_encode()
    if not (types.is_string(coded.dictionary.type) or types.is_large_string(coded.dictionary.type)):
        return column.to_pylist()
    code_N = coded.indices.fill_null(MISSING).to_numpy(zero_copy_only=False).astype(np.int32)
    values = coded.dictionary.to_pylist()
    return column.to_pylist() if None in values else Coded(code_N, values)


def _integers(column: Any) -> Any:
    if not column.null_count:
        return column.to_numpy(zero_copy_only=False)
    import pyarrow.compute

    limits = pyarrow.compute.min_max(column).as_py()
    if limits["min"] is None or (limits["min"] >= -EXACT_INTEGERS and limits["max"] <= EXACT_INTEGERS):
        return column.cast("float64").to_numpy(zero_copy_only=False)
    return column.to_pylist()


def _lists(column: Any) -> Any:
    """Return lists of numbers that are all there and of one length as (N, D), others as Python lists."""
    import pyarrow.types as types

    number = types.is_floating(column.type.value_type) or types.is_integer(column.type.value_type)
    if not number or column.null_count or not len(column):
        return column.to_pylist()
    values = column.flatten()
    if hasattr(column.type, "list_size"):
        width = column.type.list_size
    else:
        length_N = column.value_lengths().to_numpy(zero_copy_only=False)
        width = int(length_N[0])
        if (length_N != width).any():
            return column.to_pylist()
    flat: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), width)


def plain_cells(cells: Any) -> list[Any]:
    """Return cells as a list of Python values, None for a missing text."""
    if isinstance(cells, Coded):
        values = [*cells.values, None]  # the code of a missing one is -1
        return [values[code] for code in cells.code_N.tolist()]
    return list(cells.tolist() if isinstance(cells, np.ndarray) and cells.dtype.kind != "M" else cells)
