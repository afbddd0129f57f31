"""Labels in the columns of a table: a class id in a cell, several in one, or a 0/1 column a class. Knows cells, no files.

N = rows, V = different texts of a column, K = heads
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovr.core.taxonomy import Taxonomy
from ovr.data.compact import LIST_SEPARATOR, Columns
from ovr.data.entries import Entries
from ovr.data.labels import Labels
from ovr.errors import DataError
from ovr.input.cells import MISSING, Coded, read_numbers

JSON = "json"  # as a separator: cells are JSON lists of ids; one that begins with no [ is one id
UNLABELLED = ("error", "unknown", "negative")
TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1, "false": 0, "true": 1}


@dataclass(frozen=True, slots=True)
class LabelRule:
    """Where the labels are and how they are written.

    `unlabelled` says what a row is without a label, and a 0/1 cell that is missing: an error, unknown for every class (for the
    class of the cell), or known to be of none.
    """

    target: tuple[str, ...]  # one column of class ids, or with `columns` one of 0 and 1 a class
    columns: bool
    separator: str | None = None  # between the ids of one cell, or `JSON`; None: a cell is one id
    strip: str = ""  # characters to take off the end of an id, such as a full stop
    unlabelled: str = "error"
    marks: tuple[str, ...] = ("",)  # cells of ids that hold no label

    @classmethod
    def of(
        cls, target: str | Sequence[str], *, separator: str | None, strip: str, unlabelled: str, marks: Sequence[str] = ("",)
    ) -> "LabelRule":
        """Return the rule of a configuration, where a list of columns means 0/1 columns, even of one.

        Raises:
            DataError: settings that cannot be used.
        """
        names = (target,) if isinstance(target, str) else tuple(map(str, target))
        if not names or len(set(names)) < len(names):
            raise DataError(f"data.target is {target!r}; expected a column of class ids, or a list of distinct 0/1 columns")
        if unlabelled not in UNLABELLED:
            raise DataError(f"labels.unlabelled is {unlabelled!r}; expected one of {', '.join(UNLABELLED)}")
        if separator is not None and (not isinstance(separator, str) or not separator or not isinstance(target, str)):
            raise DataError(f"labels.separator is {separator!r}; expected characters, with data.target=COLUMN of one column")
        if isinstance(marks, str) or not all(isinstance(mark, str) for mark in marks):
            raise DataError(f"labels.marks is {marks!r}; expected a list of texts, such as ['', '?']")
        return cls(names, not isinstance(target, str), separator, strip, unlabelled, tuple(marks))


def class_ids(columns: Columns, rule: LabelRule) -> list[str]:
    """Return the class ids of all rows: sorted, or in the order of the 0/1 columns."""
    if rule.columns:
        return list(rule.target)
    coded, ids_V = _ids(columns, rule)
    used = np.unique(coded.code_N)
    return sorted({class_id for v in used[used != MISSING] for class_id in ids_V[v]})


def labels_of(columns: Columns, rule: LabelRule, taxonomy: Taxonomy) -> Labels:
    """Return the labels of all rows.

    Raises:
        DataError: a label outside the taxonomy, a row without a label or a 0/1 cell that is neither, naming line or row.
    """
    return _of_columns(columns, rule, taxonomy) if rule.columns else _of_ids(columns, rule, taxonomy)


def _ids(columns: Columns, rule: LabelRule) -> tuple[Coded, list[tuple[str, ...]]]:
    """Return the target's cells and the class ids of each different text."""
    cells = columns.cells[rule.target[0]]
    assert isinstance(cells, Coded)
    ids_V = []
    for text in cells.values:
        if LIST_SEPARATOR in text:
            parts = text.split(LIST_SEPARATOR)
        elif rule.separator in (None, JSON) and text.lstrip().startswith("["):
            parts = _listed(text, columns, rule)
        else:
            parts = [text] if rule.separator is None else text.split(rule.separator)
        ids = [part.strip().rstrip(rule.strip).strip() if rule.strip else part.strip() for part in parts]
        ids_V.append(tuple(dict.fromkeys(class_id for class_id in ids if class_id)))
    return cells, ids_V


def _listed(text: str, columns: Columns, rule: LabelRule) -> list[str]:
    """Return the ids of a cell that begins as a JSON list; where cells are one id, a text that is no list is one."""
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        listed = None
    plain = isinstance(listed, list) and all(isinstance(part, str) or type(part) is int for part in listed)
    if plain and rule.separator == JSON:
        return list(map(str, listed))
    if not plain and rule.separator is None:
        return [text]
    cells = columns.cells[rule.target[0]]
    assert isinstance(cells, Coded)
    rows = np.flatnonzero(cells.code_N == list(cells.values).index(text))
    if not len(rows):  # a text of other rows of the file
        return []
    where = columns.where(int(rows[0]))
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    if plain:
        raise DataError(
            f"{where} has a JSON list of labels, {shown}; for several labels a row set data.source.labels.separator=json, "
            "and where it is one id a separator that no id has"
        )
    raise DataError(f'{where} has the label {shown}, which is no JSON list of texts or whole numbers, such as ["a", "b"]')


def _of_ids(columns: Columns, rule: LabelRule, taxonomy: Taxonomy) -> Labels:
    coded, ids_V = _ids(columns, rule)
    column_of = {class_id: k for k, class_id in enumerate(taxonomy.ids)}
    used_V1 = np.bincount(coded.code_N + 1, minlength=len(ids_V) + 1)[1:] > 0
    outside = sorted({class_id for v in np.flatnonzero(used_V1) for class_id in ids_V[v] if class_id not in column_of})
    if outside:
        strange = np.array([any(class_id not in column_of for class_id in ids) for ids in ids_V] + [False])
        row = int(np.flatnonzero(strange[coded.code_N])[0])
        shown = ", ".join(map(repr, outside[:5])) + (", ..." if len(outside) > 5 else "")
        raise DataError(
            f"{columns.where(row)}: labels outside the taxonomy of {len(taxonomy)} classes: {shown}; leave these rows out, or "
            "name the classes where a command takes classes=[ID,...]"
        )
    columns_V1 = [sorted(column_of[class_id] for class_id in ids if class_id in column_of) for ids in ids_V] + [[]]
    empty_N = np.array([not ids for ids in columns_V1])[coded.code_N]
    if empty_N.any() and rule.unlabelled == "error":
        rows = np.flatnonzero(empty_N)
        raise DataError(
            f"{columns.where(int(rows[0]))} has no label in column {rule.target[0]!r} ({len(rows)} such rows); set "
            "data.source.labels.unlabelled=unknown (nothing is known of the row) or negative (it is of no class)"
        )
    positives = _entries(columns_V1).take(np.where(coded.code_N == MISSING, len(ids_V), coded.code_N).astype(np.int64))
    every = list(range(len(taxonomy)))
    unknown_N = empty_N & (rule.unlabelled == "unknown")
    unknowns = _entries([[], every]).take(unknown_N.astype(np.int64)) if unknown_N.any() else Entries.none(len(empty_N))
    return Labels(positives, unknowns, len(taxonomy))


def _of_columns(columns: Columns, rule: LabelRule, taxonomy: Taxonomy) -> Labels:
    positive_KN = np.zeros((len(taxonomy), len(columns)), bool)
    unknown_KN = np.zeros((len(taxonomy), len(columns)), bool)
    for k, name in enumerate(taxonomy.ids):
        if name not in columns.cells:
            raise DataError(
                f"class {name!r} of data.source.classes is none of the 0/1 columns {', '.join(map(repr, rule.target[:5]))}"
            )
        value_N = _truth(columns, name)
        positive_KN[k] = value_N == 1
        unknown_KN[k] = missing_N = np.isnan(value_N)
        wrong = np.flatnonzero(~missing_N & (value_N != 0) & (value_N != 1))
        if wrong.size:
            raise DataError(f"{columns.where(int(wrong[0]))}, column {name!r} holds {value_N[wrong[0]]:g}; expected 0 or 1")
        if missing_N.any() and rule.unlabelled == "error":
            row = int(np.flatnonzero(missing_N)[0])
            raise DataError(
                f"{columns.where(row)}, column {name!r} holds neither 0 nor 1 ({int(missing_N.sum())} such rows); set "
                "data.source.labels.unlabelled=unknown or negative"
            )
    if rule.unlabelled == "negative":
        unknown_KN[:] = False
    return Labels.from_dense(positive_KN.T, ~unknown_KN.T)


def _truth(columns: Columns, name: str) -> NDArray[np.float64]:
    cells = columns.cells[name]
    if not isinstance(cells, Coded):
        return read_numbers(cells, ())[0]
    strange = [text for text in cells.values if text not in TRUTH]
    if strange:
        row = int(np.flatnonzero(cells.code_N == list(cells.values).index(strange[0]))[0])
        raise DataError(f"{columns.where(row)}, column {name!r} holds {strange[0]!r}; expected 0 or 1")
    return np.array([float(TRUTH[text]) for text in cells.values] + [np.nan])[cells.code_N]


def _entries(columns: Sequence[Sequence[int]]) -> Entries:
    start_N1 = np.concatenate([[0], np.cumsum([len(row) for row in columns])]).astype(np.int64)
    return Entries(start_N1, np.array([column for row in columns for column in row], np.int32))
