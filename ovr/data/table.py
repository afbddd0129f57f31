"""Tables: CSV, TSV and Parquet files of numbers, categories, dates and labels.

The rows are encoded as `ovr.input.table` says, fitted on the training rows; files are read by `ovr.data.compact`.

N = rows, D = numbers of an encoded row
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.taxonomy import with_parents
from ovr.data.cohorts import check_columns, check_names, cohort_of_compact
from ovr.data.compact import NUMBER, TEXT, TIME, Columns, Reading, read_delimited
from ovr.data.delimited import Dialect, delimiter_of
from ovr.data.fitted import Fitted
from ovr.data.labels import Labels
from ovr.data.origin import Origin, source_files
from ovr.data.splits import SPLIT_NAMES, Splits, make_splits
from ovr.data.splitting import SplitRule, split_rows
from ovr.data.table_labels import LabelRule, class_ids, labels_of
from ovr.data.table_lookalikes import warn_of_lookalikes
from ovr.data.table_parquet import read_parquet
from ovr.data.table_rows import TableRows, encoded
from ovr.errors import DataError
from ovr.input.cells import Coded, Compact, cell_at, read_numbers
from ovr.input.columns import DateColumn
from ovr.input.table import TableEncoder
from ovr.input.table_fit import ColumnSettings, TableSettings, fit_table

log = logging.getLogger(__name__)

I64 = NDArray[np.int64]
STORED = {"numeric": NUMBER, "date": TIME, "category": TEXT}
ROW_NUMBER = "the number of the row"
MOSTLY = 9  # numbers for one text, from which the column is not taken for a category unless that is said


def load_table(
    *,
    path: str | None,
    files: Mapping[str, str | None],
    target: str | Sequence[str],
    classes: Sequence[str],
    columns: Mapping[str, Any] | None,
    drop: Sequence[str],
    names: Sequence[str] | None,
    dialect: Mapping[str, Any],
    labels: Mapping[str, Any],
    encoding: Mapping[str, Any],
    split: Mapping[str, Any],
    memory_mib: int,
    max_encoded_bytes: int,
    cohorts: Sequence[str] = (),
    fitted: Fitted | None = None,
) -> Splits:
    """Return a table's splits, from one file or from a file for some of the splits.

    Args:
        path: one file, split by `split`; or None.
        files: a file each for train and any of val, calib and test; the splits without one are parts of the train file.
        target: the column of class ids; or a list of 0/1 columns, each a class.
        classes: the taxonomy, in column order; when empty, the 0/1 columns, or the sorted class ids of the training file.
        columns: the kind (numeric, category, date) or the settings of some columns, if any; of others the training rows show it.
        drop: columns that are no features.
        names: of the columns of a text file without a header.
        dialect: of `Dialect`; a `delimiter` of None goes by the file's name.
        labels: `separator`, `strip`, `unlabelled` and `marks` of `LabelRule`.
        encoding: of `TableSettings`.
        split: of `SplitRule`, for the splits without a file, to which its fractions are scaled; by time without a column is by the
            order of the rows. The column of the split is no feature.
        memory_mib: the columns of files that are larger together are kept in temporary files, which are mapped.
        max_encoded_bytes: rows that would be larger together are encoded when they are asked for.
        cohorts: columns whose cells, as texts, are kept beside the rows; they are features too, unless they are dropped.
        fitted: the model that the rows are read for: its columns are those that are read, as it takes them, and the settings
            `classes`, `columns` and `encoding` do not count.

    Raises:
        DataError: settings that cannot be used; files that cannot be read, or differ in their columns; a cell that is not of its
            column's kind; rows without a label and labels outside the taxonomy; what `make_splits` refuses.
    """
    if isinstance(classes, str):
        raise DataError(f"data.source.classes is {classes!r}; expected a list, such as [{classes}]")
    given = {name: Path(file).expanduser() for name, file in files.items() if file is not None}
    if bool(path) == bool(given) or (given and "train" not in given) or set(given) - set(SPLIT_NAMES):
        raise DataError(
            f"give either data.path=FILE, or data.files.train and any of .val, .calib and .test; got path={path!r} and files for "
            f"{sorted(given) or 'none'}"
        )
    if fitted is not None:
        fitted.check_one_file(list(given), one="data.path=FILE")
        split = {**split, "by": "stratified", "column": None} if fitted.whole else split
    rule = LabelRule.of(target, **labels)
    own = {name: ColumnSettings.of(name, value) for name, value in (columns or {}).items()}
    cohorts = check_names(cohorts)
    no_features = {*rule.target, *([split["column"]] if split["column"] else []), *(name for name in cohorts if name in drop)}
    made: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in encoding.items()}
    settings = TableSettings(**made)
    if not isinstance(memory_mib, int) or isinstance(memory_mib, bool) or memory_mib < 0:
        raise DataError(f"data.source.memory_mib is {memory_mib!r}; expected a whole number of at least 0")
    source = given or {"train": Path(str(path)).expanduser()}
    size_bytes = sum(file.stat().st_size for file in source.values() if file.is_file())
    split_column = split["column"]
    reading = Reading(
        marks=settings.marks,
        drop=[name for name in drop if name not in cohorts],
        kinds=dict.fromkeys(settings.embedded, TEXT)
        | {name: STORED[column.kind] for name, column in own.items() if column.kind}
        | ({} if rule.columns else {rule.target[0]: TEXT})
        | ({split_column: TEXT} if split_column and split["by"] in ("column", "group") else {})
        | {name: TEXT for name in cohorts if name in drop},
        formats={name: column.formats for name, column in own.items() if column.formats is not None},
        date_formats=settings.date_formats,
        names=names,
        decimal=dialect.get("decimal", "."),
        own_marks={} if rule.columns else {rule.target[0]: rule.marks},
        exact=(*rule.target, *([split_column] if split_column else []), *cohorts),
        on_disk=size_bytes > memory_mib << 20,
    )
    _check_columns(rule, drop, own, settings.embedded)
    known = None
    if fitted is not None:
        known = fitted.encoder(TableEncoder, source="data=table")
        reading = _as_fitted(reading, known, rule, drop, cohorts, fitted)
    tables = {"train": _read(source["train"], dialect, reading)}
    train = tables["train"]
    if split_column and split_column not in train.cells:
        raise DataError(f"{train.path} has no column {split_column!r} (data.source.split.column)")
    check_columns(cohorts, list(train.cells), train.path)
    features = [name for name in train.cells if name not in no_features] if known is None else [c.name for c in known.columns]
    if known is not None:
        _check_known(train, known, {*no_features, *cohorts})
    if not features:
        raise DataError(f"{train.path} has no column beside {', '.join(map(repr, sorted(no_features)))}; expected a feature")
    for name in (name for name in SPLIT_NAMES if name in source and name != "train"):
        tables[name] = _read_like(source[name], dialect, reading, train, features, (*rule.target, *cohorts))
        check_columns(cohorts, list(tables[name].cells), source[name])
    taxonomy = with_parents(classes or class_ids(train, rule)) if fitted is None else fitted.taxonomy
    labels_by_file = {name: labels_of(table, rule, taxonomy) for name, table in tables.items()}
    divided = [name for name in SPLIT_NAMES if name not in source or name == "train"]
    whole = fitted is not None and fitted.whole
    split_rule = None if divided == ["train"] or whole else _split_rule(split, divided)
    own_rows = {"test": np.arange(len(train))} if whole else _split(train, labels_by_file["train"], split_rule, divided)
    encoder = known or _fit(
        train,
        features,
        own_rows["train"],
        settings,
        own,
        ignored=(*train.dropped, *sorted(no_features - {*rule.target})),
        decimal=reading.decimal,
    )
    parts, numbers, places, cohorts_of, shown = {}, {}, {}, {}, {}
    total = sum(map(len, own_rows.values())) + sum(len(table) for name, table in tables.items() if name != "train")
    lazy = total * encoder.tensor.size * 4 > max_encoded_bytes
    for name in own_rows if whole else SPLIT_NAMES:
        of_train = name in own_rows
        table, of_table = (train, labels_by_file["train"]) if of_train else (tables[name], labels_by_file[name])
        numbers[name] = row_N = own_rows[name] if of_train else np.arange(len(table))
        places[name] = partial(_place, table, row_N)
        rows = TableRows(encoder, {column.name: table.cells[column.name] for column in encoder.columns}, row_N)
        parts[name] = (encoded(rows, table, name, lazy=lazy), of_table.take(row_N))
        cohorts_of[name] = {column: cohort_of_compact(table.cells[column][row_N]) for column in cohorts}
        if name == "test":
            shown[name] = rows.shown()
    origin = Origin(source_files(source.values()), split_rule, numbers, places, shown)
    return make_splits(taxonomy, encoder.tensor, parts, encoder=encoder, origin=origin, cohorts=cohorts_of, fitted=fitted)


def _place(table: Columns, row_N: I64, row: int) -> str:
    return table.where(int(row_N[row]))


def _as_fitted(
    reading: Reading, encoder: TableEncoder, rule: LabelRule, drop: Sequence[str], cohorts: Sequence[str], fitted: Fitted
) -> Reading:
    """Return how cells are read for a model whose encoder is given."""
    names = [column.name for column in encoder.columns]
    for what, some in (("data.target", rule.target), ("data.source.drop", drop)):
        if wrong := [name for name in some if name in names]:
            raise DataError(f"{what} has the columns {', '.join(map(repr, wrong))}, which the model takes as features")
    if rule.columns:
        fitted.check_classes(rule.target, where="data.target")
    others = {name: kind for name, kind in reading.kinds.items() if name in reading.exact} | dict.fromkeys(cohorts, TEXT)
    return replace(
        reading,
        marks=encoder.marks,
        kinds=others | {column.name: STORED[column.kind] for column in encoder.columns},
        formats={column.name: column.formats for column in encoder.columns if isinstance(column, DateColumn)},
    )


def _check_known(table: Columns, encoder: TableEncoder, no_features: Collection[str]) -> None:
    """Raise DataError if the table has columns that the model does not know."""
    known = {*encoder.ignored, *no_features, *(column.name for column in encoder.columns)}
    if unknown := [name for name in table.cells if name not in known]:
        raise DataError(
            f"{table.path} has columns that the model does not know: {', '.join(map(repr, unknown[:5]))}; leave them out with "
            "data.source.drop"
        )


def _read(path: Path, dialect: Mapping[str, Any], reading: Reading) -> Columns:
    if path.suffix.lower() in (".parquet", ".pq"):
        return read_parquet(path, reading)
    given = dialect["delimiter"]
    return read_delimited(path, Dialect(**{**dialect, "delimiter": delimiter_of(path) if given is None else given}), reading)


def _read_like(
    path: Path, dialect: Mapping[str, Any], reading: Reading, train: Columns, features: Sequence[str], others: Sequence[str]
) -> Columns:
    """Return a file with its columns as those of the train file were read; `others` are columns beside the features."""
    kinds = {name: kind for name, kind in train.kinds().items() if name in features}
    empty = {name for name in features if kinds[name] == NUMBER and np.isnan(np.asarray(train.cells[name])).all()}
    kinds = {name: TEXT if name in empty and name not in reading.kinds else kind for name, kind in kinds.items()}
    kinds |= {name: reading.kinds[name] for name in others if name in reading.kinds and name not in kinds}
    try:
        table = _read(path, dialect, replace(reading, drop=(), kinds=kinds))
    except DataError as error:
        raise DataError(f"{error}; it is read as the train file {train.path} is") from None
    known = {*train.cells, *train.dropped}
    if extra := [name for name in table.cells if name not in known]:
        raise DataError(f"{path} has columns that the train file {train.path} has not: {', '.join(map(repr, extra[:5]))}")
    return table


def _check_columns(rule: LabelRule, drop: Sequence[str], own: Mapping[str, ColumnSettings], embedded: Sequence[str]) -> None:
    for name in rule.target:
        if name in drop or name in own or name in embedded:
            raise DataError(f"column {name!r} is in data.target; it cannot be in data.source.drop, .columns or data.embedded too")
    for name in embedded:
        if name in drop or (name in own and own[name].kind not in (None, "category")):
            raise DataError(f"column {name!r} is in data.embedded; it cannot be dropped or of another kind than category")


def _split_rule(split: Mapping[str, Any], names: Sequence[str]) -> SplitRule:
    """Return the rule for the splits `names`; where others have files, the fractions are scaled to these."""
    shares = {name: split["fractions"].get(name) for name in names}
    if not all(isinstance(share, int | float) and share > 0 for share in shares.values()):
        raise DataError(f"data.source.split.fractions must be positive for {', '.join(names)}, got {dict(split['fractions'])}")
    total = 1 if list(names) == list(SPLIT_NAMES) else sum(shares.values())
    by_order = split["by"] == "time" and split["column"] is None
    column = ROW_NUMBER if by_order else split["column"]
    return SplitRule.of({**split, "column": column, "fractions": {name: share / total for name, share in shares.items()}})


def _split(table: Columns, labels: Labels, rule: SplitRule | None, names: Sequence[str]) -> dict[str, I64]:
    """Return the rows of the splits `names`, which this one file holds."""
    if rule is None:
        return {"train": np.arange(len(table))}
    values = None if rule.column is None else range(len(table)) if rule.column == ROW_NUMBER else _values(table, rule.column)
    try:
        rows = split_rows(rule, labels, values, where=table.where)
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(str(table.path)) else f"{table.path}: {error}") from None
    if set(rows) != set(names):
        raise DataError(f"{table.path}: column {rule.column!r} names the splits {', '.join(rows)}; expected {', '.join(names)}")
    return rows


def _values(table: Columns, column: str) -> Sequence[Any]:
    cells = table.cells[column]
    if isinstance(cells, Coded):
        texts = [*cells.values, None]
        return [texts[code] for code in cells.code_N.tolist()]
    assert isinstance(cells, np.ndarray)  # no column that rows are split by is hashed
    values: list[Any] = cells.tolist()
    return values


def _fit(
    train: Columns,
    features: Sequence[str],
    row_N: I64,
    settings: TableSettings,
    own: Mapping[str, ColumnSettings],
    *,
    ignored: Sequence[str],
    decimal: str,
) -> TableEncoder:
    def cells() -> Iterator[tuple[str, Compact]]:
        for name in features:
            taken = train.cells[name][row_N]
            if isinstance(taken, Coded) and name not in settings.embedded and (name not in own or own[name].kind is None):
                _check_no_typos(name, taken, train, row_N, settings, decimal)
            yield name, taken

    encoder, notes = fit_table(cells(), settings=settings, columns=own, ignored=ignored)
    encoder = replace(encoder, decimal=decimal)
    for name, note in notes.items():
        log.info("column %r is left out: %s", name, note)
    for name in features:
        if name not in settings.embedded and (name not in own or own[name].kind is None):
            warn_of_lookalikes(name, train.cells[name], settings.marks, is_left_out=name in notes)
    kinds = [column.kind for column in encoder.columns]
    log.info(
        "table of %d columns (%s) as %d numbers a row",
        len(kinds),
        ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)),
        encoder.tensor.size,
    )
    return encoder


def _check_no_typos(name: str, cells: Coded, train: Columns, row_N: I64, settings: TableSettings, decimal: str) -> None:
    """Raise DataError for a column of texts that are numbers but for few: they may be mistakes."""
    value_N, bad_P = read_numbers(cells, settings.marks, decimal)
    num_numbers = int(np.isfinite(value_N).sum())
    if num_numbers >= MOSTLY * len(bad_P) > 0:
        where, cell = train.where(int(row_N[bad_P[0]])), cell_at(cells, int(bad_P[0]))
        raise DataError(
            f"{where}, column {name!r} holds {cell!r}, but {num_numbers} training rows hold numbers; correct the {len(bad_P)} "
            "others, add what they hold to data.source.encoding.marks if they are missing, or read the column as text by "
            f"'data.source.columns={{{name}: category}}'"
        )
