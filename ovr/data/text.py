"""Texts with one label or many a row, from CSV, TSV, JSON or JSON lines files. Knows no encoder but the one it is given.

N = rows
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.data.cohorts import check_columns, check_names, cohort_of_cells
from ovr.data.delimited import Dialect, delimiter_of, read_header, read_rows
from ovr.data.fitted import Fitted
from ovr.data.json_rows import Record, read_json, read_json_lines
from ovr.data.label_cells import LabelRule, class_ids, labels_of
from ovr.data.labels import Labels
from ovr.data.lazy import RowNumbers
from ovr.data.origin import Origin, source_files
from ovr.data.splits import SPLIT_NAMES, Splits, make_splits
from ovr.data.splitting import SplitRule, split_rows
from ovr.data.text_rows import TextRows
from ovr.errors import DataError
from ovr.input.encoder import Encoder
from ovr.input.joined import JoinedTexts
from ovr.input.text import HashedText
from ovr.input.tokens import Tokens
from ovr.runtime.record_files import TEXT_COLUMN

log = logging.getLogger(__name__)

FORMATS = {".csv": "delimited", ".tsv": "delimited", ".tab": "delimited", ".gz": "delimited", ".json": "json"}
FORMATS |= {".jsonl": "jsonl", ".ndjson": "jsonl"}
Files = str | Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFiles:
    """How rows are read from files, and in which columns text and label stand. Several texts a row are joined by `joiner`."""

    text: str | int | Sequence[str | int]
    joiner: str
    label: str | int
    format: str | None  # delimited, json or jsonl; None: by the file's ending
    encoding: str
    delimiter: str | None  # None: by the file's ending
    quoting: str
    header: bool
    skip_lines: int
    names: Sequence[str] | None  # of the columns of a file without a header; None: "0", "1", ...

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS.values():
            raise DataError(f"data.source.reader.format is {self.format!r}; expected delimited, json, jsonl or null")
        if isinstance(self.names, str):
            raise DataError(f"data.source.reader.names is {self.names!r}; expected a list, such as [{self.names}]")

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that make a text."""
        return tuple(map(str, [self.text] if isinstance(self.text, str | int) else self.text))

    def rows(
        self, path: Path, keys: Sequence[str] | None, column: str | None, cohorts: Sequence[str] = ()
    ) -> Iterator[tuple[str, str, Any, Any, list[Any]]]:
        """Yield (file and row, text, label cell, cell of `column`, cells of `cohorts`) of each row.

        Raises:
            DataError: what the readers refuse; a missing column; a text that is none.
        """
        text_columns = self.text_columns
        label_column = str(self.label)
        for where, record in self._records(path, keys):
            check_columns(cohorts, list(record), where)
            if absent := [name for name in (*text_columns, label_column, *([column] if column else [])) if name not in record]:
                raise DataError(
                    f"{where} has no column {', '.join(map(repr, absent))}; it has {', '.join(map(repr, list(record)[:8]))} "
                    "(data.text, data.label and split.column name the columns)"
                )
            cells = [record[name] for name in text_columns]
            for name, cell in zip(text_columns, cells, strict=True):
                if not isinstance(cell, str):
                    raise DataError(f"{where}, column {name!r} holds {cell!r}; expected a text")
            more = [record[name] for name in cohorts]
            yield where, self.joiner.join(cells), record[label_column], record[column] if column else None, more

    def _records(self, path: Path, keys: Sequence[str] | None) -> Iterator[tuple[str, Record]]:
        kind = FORMATS.get(path.suffix.lower()) if self.format is None else self.format
        if kind is None and not path.is_file():
            raise DataError(f"{path} cannot be read: {'it is a folder' if path.is_dir() else 'there is no such file'}")
        if kind is None:
            raise DataError(
                f"{path} ends in none of {', '.join(FORMATS)}; set data.source.reader.format to delimited, json or jsonl"
            )
        if keys is not None and kind != "json":
            raise DataError(f"data.source.keys is for lists within a JSON file; {path} is {kind}")
        if kind == "json":
            yield from read_json(path, keys=keys, encoding=self.encoding)
        elif kind == "jsonl":
            yield from read_json_lines(path, encoding=self.encoding)
        else:
            dialect = Dialect(
                delimiter=self.delimiter or delimiter_of(path, key="data.source.reader.delimiter"),
                quoting=self.quoting,
                header=self.header,
                skip_lines=self.skip_lines,
                encoding=self.encoding,
            )
            names = None if self.names is None else tuple(map(str, self.names))
            columns = read_header(path, dialect, names=names)
            for line, cells in read_rows(path, dialect, names=names):
                yield f"{path}, line {line}", dict(zip(columns, cells, strict=True))


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Texts as an encoder makes them, (N, *shape) float32, each when it is asked for."""

    texts: Sequence[str]
    encoder: Encoder

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *shape)."""
        return (len(self.texts), *self.encoder.tensor.shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """That of what is made."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: RowNumbers) -> NDArray[np.float32]:
        some = self.texts[rows] if isinstance(rows, slice) else [self.texts[n] for n in rows]
        return self.encoder.encode(some) if len(some) else np.zeros((0, *self.shape[1:]), np.float32)


def load_text(
    *,
    path: str | None,
    files: Mapping[str, Files],
    keys: Mapping[str, Sequence[str] | None],
    reader: TextFiles,
    rule: LabelRule,
    classes: Sequence[str],
    split: Mapping[str, Any],
    encoder: HashedText | Tokens | JoinedTexts,
    memory_mib: int,
    cohorts: Sequence[str] = (),
    fitted: Fitted | None = None,
) -> Splits:
    """Return the splits of texts as rows that `encoder` makes: now where they take at most `memory_mib`, else when asked for.

    Args:
        path: one file that is divided by `split`, or with `keys` one that holds the splits; or None.
        files: one or more files for each split that has its own; train among them.
        keys: for each split that has its own, the lists of the JSON object in `path`; train among them.
        classes: the taxonomy, in column order; when empty, the rule's names, or else the sorted ids of the training rows (of all
            rows where one file is divided).
        split: the settings of a `SplitRule`, and `of`. All rows of one file are divided; or else those of the split `of`, out of
            which come the splits without a file, and then the fractions of these splits count, whatever their sum.
        cohorts: columns whose cells, as texts, are kept beside the rows.
        fitted: the model that the rows are read for, whose encoder and classes count in place of `encoder` and `classes`.

    Raises:
        DataError: settings that contradict each other; what the reader and the rule refuse; and what `make_splits` refuses.
    """
    if isinstance(classes, str):
        raise DataError(f"data.source.classes is {classes!r}; expected a list, such as [{classes}]")
    cohorts = check_names(cohorts)
    parts, read = {}, []
    sources_of = _sources(path, files, keys)
    if fitted is not None:
        encoder = fitted.encoder(HashedText, Tokens, JoinedTexts, source="data=text")
        fitted.check_one_file([name for name in sources_of if name != "all"], one="data.path=FILE")
        split = {**split, "by": "stratified", "column": None} if fitted.whole else split
    elif reader.text_columns != (TEXT_COLUMN,):  # so that a file like the training file can be predicted
        encoder = replace(encoder, columns=reader.text_columns, joiner=reader.joiner)
    for name, sources in sources_of.items():
        read += [file for file, _ in sources]
        part = parts[name] = TextRows(num_cohorts=len(cohorts))
        column = split.get("column") if name in ("all", split.get("of")) else None
        for file, lists in sources:
            for where, text, label, cell, more in reader.rows(file, lists, column, cohorts):
                part.add(where, text, rule.ids(label, where), cell, more)
        if not len(part):
            raise DataError(f"{', '.join(str(file) for file, _ in sources)} holds no rows for {name}; expected at least one")
    seen = parts["train" if "train" in parts else "all"].ids
    taxonomy = rule.taxonomy(list(map(str, classes)) or rule.names or class_ids(seen)) if fitted is None else fitted.taxonomy
    labelled = {}
    for name, part in parts.items():
        found = labels_of(part.ids, taxonomy, rule, part.where)
        if len(found.kept) < len(part):
            log.warning("%d of %d rows of %s are left out for their labels", len(part) - len(found.kept), len(part), name)
            part = part.take(found.kept)
        labelled[name] = (part, found.labels)
    whole = fitted is not None and fitted.whole
    divided, split_rule = ({"test": labelled["all"]}, None) if whole else _divided(labelled, **split)
    if empty := sum(not text.strip() for part, _ in divided.values() for text in part.texts):
        log.warning("%d rows have an empty text; a model sees all of them alike", empty)
    num_bytes = 4 * encoder.tensor.size * sum(len(part) for part, _ in divided.values())
    make = encoder.encode if num_bytes <= memory_mib << 20 else lambda texts: EncodedTexts(texts, encoder)
    encoded = {name: (make(part.texts), labels) for name, (part, labels) in divided.items()}
    numbers = {name: part.numbers() for name, (part, _) in divided.items()}
    places = {name: part.where for name, (part, _) in divided.items()}
    shown = {name: part.texts.__getitem__ for name, (part, _) in divided.items()}
    origin = Origin(source_files([*read, rule.names_file]), split_rule, numbers, places, shown)
    cohorts_of = {
        name: {column: cohort_of_cells(cells, column, part.where) for column, cells in zip(cohorts, part.cohorts, strict=True)}
        for name, (part, _) in divided.items()
    }
    return make_splits(taxonomy, encoder.tensor, encoded, encoder=encoder, origin=origin, cohorts=cohorts_of, fitted=fitted)


def _sources(
    path: str | None, files: Mapping[str, Files], keys: Mapping[str, Sequence[str] | None]
) -> dict[str, list[tuple[Path, Sequence[str] | None]]]:
    """Return for each split that has its own rows, or for "all" of them, the files and the lists in them."""
    for what, value in (("files", files), ("keys", keys)):
        if unknown := set(value) - set(SPLIT_NAMES):
            raise DataError(f"data.source.{what} names {', '.join(sorted(unknown))}; expected {', '.join(SPLIT_NAMES)}")
    own = {name: [file] if isinstance(file, str) else list(file) for name, file in files.items() if file is not None}
    lists = {name: [key] if isinstance(key, str) else list(key) for name, key in keys.items() if key is not None}
    if bool(path) == bool(own) or (own and lists) or any("train" not in given for given in (own, lists) if given):
        raise DataError(
            "give either data.path=FILE (with data.source.keys where it is a JSON object of splits), or data.files.train=FILE and "
            f"files for others; got path={path!r}, files for {sorted(own) or 'none'} and keys for {sorted(lists) or 'none'}"
        )
    if own:
        return {name: [(Path(file).expanduser(), None) for file in paths] for name, paths in own.items()}
    whole = Path(str(path)).expanduser()
    return {name: [(whole, keys)] for name, keys in lists.items()} or {"all": [(whole, None)]}


def _divided(
    parts: dict[str, tuple[TextRows, Labels]], *, of: str, fractions: Mapping[str, float], **settings: Any
) -> tuple[dict[str, tuple[TextRows, Labels]], SplitRule | None]:
    """Return the four splits, and the rule that made those of them that are not among `parts`: out of `of`, or of "all" rows."""
    absent = [name for name in SPLIT_NAMES if name not in parts]
    if not absent:
        return parts, None
    whole = "all" if "all" in parts else of
    if whole not in parts:
        raise DataError(f"data.source.split.of is {of!r}, which has no rows of its own; expected one of {', '.join(parts)}")
    rule = SplitRule.of({**settings, "fractions": fractions if whole == "all" else _shares(fractions, of, absent)})
    part, labels = parts[whole]
    divided = {name: other for name, other in parts.items() if name != whole}
    values = None if rule.by == "stratified" else part.cells
    for name, rows_B in split_rows(rule, labels, values, where=part.where).items():
        # What stays of a split is what a rule calls train.
        divided[of if name == "train" and whole == of else name] = (part.take(rows_B), labels.take(rows_B))
    return divided, rule


def _shares(fractions: Mapping[str, float], of: str, absent: Sequence[str]) -> dict[str, float]:
    """Return the fractions of the splits that come out of one, scaled to sum to 1; its own stands for train."""
    shares = {name: fractions.get(name) or 0.0 for name in (of, *absent)}
    if not all(isinstance(share, int | float) and share > 0 for share in shares.values()):
        raise DataError(f"data.source.split.fractions must be positive for {', '.join(shares)}, got {dict(fractions)}")
    return {"train" if name == of else name: share / sum(shares.values()) for name, share in shares.items()}
