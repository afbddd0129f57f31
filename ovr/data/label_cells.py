"""From what a file says of a row's classes to class ids, and from these to a taxonomy and labels. Knows no format of files.

N = rows, K = heads
"""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.taxonomy import Taxonomy, ancestors, with_parents
from ovr.data.entries import Entries
from ovr.data.labels import Labels
from ovr.errors import DataError

NO_LABEL = ("refuse", "negative", "unknown", "leave_out")
OUTSIDE = ("refuse", "ignore", "leave_out")
Ids = tuple[str, ...] | None  # of one row; () is known to be of no class, None is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRule:
    """How a row's label cell is read.

    Labels lose white space at both ends. With `names_file` they are numbers, and the names are the class ids.
    """

    many: bool  # labels a row: exactly one, or any number
    separator: str | None  # of many labels in one text; None: a list, a text that is one as JSON, or a text that is one label
    names_file: str | None  # one name a line: labels are then numbers of these, from 0
    no_class: Sequence[str]  # labels that say that the row is of no class
    no_label: str  # what a row without a label is: refused, negative or unknown for every class, or left out
    outside: str  # what becomes of a label outside the taxonomy: refused, ignored, or its row left out
    hierarchy: str | None  # separator of ids that are paths, whose parents the taxonomy notes
    add_parents: bool  # whether parents are classes too, and a row of a class is of its ancestors
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.no_class, str):
            raise DataError(f"data.source.rule.no_class is {self.no_class!r}; expected a list, such as [{self.no_class}]")
        for name, value, expected in (("no_label", self.no_label, NO_LABEL), ("outside", self.outside, OUTSIDE)):
            if value not in expected:
                raise DataError(f"data.source.rule.{name} is {value!r}; expected one of {', '.join(expected)}")
        if self.separator == "" or self.hierarchy == "":
            raise DataError("data.source.rule: separator and hierarchy need one or more characters, or null; got an empty text")
        if self.separator is not None and not self.many:
            raise DataError(
                f"data.source.rule.separator={self.separator!r} is for rows with many labels; add data.source.rule.many=true"
            )
        if self.add_parents and (not self.many or self.hierarchy is None):
            raise DataError("data.source.rule.add_parents gives a row several labels: it needs many=true and a hierarchy separator")
        object.__setattr__(self, "names", () if self.names_file is None else _read_names(Path(self.names_file).expanduser()))

    def ids(self, cell: Any, where: str) -> Ids:
        """Return the class ids of one row, each once, in the order given; None where the cell is empty.

        Raises:
            DataError: a label that is no text or whole number; several where one is expected; a number without a name; a text that
                begins like a JSON list and is none.
        """
        cell = self._listed(cell, where)
        ids = [label for part in self._parts(cell, where) if (label := self._id(part, where))]
        if not ids:
            # An empty list says that there is none; nothing at all says nothing.
            return () if self.many and isinstance(cell, list) else None
        if len(ids) > 1 and not self.many:
            raise DataError(f"{where} has {len(ids)} labels, {_shown(ids)}; for many a row set data.source.rule.many=true")
        kept = [label for label in dict.fromkeys(ids) if label not in set(map(str, self.no_class))]
        if self.add_parents:
            kept = list(dict.fromkeys(label for one in kept for label in (*ancestors(one, separator=self.hierarchy or "/"), one)))
        return tuple(kept)

    def taxonomy(self, ids: Sequence[str]) -> Taxonomy:
        """Return the classes of these ids, with parents where ids are paths."""
        if self.hierarchy is None:
            return Taxonomy.from_ids(ids)
        return with_parents(ids, separator=self.hierarchy, add=self.add_parents)

    def _listed(self, cell: Any, where: str) -> Any:
        """Return the list that a text holds as JSON, where texts may; anything else as it is."""
        if self.separator is not None or not isinstance(cell, str) or not cell.lstrip().startswith("["):
            return cell
        try:
            listed = json.loads(cell)
        except (ValueError, RecursionError):
            listed = None
        if self.many and not isinstance(listed, list):
            raise DataError(
                f'{where} has the label {_cut(cell)}, which is no JSON list, such as ["a", "b"]; where it is a text, or several, '
                "set data.source.rule.separator"
            )
        if isinstance(listed, list) and not self.many:
            raise DataError(f"{where} has a JSON list of labels, {_cut(cell)}; for many a row set data.source.rule.many=true")
        return listed if self.many else cell

    def _parts(self, cell: Any, where: str) -> Sequence[Any]:
        if cell is None:
            return ()
        if isinstance(cell, list):
            return cell
        if isinstance(cell, str) and self.separator is not None:
            return cell.split(self.separator)
        return (cell,)

    def _id(self, label: Any, where: str) -> str:
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise DataError(f"{where} has the label {label!r}; expected a text or a whole number")
        text = str(label).strip()
        if not self.names or not text:
            return text
        if not (text.isascii() and text.isdigit() and int(text) < len(self.names)):
            raise DataError(f"{where} has the label {text!r}; expected a number from 0 to {len(self.names) - 1}, with a name each")
        return self.names[int(text)]


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """The rows that stay, ascending, and their labels."""

    kept: NDArray[np.int64]
    labels: Labels


def labels_of(ids_N: Sequence[Ids], taxonomy: Taxonomy, rule: LabelRule, where: Callable[[int], str]) -> LabelledRows:
    """Return the labels of rows whose class ids are given, without those that `rule` leaves out.

    Args:
        where: a function of the row's number that tells file and row.

    Raises:
        DataError: rows without a label or labels outside the taxonomy, where the rule refuses them; no row stays.
    """
    column_of = {class_id: k for k, class_id in enumerate(taxonomy.ids)}
    # Plain numbers, and each different tuple of ids looked up once: there may be millions of rows.
    kept, columns, num_columns, unknown = array("q"), array("i"), array("q"), array("q")
    known: dict[Ids, tuple[list[str], list[int]]] = {}
    outside, empty = Counter[str](), array("q")
    first_outside = -1
    for number, ids in enumerate(ids_N):
        if ids not in known:
            known[ids] = (
                [class_id for class_id in ids or () if class_id not in column_of],
                sorted(column_of[class_id] for class_id in ids or () if class_id in column_of),
            )
        strange, own = known[ids]
        if strange and rule.outside == "refuse":
            outside.update(strange)
            first_outside = number if first_outside < 0 else first_outside
        if ids is None and rule.no_label == "refuse":
            empty.append(number)
        if (strange and rule.outside == "leave_out") or (ids is None and rule.no_label == "leave_out"):
            continue
        kept.append(number)
        columns.extend(own)
        num_columns.append(len(own))
        unknown.append(len(taxonomy) if ids is None and rule.no_label == "unknown" else 0)
    if outside:
        raise DataError(
            f"{where(first_outside)}: labels outside the taxonomy of {len(taxonomy)} classes: {_shown(sorted(outside))} in "
            f"{sum(outside.values())} places; add them to data.source.classes, or set data.source.rule.outside=ignore or leave_out"
        )
    if empty:
        raise DataError(
            f"{where(empty[0])} has no label, nor have {len(empty) - 1} more; set data.source.rule.no_label to negative (known "
            "to be of no class), unknown or leave_out"
        )
    if not kept:
        raise DataError(
            f"{where(0)} and the {len(ids_N) - 1} rows after it are all left out for their labels; expected some to stay"
        )
    every = np.arange(len(taxonomy), dtype=np.int32)
    unknowns = Entries(_starts(unknown), np.tile(every, sum(map(bool, unknown))))
    positives = Entries(_starts(num_columns), np.array(columns, np.int32))
    return LabelledRows(np.array(kept, np.int64), Labels(positives, unknowns, len(taxonomy)))


def class_ids(ids_N: Iterable[Ids]) -> list[str]:
    """Return the sorted different ids of all rows."""
    return sorted({class_id for ids in ids_N for class_id in ids or ()})


def _cut(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as names: {getattr(error, 'strerror', None) or error}") from None
    while names and not names[-1].strip():
        del names[-1]
    names = [name.strip() for name in names]
    wrong = [line for line, name in enumerate(names, start=1) if not name or name in names[: line - 1]]
    if wrong or not names:
        where = f", line {wrong[0]}, holds {names[wrong[0] - 1]!r}" if wrong else " is empty"
        raise DataError(f"{path}{where}; expected one name a line, each once")
    return tuple(names)


def _starts(num_N: "array[int]") -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(num_N, dtype=np.int64)])


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
