"""Rows in many Parquet files, more than the memory holds: read by row groups, in an order that is random within a buffer of them.

N = rows, B = rows of one split
"""

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.files import canonical_json, sha256_bytes
from ovr.data.features import rows_by_rule, rule_of
from ovr.data.fitted import Fitted
from ovr.data.labels import Labels
from ovr.data.lazy import LazyArray, SomeRows, blocks
from ovr.data.moments import Moments
from ovr.data.origin import Origin
from ovr.data.parquet import ParquetRows
from ovr.data.shards import ParquetShards
from ovr.data.splits import SPLIT_NAMES, Splits, make_splits
from ovr.data.stream_files import StreamFiles
from ovr.errors import DataError


@dataclass(frozen=True, slots=True)
class _TrainShards(SomeRows):
    """Training rows whose moments are kept."""

    kept: StreamFiles
    key: str

    @property
    def moments(self) -> Moments:
        """The moments; all rows are gone through where they are not known yet."""
        return self.kept.moments(self.key, lambda: Moments.of_blocks(self[block] for block in blocks(self)))


def load_stream(
    *,
    files: Mapping[str, str | Sequence[str] | None],
    embedding: str | list[str],
    target: str,
    shape: Sequence[int],
    classes: Sequence[str],
    split: Mapping[str, Any],
    buffer_rows: int,
    cache_dir: str,
    fitted: Fitted | None = None,
) -> Splits:
    """Return the rows of the Parquet files of each split: a path, a pattern such as "train/*.parquet", or a list of such.

    Rows of a split without files come off the training rows by rule, and are copied to `cache_dir`. In memory are the labels of all
    rows, and the values of `buffer_rows` rows, or of the largest row group if that has more. With `fitted` the model's classes
    count in place of `classes`.

    Raises:
        DataError: no file for training; files that cannot be read or differ in their columns; what the values cannot be made into.
    """
    if not isinstance(buffer_rows, int) or isinstance(buffer_rows, bool) or buffer_rows < 1:
        raise DataError(f"data.source.buffer_rows must be a whole number of at least 1, got {buffer_rows!r}")
    given = {name: _files(patterns, name) for name, patterns in files.items() if patterns}
    if "train" not in given:
        raise DataError(f"data=stream takes data.files.train=PATTERN; got files for {', '.join(given) or 'none'}")
    if fitted is not None:
        fitted.check_one_file([name for name in given if name != "train"], one="data.files.train=PATTERN alone")
    kept = StreamFiles(Path(cache_dir).expanduser())
    others = [] if split.get("column") is None else [split["column"]]
    columns = [embedding] if isinstance(embedding, str) else list(embedding)
    parts: dict[str, tuple[LazyArray, Any]] = {}
    shards: dict[str, ParquetShards] = {}
    folders = []
    for name in sorted(given, key=SPLIT_NAMES.index):
        key, groups, named, folder = kept.index(given[name], columns=columns, target=target, others=others)
        folders.append(folder)
        x = shards[name] = ParquetShards(groups, shape=tuple(shape) or (groups.width,), buffer_rows=buffer_rows)
        if name == "train":
            train, train_key = x, key
            taxonomy = named.taxonomy(classes) if fitted is None else fitted.taxonomy
            if fitted is not None:
                fitted.check_numbers(x.schema.columns, source=named.where)
        elif x.schema != train.schema:
            raise DataError(f"{given[name][0]} has rows of {x.schema.to_json()}; {given['train'][0]} has {train.schema.to_json()}")
        parts[name] = (x, named.of(taxonomy))
    if fitted is not None and fitted.whole:
        origin = Origin(tuple(folders), None, {"test": np.arange(len(train))}, {"test": train.place})
        return make_splits(taxonomy, fitted.input, {"test": parts["train"]}, origin=origin, fitted=fitted)
    labels: Labels = parts["train"][1]
    rows = {name: np.arange(len(x)) for name, (x, _) in parts.items()}
    rule, missing = None, [name for name in SPLIT_NAMES if name not in parts]
    train_key = sha256_bytes(canonical_json([train_key, list(shape), missing, dict(split) if missing else {}]))
    if missing:
        rule, names = rule_of(split, ["train", *missing]), ["train", *missing]
        rows |= kept.rows(train_key, partial(rows_by_rule, rule, labels, names, partial(_cells, given["train"])))
        held_out = {name: rows[name] for name in missing}
        for name, copy in kept.copies(train_key, train, held_out, block_rows=train.locality.buffer_rows).items():
            parts[name] = (copy, labels.take(rows[name]))
        labels = labels.take(rows["train"])
    parts["train"] = (_TrainShards(train, rows["train"], kept, train_key), labels)
    where = {name: _places(shards.get(name, train), row_B) for name, row_B in rows.items()}
    return make_splits(taxonomy, train.schema, parts, origin=Origin(tuple(folders), rule, rows, where), fitted=fitted)


def _places(x: ParquetShards, number_B: NDArray[np.int64]) -> Callable[[int], str]:
    return lambda row: x.place(int(number_B[row]))


def _cells(files: Sequence[Path], column: str) -> list[Any]:
    """Return the values of a column of all files."""
    cells = []
    for path in files:
        file = ParquetRows(path, ())
        cells += file.values(column)
        file.close()
    return cells


def _files(patterns: str | Sequence[str], name: str) -> list[Path]:
    """Return the files of a split, in the order of the patterns and, for one pattern, by name."""
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        here = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        if not here:
            raise DataError(f"data.files.{name}: there is no file {pattern}")
        found += map(Path, here)
    if len(set(found)) < len(found):
        raise DataError(f"data.files.{name} names a file twice")
    return found
