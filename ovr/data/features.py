"""Embeddings that exist already: npy (memory-mapped), npz or Parquet, with labels beside them or in the same file.

N = rows, K = classes
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.packed import check_arrays
from ovr.core.schema import InputSchema, check_rows
from ovr.data.cohorts import check_columns, check_names, cohort_of_cells, take
from ovr.data.fitted import Fitted
from ovr.data.labels import Labels
from ovr.data.lazy import ArrayRows, LazyArray, SomeRows, in_memory
from ovr.data.named_labels import LabelReader, NamedLabels, labels_of_array, labels_of_lines
from ovr.data.origin import Origin, places_in, source_files
from ovr.data.parquet import ParquetRows, read_parquet
from ovr.data.splits import SPLIT_NAMES, Splits, make_splits
from ovr.data.splitting import SplitRule, split_rows
from ovr.errors import DataError, InputError

X = NDArray[Any] | LazyArray
KINDS = (".npy", ".npz", ".parquet")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where rows and labels are, and how they are called there."""

    embedding: str | list[str]
    target: str
    classes: Sequence[str]
    label_numbers: str
    others: tuple[str, ...]  # columns of a Parquet that are neither


def load_features(
    *,
    path: str | None,
    labels: str | None,
    files: Mapping[str, str | None],
    label_files: Mapping[str, str | None],
    embedding: str | list[str],
    target: str,
    classes: Sequence[str],
    label_numbers: str,
    split: Mapping[str, Any],
    cohorts: Sequence[str] = (),
    fitted: Fitted | None = None,
) -> Splits:
    """Return the rows of `path`, split by rule, or of a file for each split; a split without one is split off the training file.

    An npy file stays on the disk, and a row is read when it is asked for; npz and Parquet are read into memory. Values of 16 and 64
    bits become float32. Labels are in `labels` or `label_files` (npy, npz, Parquet or JSON lines), or where these are not given in
    the file of the rows: the array `target` of an npz, the column `target` of a Parquet. `cohorts` names arrays (rows,) of the npz,
    or columns of the Parquet, whose cells are kept beside the rows, as texts. With `fitted` the model's classes count in
    place of `classes`.

    Raises:
        DataError: neither or both of `path` and `files`; a file that cannot be read; rows that differ in shape from the training
            rows, or in number from their labels; labels outside the taxonomy; a rule that cannot be followed.
    """
    if label_numbers not in ("ids", "columns"):
        raise DataError(f"label_numbers is {label_numbers!r}; expected 'ids' (7 is the class \"7\") or 'columns' (7 is classes[7])")
    given = {name: file for name, file in files.items() if file is not None}
    if (path is None) == (not given) or (given and "train" not in given):
        raise DataError(
            "data=features takes data.path=FILE, or data.files.train=FILE and files for other splits; "
            f"got path={path!r} and files for {', '.join(given) or 'none'}"
        )
    cohorts = check_names(cohorts)
    others = (*cohorts, *(() if split.get("column") is None else (split["column"],)))
    if fitted is not None:
        fitted.check_one_file(list(given), one="data.path=FILE")
        classes = fitted.taxonomy.ids
    source = _Source(embedding, target, classes, label_numbers, others)
    read = (
        {"train": _read(path, labels, source)}
        if path is not None
        else {name: _read(file, label_files.get(name), source) for name, file in given.items()}
    )
    columns, x, named = read["train"]
    schema = InputSchema(tuple(x.shape[1:]), columns)
    for name, (other_columns, other, _) in read.items():
        if (other.shape[1:], other_columns) != (x.shape[1:], columns):
            raise DataError(
                f"{given[name]} has rows of shape {tuple(other.shape[1:])}{_named(other_columns)}; "
                f"{given['train']} has {schema.shape}{_named(columns)}"
            )
    if fitted is not None:
        fitted.check_numbers(columns, source=named.where)
        schema = fitted.input
    taxonomy = named.taxonomy(classes) if fitted is None else fitted.taxonomy
    parts = {name: (other, other_named.of(taxonomy)) for name, (_, other, other_named) in read.items()}
    numbers = {name: np.arange(len(x)) for name, (_, x, _) in read.items()}
    whole = {name: _cohorts(Path(given.get(name) or str(path)).expanduser(), cohorts, len(parts[name][0])) for name in read}
    rule = None
    if fitted is not None and fitted.whole:
        parts, numbers = {"test": parts["train"]}, {"test": numbers["train"]}
    elif missing := [name for name in SPLIT_NAMES if name not in parts]:
        rule = rule_of(split, ["train", *missing])
        file = Path(given["train"] if path is None else path).expanduser()
        rows = rows_by_rule(rule, parts["train"][1], ["train", *missing], partial(_cells, file))
        parts |= {name: (_some(x, row_B), parts["train"][1].take(row_B)) for name, row_B in rows.items()}
        numbers |= rows
    read_files = source_files([path, labels, *given.values(), *(label_files.get(name) for name in given)])
    cohorts_of = {name: take(whole[name if name in whole else "train"], row_N) for name, row_N in numbers.items()}
    file_of = {name: Path(given.get(name) or given.get("train") or str(path)).expanduser() for name in numbers}
    where = {name: places_in(file_of[name], row_N) for name, row_N in numbers.items()}
    return make_splits(taxonomy, schema, parts, origin=Origin(read_files, rule, numbers, where), cohorts=cohorts_of, fitted=fitted)


def rule_of(split: Mapping[str, Any], names: Sequence[str]) -> SplitRule:
    """Return the rule that divides rows into the splits `names`, to which its fractions are scaled.

    Raises:
        DataError: settings that are no rule for these splits.
    """
    if split.get("by") == "file":
        raise DataError("data.source.split.by=file: where each split has files of its own, name them in data.files")
    fractions = split.get("fractions") or {}
    if lacking := [name for name in names if not isinstance(fractions.get(name), int | float)]:
        raise DataError(f"data.source.split.fractions has no share for {', '.join(lacking)}, got {dict(fractions)}")
    total = sum(fractions[name] for name in names)
    return SplitRule.of({**split, "fractions": {name: fractions[name] / total for name in names} if total > 0 else fractions})


def rows_by_rule(
    rule: SplitRule, labels: Labels, names: Sequence[str], values: Callable[[str], Sequence[Any]]
) -> dict[str, NDArray[np.int64]]:
    """Return the rows of the splits `names`; `values` gives the cells of a column, one a row.

    Raises:
        DataError: the rule cannot be followed, or gives other splits.
    """
    rows = split_rows(rule, labels, None if rule.column is None else values(rule.column))
    if set(rows) != set(names):
        raise DataError(f"column {rule.column!r} gives rows of {', '.join(rows)}; expected {', '.join(names)}, which have no files")
    return rows


def _read(path: str, labels: str | None, source: _Source) -> tuple[tuple[str, ...], X, NamedLabels]:
    """Return (names of columns, rows, labels) of one file of rows."""
    file = Path(path).expanduser()
    if file.suffix not in KINDS:
        raise DataError(f"{file} is of another kind than {', '.join(KINDS)}")
    if file.suffix == ".npy" and labels is None:
        raise DataError(f"{file} holds rows alone; give their labels as data.labels, or as data.label_files of the split")
    columns: tuple[str, ...] = ()
    x: X
    if file.suffix == ".parquet":
        named_columns = [source.embedding] if isinstance(source.embedding, str) else source.embedding
        others = source.others if labels is not None else (source.target, *source.others)
        x, columns = read_parquet(file, columns=named_columns, others=others)
    else:
        x = _array(file, _one_name(source.embedding) if file.suffix == ".npz" else None)
    if isinstance(x, np.ndarray):
        x = _checked(x, file, columns)
    named = _labels(file if labels is None else Path(labels).expanduser(), source)
    if len(x) != len(named):
        raise DataError(f"{file} has {len(x)} rows, and {named.where} has labels of {len(named)}; expected one for each row")
    return columns, x, named


def _checked(x: NDArray[Any], file: Path, columns: tuple[str, ...]) -> X:
    """Return the rows as float32, or as rows that are read from the file when they are asked for."""
    if x.ndim < 2 or 0 in x.shape or x.dtype.kind not in "fiu":
        raise DataError(f"{file} holds an array of shape {x.shape} and dtype {x.dtype}; expected numbers of shape (rows, values)")
    if not in_memory(x):
        return ArrayRows(x, name=str(file))
    try:
        return check_rows(x, InputSchema(x.shape[1:], columns))
    except InputError as error:
        raise DataError(f"{file}: {error}") from None


def _labels(file: Path, source: _Source) -> NamedLabels:
    if file.suffix == ".jsonl":
        return labels_of_lines(file)
    if file.suffix == ".parquet":
        reader = LabelReader(str(file))
        ParquetRows(file, ()).add_labels(reader, source.target)
        return reader.result()
    if file.suffix not in (".npy", ".npz"):
        raise DataError(f"{file} is of another kind of labels than .npy, .npz, .jsonl or .parquet")
    array = _array(file, source.target if file.suffix == ".npz" else None)
    return labels_of_array(array, classes=source.classes, label_numbers=source.label_numbers, where=str(file))


def _cells(file: Path, column: str) -> Sequence[Any]:
    """Return the values that rows are split by."""
    if file.suffix == ".parquet":
        return ParquetRows(file, ()).values(column)
    if file.suffix == ".npz":
        cells: list[Any] = _array(file, column).tolist()
        return cells
    raise DataError(f"{file} has no column {column!r} to split by; expected split.by=stratified, a Parquet or an npz file")


def _cohorts(file: Path, columns: Sequence[str], num_rows: int) -> dict[str, NDArray[np.str_]]:
    """Return the cohorts of all rows of a file."""
    if not columns:
        return {}
    cells: dict[str, Sequence[Any]]
    if file.suffix == ".parquet":
        rows = ParquetRows(file, ())
        check_columns(columns, rows.file.schema_arrow.names, file)
        cells = {name: rows.values(name) for name in columns}
    elif file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:  # it was read before
            check_columns(columns, arrays.files, file)
        array_of = {name: _array(file, name) for name in columns}
        if wrong := [name for name, array in array_of.items() if array.shape != (num_rows,)]:
            raise DataError(
                f"{file}: array {wrong[0]!r} of data.source.cohorts has shape {array_of[wrong[0]].shape}; expected ({num_rows},)"
            )
        cells = {name: array.tolist() for name, array in array_of.items()}
    else:
        raise DataError(f"{file} has no column {columns[0]!r} (data.source.cohorts); expected a Parquet or an npz file")
    return {name: cohort_of_cells(column, name, lambda row: f"{file}, row {row}") for name, column in cells.items()}


def _array(file: Path, name: str | None) -> NDArray[Any]:
    """Return the memory-mapped array of an npy file, or the array `name` of an npz file."""
    try:
        with file.open("rb") as content:
            is_zip = content.read(2) == b"PK"
            if is_zip == (name is None):
                raise DataError(f"{file} is an {'npz' if is_zip else 'npy'} file, or none, whatever its name says")
            if name is None:
                array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
                return array
            content.seek(0)
            check_arrays(file, compressed=True)
            with np.load(content, allow_pickle=False) as arrays:
                if name not in arrays.files:
                    raise DataError(f"{file} has arrays {', '.join(arrays.files) or 'none'}; expected one named {name!r}")
                return np.asarray(arrays[name])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as an array: {getattr(error, 'strerror', None) or error}") from None


def _one_name(embedding: str | list[str]) -> str:
    if not isinstance(embedding, str):
        raise DataError(f"data.embedding is {embedding}; expected the name of one array of an npz file")
    return embedding


def _some(x: X, row_B: NDArray[np.int64]) -> X:
    return x[row_B] if isinstance(x, np.ndarray) else SomeRows(x, row_B)


def _named(columns: tuple[str, ...]) -> str:
    return f" named {', '.join(columns[:5])}{', ...' if len(columns) > 5 else ''}" if columns else ""
