"""A CSV file with a header: numeric columns and one column of class ids."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.splits import SPLIT_NAMES, Splits, make_splits, stratified_split
from ovr.errors import DataError


def load_table(
    *,
    path: str | None,
    files: Mapping[str, str | None],
    target: str,
    classes: Sequence[str],
    fractions: Mapping[str, float],
    seed: int,
) -> Splits:
    """Return a table's splits, from one file that is split by `seed` or from one file a split.

    Args:
        path: one CSV, split by `fractions` and stratified by class; or None.
        files: a CSV each for train, val, calib and test; or all None.
        target: the column that holds the class id; every other column is a feature.
        classes: the taxonomy, in column order; when empty, the sorted class ids of the training rows (of all rows with `path`).

    Raises:
        DataError: `classes` is no list; neither or both of `path` and `files`; a missing or empty file; a cell that is not a finite
            number; columns that differ between files; a label outside the taxonomy; and what `make_splits` refuses.
    """
    if isinstance(classes, str):
        raise DataError(f"data.source.classes is {classes!r}; expected a list, such as [{classes}]")
    given = {name: file for name, file in files.items() if file is not None}
    if bool(path) == bool(given) or (given and set(given) != set(SPLIT_NAMES)):
        raise DataError(
            "give either data.path=FILE, or all of data.files.train, .val, .calib and .test; "
            f"got path={path!r} and files for {sorted(given) or 'none'}"
        )
    if path:
        names, x, ids = read_table(Path(path).expanduser(), target=target)
        taxonomy = Taxonomy.from_ids(classes or sorted(set(ids)))
        column_N = _columns(ids, taxonomy, Path(path))
        rows = stratified_split(column_N, fractions, seed=seed)
        parts = {name: (x[r], Labels.from_columns(column_N[r], num_heads=len(taxonomy))) for name, r in rows.items()}
        return make_splits(taxonomy, InputSchema((len(names),), names), parts)
    tables = {name: read_table(Path(given[name]).expanduser(), target=target) for name in SPLIT_NAMES}
    names = tables["train"][0]
    for name, (other, _, _) in tables.items():
        if other != names:
            missing, extra = sorted(set(names) - set(other)), sorted(set(other) - set(names))
            raise DataError(
                f"{given[name]} has {len(other)} feature columns, {given['train']} has {len(names)}; "
                f"missing {missing or 'none'}, extra {extra or 'none'}{'' if missing or extra else ', in another order'}"
            )
    taxonomy = Taxonomy.from_ids(classes or sorted(set(tables["train"][2])))
    return make_splits(
        taxonomy,
        InputSchema((len(names),), names),
        {
            name: (x, Labels.from_columns(_columns(ids, taxonomy, Path(given[name])), num_heads=len(taxonomy)))
            for name, (_, x, ids) in tables.items()
        },
    )


def read_table(path: Path, *, target: str) -> tuple[tuple[str, ...], NDArray[np.float64], list[str]]:
    """Return (feature names, x (N, D), class ids) of a UTF-8 CSV file with a header.

    Raises:
        DataError: the file is missing, empty or has no rows; the header lacks `target`, is ambiguous or has no other column; a row
            has another number of cells; a cell is not a finite number (naming row, counted from 0, and column).
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from None
    while lines and not lines[-1]:  # blank lines are taken at the end only: in between, one may stand for a lost row
        del lines[-1]
    if not lines:
        raise DataError(f"{path} is empty; expected a header and rows")
    header, rows = lines[0], lines[1:]
    if header.count(target) != 1 or len(set(header)) != len(header) or len(header) < 2:
        raise DataError(
            f"{path} has columns {header}; expected distinct names, one of them {target!r} (data.target), and a feature"
        )
    if not rows:
        raise DataError(f"{path} has a header but no rows")
    at = header.index(target)
    names = tuple(header[:at] + header[at + 1 :])
    x = np.empty((len(rows), len(names)))
    ids = []
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise DataError(f"{path}, row {number}: {len(row)} cells; the header has {len(header)}")
        ids.append(row[at])
        for d, cell in enumerate(row[:at] + row[at + 1 :]):
            try:
                x[number, d] = float(cell)
            except ValueError:
                x[number, d] = math.nan
            if not math.isfinite(x[number, d]):
                raise DataError(f"{path}, row {number}, column {names[d]!r} holds {cell!r}; expected a finite number")
    return names, x, ids


def _columns(ids: Sequence[str], taxonomy: Taxonomy, path: Path) -> NDArray[np.int64]:
    column = {class_id: k for k, class_id in enumerate(taxonomy.ids)}
    outside = sorted({class_id for class_id in ids if class_id not in column})
    if outside:
        row = next(n for n, class_id in enumerate(ids) if class_id not in column)
        shown = ", ".join(map(repr, outside[:5])) + (", ..." if len(outside) > 5 else "")
        raise DataError(f"{path}, row {row}: labels outside the taxonomy of {len(taxonomy)} classes: {shown}")
    return np.array([column[class_id] for class_id in ids], dtype=np.int64)
