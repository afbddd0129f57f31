"""Labels by class id, before there is a taxonomy: what arrays, lists and columns of labels hold. Knows ids, not the rows.

N = rows, K = columns of a matrix, P = positives
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.taxonomy import Taxonomy, with_parents
from ovr.data.entries import Entries
from ovr.data.labels import Labels
from ovr.errors import DataError

I64 = NDArray[np.int64]
BLOCK_ROWS = 1 << 14  # of a matrix at a time


@dataclass(frozen=True, slots=True)
class NamedLabels:
    """Labels whose column c is the class `ids[c]`. `numbers`: the ids are whole numbers, and are sorted as such."""

    labels: Labels
    ids: tuple[str, ...]
    where: str  # how messages call what the rows are in
    numbers: bool

    def __len__(self) -> int:
        return len(self.labels)

    def taxonomy(self, classes: Sequence[str]) -> Taxonomy:
        """Return the taxonomy of `classes` in this order or, if there are none, of all ids, sorted; "a/b" has the parent "a"."""
        if classes:
            return with_parents(classes)
        ids = sorted(self.ids)
        if self.numbers:
            ids.sort(key=int)
        return with_parents(ids)

    def of(self, taxonomy: Taxonomy) -> Labels:
        """Return the labels with the columns of `taxonomy`.

        Raises:
            DataError: a label that is not one of its classes.
        """
        known = {class_id: column for column, class_id in enumerate(taxonomy.ids)}
        column_of = np.array([known.get(class_id, -1) for class_id in self.ids], dtype=np.int64)
        entries = []
        for old in (self.labels.positives, self.labels.unknowns):
            column_P = column_of[old.column_P]
            if (column_P < 0).any():
                outside = np.flatnonzero(column_of < 0)
                first = int(np.flatnonzero(column_P < 0)[0])
                shown = ", ".join(repr(self.ids[column]) for column in outside[:5]) + (", ..." if len(outside) > 5 else "")
                raise DataError(
                    f"{self.where}, row {old.row_P[first]}: labels outside the taxonomy of {len(taxonomy)} classes: {shown}"
                )
            order_P = np.lexsort((column_P, old.row_P))
            entries.append(Entries(old.start_N1, column_P[order_P].astype(np.int32)))
        return Labels(entries[0], entries[1], len(taxonomy))

    def take(self, row_B: I64) -> "NamedLabels":
        """Return the labels of some rows."""
        return replace(self, labels=self.labels.take(row_B))


class LabelReader:
    """Takes the labels of one row after the other, as they are read: memory for the positives and one text for each id."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.column_of: dict[str | int, int] = {}
        self.num_per_row: list[I64] = []
        self.column: list[NDArray[np.int32]] = []
        self.num_rows = 0

    def add(self, values: Sequence[Any], num_per_row: Sequence[int] | I64, index_P: I64 | None = None) -> None:
        """Add rows: how many labels each has, and the labels, row after row: `values`, or `values[index_P]` with -1 for none.

        Raises:
            DataError: a label that is neither text nor a whole number, or is there twice in one row.
        """
        num_B = np.asarray(num_per_row, dtype=np.int64)
        column = np.fromiter((self._column(value) for value in values), dtype=np.int32, count=len(values))
        if index_P is not None:
            column = np.append(column, np.int32(-1))[index_P]
        row_P = np.repeat(np.arange(len(num_B)), num_B)
        wrong = np.flatnonzero(column < 0)
        if wrong.size:
            raise DataError(
                f"{self.where}, row {self.num_rows + row_P[wrong[0]]}: a label is missing or is neither text nor a whole number"
            )
        order_P = np.lexsort((column, row_P))
        column, row_P = column[order_P], row_P[order_P]
        twice = np.flatnonzero((np.diff(column) == 0) & (np.diff(row_P) == 0))
        if twice.size:
            value = list(self.column_of)[column[twice[0]]]
            raise DataError(f"{self.where}, row {self.num_rows + row_P[twice[0]]}: label {value!r} is there twice")
        self.num_per_row.append(num_B)
        self.column.append(column)
        self.num_rows += len(num_B)

    def result(self) -> NamedLabels:
        """Return the labels of all rows that were added.

        Raises:
            DataError: there is no label at all; some are texts and some are numbers.
        """
        numbers = {isinstance(value, int) for value in self.column_of}
        if len(numbers) != 1:
            raise DataError(f"{self.where} holds {'texts and numbers as labels; expected one kind' if numbers else 'no label'}")
        start_N1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(self.num_per_row))])
        labels = Labels(Entries(start_N1, np.concatenate(self.column)), Entries.none(self.num_rows), len(self.column_of))
        return NamedLabels(labels, tuple(map(str, self.column_of)), self.where, numbers == {True})

    def _column(self, value: Any) -> int:
        """Return the column of a label, -1 for what is none."""
        if isinstance(value, bool | np.bool_) or not isinstance(value, str | int | np.integer) or value == "":
            return -1
        key = int(value) if isinstance(value, np.integer) else value
        return self.column_of.setdefault(key, len(self.column_of))


def labels_of_array(array: NDArray[Any], *, classes: Sequence[str], label_numbers: str, where: str) -> NamedLabels:
    """Return the labels in an array (N,) of one class a row, text or a whole number, or in a matrix (N, K) of 0, 1 and -1, which is
    unknown; column k of the matrix is `classes[k]`, or the class "k".

    `label_numbers` says what whole numbers (N,) are: "ids" (7 is the class "7") or "columns" (7 is `classes[7]`).

    Raises:
        DataError: another shape or type, other values in a matrix, not a column for each class, a number that is no column.
    """
    if array.ndim == 2:
        return _labels_of_matrix(array, classes=classes, where=where)
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise DataError(
            f"{where} holds labels of shape {array.shape} and dtype {array.dtype}; expected (rows,) of whole numbers or texts, "
            "or a matrix (rows, classes) of 0 and 1"
        )
    if label_numbers == "columns" and array.dtype.kind in "iu":
        outside = np.flatnonzero((array < 0) | (array >= len(classes)))
        if outside.size:
            raise DataError(
                f"{where}, row {outside[0]} has label {array[outside[0]]}; expected a column of the {len(classes)} classes in "
                f"data.source.classes, 0 to {len(classes) - 1}" + ("" if classes else ", which are not given")
            )
        return NamedLabels(Labels.from_columns(array, num_heads=len(classes)), tuple(classes), where, False)
    value_of, column_N = np.unique(array, return_inverse=True)
    ids = tuple(map(str, value_of.tolist()))
    if "" in ids:
        raise DataError(f"{where}, row {int(np.flatnonzero(array == '')[0])}: the label is empty")
    return NamedLabels(Labels.from_columns(column_N, num_heads=len(ids)), ids, where, array.dtype.kind in "iu")


def labels_of_lines(path: Path) -> NamedLabels:
    """Return the labels in a file of JSON lines, each a list of class ids; an empty list is a row without a positive.

    Raises:
        DataError: the file cannot be read; a line that is no list of texts or whole numbers, naming it.
    """
    reader = LabelReader(str(path))
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file):
                try:
                    values = json.loads(line)
                except (ValueError, RecursionError):
                    values = None
                if not isinstance(values, list):
                    raise DataError(
                        f'{path}, row {number}: {line.strip()[:80]!r} is no JSON list of labels, such as ["a", "b"] or []'
                    )
                reader.add(values, [len(values)])
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as JSON lines: {getattr(error, 'strerror', None) or error}") from None
    return reader.result()


def _labels_of_matrix(array: NDArray[Any], *, classes: Sequence[str], where: str) -> NamedLabels:
    num_columns = array.shape[1]
    if classes and len(classes) != num_columns:
        raise DataError(f"{where} has {num_columns} columns of labels; data.source.classes names {len(classes)}")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} is a matrix of dtype {array.dtype}; expected 0, 1 and, where it is not known, -1")
    parts: list[list[NDArray[Any]]] = [[], []]
    for start in range(0, len(array), BLOCK_ROWS):
        block = np.asarray(array[start : start + BLOCK_ROWS])
        wrong = ~np.isin(block, (0, 1) if block.dtype.kind in "bu" else (0, 1, -1))
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            raise DataError(
                f"{where}, row {start + row}, column {column} holds {block[row, column]}; expected 0, 1 or -1 (unknown)"
            )
        for value, part in zip((1, -1), parts, strict=True):
            flag = block == value if value == 1 or block.dtype.kind in "if" else np.zeros(block.shape, bool)
            part.append(flag.sum(axis=1))
            part.append(np.nonzero(flag)[1].astype(np.int32))
    entries = [
        Entries(np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(part[::2]))]), np.concatenate(part[1::2]))
        if part
        else Entries.none(0)
        for part in parts
    ]
    ids = tuple(classes) or tuple(map(str, range(num_columns)))
    return NamedLabels(Labels(entries[0], entries[1], num_columns), ids, where, not classes)
