"""The text format of the Extreme Classification Repository: sparse rows with any number of labels, from very many.

The first line is "rows features labels", every other one a row: the numbers of its labels, comma-separated, and then
"feature:value" pairs, separated by blanks; all numbers count from 0. A row without labels begins with a blank or a pair.

N = rows, K = heads, P = values or labels of all rows
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ovr.core.taxonomy import ClassSpec, with_parents
from ovr.data.csr import Csr, EncodedCsr
from ovr.data.entries import Entries
from ovr.data.fitted import Fitted
from ovr.data.labels import Labels
from ovr.data.origin import Origin, places_in, source_files
from ovr.data.splits import SPLIT_NAMES, Splits, make_splits
from ovr.data.splitting import SplitRule, split_rows
from ovr.errors import DataError
from ovr.input.sparse import SparseRows

log = logging.getLogger(__name__)

I64 = NDArray[np.int64]
BOM = b"\xef\xbb\xbf"
LABELS = re.compile(rb"\d{1,9}(?:,\d{1,9})*")
PAIR = re.compile(rb"\d{1,9}:[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
PAIRS = re.compile(rb"\s*(?:" + PAIR.pattern + rb"\s+)*")


@dataclass(frozen=True, slots=True)
class XmcFile:
    """What a file holds: rows, their labels, and how many features and labels its first line tells of."""

    path: Path
    rows: Csr
    labels: Entries
    num_features: int
    num_labels: int


def load_xmc(
    *,
    train: str,
    test: str | None,
    label_names: str | None,
    ids: str,
    num_tokens: int,
    max_tokens: int | None,
    log_values: bool,
    normalize: str,
    fractions: Mapping[str, float],
    seed: int,
    fitted: Fitted | None = None,
) -> Splits:
    """Return the splits of a training and a test file; rows stay sparse, and are padded when they are asked for.

    A row without labels is a negative of every class. A class without a positive row in the training file is left out of the
    taxonomy, and what the test file says of it is not counted; every other has one in the train split at least.

    Args:
        test: the test split; None: it is a part of the training file too.
        label_names: a file with a name a line for each label, in order.
        ids: what class ids are: "number" of the label, or its "name".
        num_tokens: of what the backbone was told; at least the features of the files.
        max_tokens: values kept of a row, the largest; None keeps those of the longest row of the train split.
        log_values: whether a value v becomes sign(v) log(1 + |v|).
        normalize: "l2" divides the values of a row by their norm, "none" does not.
        fractions: shares of the training file for train, val, calib and test, which are drawn by iterative stratification; that of
            test does not count where it has a file, and the others are scaled to sum to 1.
        fitted: the model that the rows are read for. Its encoder counts in place of `max_tokens`, `log_values` and `normalize`;
            its classes are those of the rows, and what the files say of others is not counted, as in training.

    Raises:
        DataError: a file that cannot be read or is not of the format (naming the line), files that differ in features or labels,
            fractions of other splits, and what `make_splits` refuses.
    """
    whole = fitted is not None and fitted.whole
    if fitted is not None:
        fitted.check_one_file([] if test is None else ["train", "test"], one="data.train=FILE alone")
    divided = [name for name in SPLIT_NAMES if name != "test" or test is None]
    split_rule = None if whole else _split_rule(fractions, divided, seed=seed)
    if ids not in ("number", "name") or (ids == "name" and label_names is None):
        raise DataError(f"data.source.ids is {ids!r}; expected 'number', or 'name' with data.label_names=FILE")
    file = read_xmc(Path(train).expanduser())
    test_file = None if test is None else read_xmc(Path(test).expanduser())
    if test_file is not None and (file.num_features, file.num_labels) != (test_file.num_features, test_file.num_labels):
        raise DataError(
            f"{test_file.path} has {test_file.num_features} features and {test_file.num_labels} labels, "
            f"{file.path} has {file.num_features} and {file.num_labels}; expected the same"
        )
    if num_tokens < file.num_features:
        raise DataError(f"{file.path} has {file.num_features} features, data.num_tokens is {num_tokens}; expected at least as many")
    names = None if label_names is None else _names(Path(label_names).expanduser(), file.num_labels)

    if fitted is None:
        column_K = np.flatnonzero(np.bincount(file.labels.column_P, minlength=file.num_labels))
    else:
        column_K = _columns_of(fitted, file, names if ids == "name" else None)
    _report(file, test_file, column_K)
    if not len(column_K):
        raise DataError(f"{file.path}: no row has a label")
    labels = _with_columns(file.labels, column_K)
    rows = {"test": np.arange(len(labels))} if split_rule is None else split_rows(split_rule, labels)
    parts = {name: (file.rows.take(rows_B), labels.take(rows_B)) for name, rows_B in rows.items()}
    if test_file is not None:
        parts["test"] = (test_file.rows, _with_columns(test_file.labels, column_K))
    if fitted is None:
        longest = max(1, int(parts["train"][0].num_values_N().max()))
        encoder = SparseRows(file.num_features, longest if max_tokens is None else max_tokens, log_values, normalize)
    else:
        encoder = fitted.encoder(SparseRows, source="data=xmc")
        if file.num_features != encoder.num_features:
            raise DataError(f"{file.path} has {file.num_features} features; the model takes {encoder.num_features}")
    for name, (csr, _) in parts.items():
        if num_cut := int((csr.num_values_N() > encoder.max_tokens).sum()):
            log.info(
                "%s: %d of %d rows have more than %d values; the largest are kept", name, num_cut, len(csr), encoder.max_tokens
            )
    if test_file is not None:
        rows = {**rows, "test": np.arange(len(test_file.rows))}
    where = {
        name: places_in(test_file.path if name == "test" and test_file else file.path, row_B, unit="line", first=2)
        for name, row_B in rows.items()
    }
    classes = (ClassSpec(names[k] if names and ids == "name" else str(k), name=names[k] if names else "") for k in column_K)
    return make_splits(
        with_parents(classes) if fitted is None else fitted.taxonomy,
        encoder.tensor,
        {name: (EncodedCsr(csr, encoder), y) for name, (csr, y) in parts.items()},
        encoder=encoder,
        origin=Origin(source_files([train, test, label_names]), split_rule, rows, where),
        fitted=fitted,
    )


def _columns_of(fitted: Fitted, file: XmcFile, names: list[str] | None) -> I64:
    """Return the label (K,) of each class of a model, ascending as in training.

    Raises:
        DataError: the file has no such label.
    """
    number_of = {name: k for k, name in enumerate(names if names else map(str, range(file.num_labels)))}
    if absent := [class_id for class_id in fitted.taxonomy.ids if class_id not in number_of]:
        raise DataError(
            f"{file.path} has {file.num_labels} labels, and none for the model's classes {', '.join(map(repr, absent[:5]))}; "
            "data.source.ids and data.label_names must be those of the training run"
        )
    column_K = np.array([number_of[class_id] for class_id in fitted.taxonomy.ids], np.int64)
    if (np.diff(column_K) <= 0).any():
        raise DataError(f"{file.path} has the labels of the model's classes in another order than the model")
    return column_K


def read_xmc(path: Path) -> XmcFile:
    """Return what a file holds; a label that a row names twice counts once.

    Raises:
        DataError: it cannot be read; its first line is not "rows features labels"; it has more or fewer rows; a line is no row, or
            has a label or feature out of range, a feature twice, or a value that float32 cannot hold.
    """
    try:
        with path.open("rb") as lines:
            return _read(path, enumerate(lines, start=1))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _split_rule(fractions: Mapping[str, float], names: Sequence[str], *, seed: int) -> SplitRule:
    """Return the rule for the splits `names`; where the test rows have a file, the other fractions are scaled to sum to 1."""
    if set(fractions) - set(SPLIT_NAMES) or not set(names) <= set(fractions):
        raise DataError(f"data.source.fractions names {', '.join(fractions)}; expected {', '.join(names)}")
    shares = {name: fractions[name] for name in names}
    if not all(isinstance(share, int | float) and share > 0 for share in shares.values()):
        raise DataError(f"data.source.fractions must be positive, got {dict(fractions)}")
    total = 1 if "test" in names else sum(shares.values())
    return SplitRule("stratified", None, {name: share / total for name, share in shares.items()}, seed)


def _read(path: Path, lines: Iterator[tuple[int, bytes]]) -> XmcFile:
    _, first = next(lines, (1, b""))
    header = first.removeprefix(BOM).split()
    if len(header) != 3 or not all(re.fullmatch(rb"\d{1,12}", number) for number in header):
        raise DataError(f"{path}, line 1 is {_shown(first)}; expected three whole numbers: rows features labels")
    num_rows, num_features, num_labels = map(int, header)
    index: list[NDArray[np.int32]] = []
    value: list[NDArray[np.float32]] = []
    label: list[NDArray[np.int32]] = []
    for line, content in lines:
        where = f"{path}, line {line}"
        if len(index) == num_rows:
            if not content.strip():  # blank lines at the end
                continue
            raise DataError(f"{where} is a row more than the {num_rows} that line 1 tells of")
        index_E, value_E, label_E = _row(content, where)
        _check(index_E, num_features, "feature", where)
        _check(label_E, num_labels, "label", where)
        if (np.diff(index_E) <= 0).any():
            order_E = np.argsort(index_E, kind="stable")
            index_E, value_E = index_E[order_E], value_E[order_E]
            if twice := index_E[1:][np.diff(index_E) == 0].tolist():
                raise DataError(f"{where} has feature {twice[0]} twice; expected each once")
        index.append(index_E)
        value.append(value_E)
        label.append(np.unique(label_E))
    if len(index) < num_rows:
        raise DataError(f"{path} has {len(index)} rows; line 1 tells of {num_rows}")
    if not index:
        raise DataError(f"{path} holds no rows")
    rows = Csr(_starts(index), np.concatenate(index), np.concatenate(value))
    return XmcFile(path, rows, Entries(_starts(label), np.concatenate(label)), num_features, num_labels)


def _row(content: bytes, where: str) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """Return features, their values and labels as they stand in a line."""
    head, _, tail = content.replace(b"\t", b" ").partition(b" ")
    if b":" in head:
        head, tail = b"", content
    head = head.strip()
    if head and not LABELS.fullmatch(head):
        raise DataError(f"{where} begins with {_shown(head)}; expected labels such as 3,17 or, without a label, a blank")
    if not PAIRS.fullmatch(tail + b"\n"):
        wrong = next(token for token in tail.split() if not PAIR.fullmatch(token))
        raise DataError(f"{where} has {_shown(wrong)}; expected feature:value, a whole number and a number")
    text = tail.replace(b":", b" ").strip()
    numbers = np.fromstring(text, sep=" ") if text else np.zeros(0)  # it takes bytes
    index_E, wide_E = numbers[::2].astype(np.int32), numbers[1::2]
    with np.errstate(over="ignore"):
        value_E = wide_E.astype(np.float32)
    if not np.isfinite(value_E).all():
        place = int(np.argmin(np.isfinite(value_E)))
        raise DataError(f"{where}, feature {index_E[place]} holds {wide_E[place]}; expected a number that float32 can hold")
    return index_E, value_E, np.array(head.split(b",") if head else [], dtype=np.int32)


def _check(number_E: NDArray[np.int32], count: int, what: str, where: str) -> None:
    if len(number_E) and number_E.max() >= count:
        hint = " (they count from 0)" if number_E.max() == count else ""
        raise DataError(f"{where} has {what} {number_E.max()}; line 1 tells of {count} {what}s, 0 to {count - 1}{hint}")


def _starts(parts: list[NDArray[np.int32]]) -> I64:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)


def _with_columns(labels: Entries, column_K: I64) -> Labels:
    """Return labels whose heads are the given columns alone."""
    place_P = np.searchsorted(column_K, labels.column_P)
    kept_P = column_K[np.minimum(place_P, len(column_K) - 1)] == labels.column_P
    num_N = np.bincount(labels.row_P[kept_P], minlength=len(labels))
    start_N1 = np.concatenate([[0], np.cumsum(num_N)]).astype(np.int64)
    return Labels(Entries(start_N1, place_P[kept_P].astype(np.int32)), Entries.none(len(labels)), len(column_K))


def _names(path: Path, num_labels: int) -> list[str]:
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    while len(names) > num_labels and not names[-1]:
        del names[-1]
    if len(names) != num_labels:
        raise DataError(f"{path} has {len(names)} lines; expected a name for each of {num_labels} labels")
    if "" in names:
        raise DataError(f"{path}, line {names.index('') + 1} is empty; expected the name of label {names.index('')}")
    return names


def _report(file: XmcFile, test_file: XmcFile | None, column_K: I64) -> None:
    for each in (file, test_file):
        if each is not None and (bare := int((np.diff(each.labels.start_N1) == 0).sum())):
            log.info("%s: %d of %d rows have no label: negatives of every class", each.path.name, bare, len(each.rows))
    if left_out := file.num_labels - len(column_K):
        unseen = 0 if test_file is None else int((~np.isin(test_file.labels.column_P, column_K)).sum())
        log.warning(
            "%d of %d labels have no positive row in %s and are left out%s",
            left_out,
            file.num_labels,
            file.path.name,
            f", with {unseen} of {len(test_file.labels.column_P)} labels of test rows" if test_file is not None else "",
        )


def _shown(content: bytes) -> str:
    text = repr(content.strip().decode("utf-8", "backslashreplace"))
    return text if len(text) <= 50 else text[:47] + "..."
