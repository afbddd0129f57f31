"""Predictions as bytes of CSV or JSON lines, or as Arrow tables for Parquet. Knows nothing of where they came from.

B = rows of a chunk, K = heads
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.outcomes import OUTPUTS, PER_CLASS
from ovr.core.prediction import Prediction
from ovr.errors import ServingError
from ovr.runtime.batch.buffers import Buffers

FORMATS = (".csv", ".jsonl", ".ndjson", ".parquet")
TRANSPOSED_ROWS = 512  # at a time
LEAST_PLAIN = 1e-6  # of numbers in CSV; below it they have an exponent


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are written: those of `number_B`, of which `kept_B` have the predictions, in order; the others have none."""

    number_B: NDArray[np.int64]
    kept_B: NDArray[np.bool_]
    prediction: Prediction | None  # None where no row is kept
    files: Sequence[str] | None = None  # one a row: the image file that it is


@dataclass(frozen=True)
class Answers:
    """How predictions of one model are written.

    jsonl: row, labels, names, abstained, top (class, prob), and prob by class id. csv and parquet: row, label and name (of argmax;
    empty where it abstained) or labels and names (of multilabel; lists, in csv as JSON arrays, since ids may hold any character),
    abstained, confidence (the highest probability), and a column `prob:<class id>` for each class. A row without a prediction has
    its number and empty cells. Where a class is unavailable, each line of jsonl has a list `unavailable`; the others cannot
    say it.

    Args:
        ending: one of `FORMATS`.
        probabilities: whether every class's probability is written.
        outputs: names of `ovr.core.outcomes.OUTPUTS` to write too, in csv and parquet a column each, or `<name>:<class id>` for
            each class.
        with_files: whether each row is a file, whose name is then written after its number.
        with_empty: whether there may be rows without a prediction. Without it columns of Parquet are said to hold no nulls, which
            takes a third of the time of writing them.
    """

    ending: str
    card: ModelCard
    probabilities: bool = True
    outputs: tuple[str, ...] = ()
    with_files: bool = False
    with_empty: bool = False

    @cached_property
    def names(self) -> list[str]:
        """The columns of csv and parquet."""
        single = self.card.policy.mode == "argmax"
        names = ["row", *(["file"] if self.with_files else []), *(["label", "name"] if single else ["labels", "names"])]
        names += ["abstained", "confidence", *(output for output in self.outputs if output not in PER_CLASS)]
        return names + [f"{output}:{class_id}" for output in self._per_class for class_id in self.card.taxonomy.ids]

    @cached_property
    def schema(self) -> Any:
        """What `ovr.runtime.batch.answer_tables.schema` gives."""
        from ovr.runtime.batch.answer_tables import schema

        return schema(self)

    @cached_property
    def _buffers(self) -> Buffers:
        return Buffers()

    @cached_property
    def head(self) -> bytes:
        """What a file begins with: the header of CSV."""
        return _csv_line(self.names) if self.ending == ".csv" else b""

    def write(self, rows: Rows) -> Any:
        """Return the rows as bytes of CSV or JSON lines, without a header, or as an Arrow record batch for Parquet.

        Raises:
            ServingError: a class was unavailable for a row of CSV or Parquet.
        """
        unavailable_BK = None if rows.prediction is None else rows.prediction.unavailable_BK
        if self.ending in (".csv", ".parquet") and unavailable_BK is not None and unavailable_BK.any():
            row, column = np.argwhere(unavailable_BK)[0].tolist()
            number = rows.number_B[rows.kept_B][row]
            raise ServingError(
                f"class {self.card.taxonomy.ids[column]!r} was unavailable at the server for row {number}, "
                f"which {self.ending} has no place for; repeat it, or write JSON lines, which say so"
            )
        if self.ending == ".parquet":
            from ovr.runtime.batch.answer_tables import batch

            return batch(rows, self)
        return self._csv(rows) if self.ending == ".csv" else self._jsonl(rows)

    @property
    def _per_class(self) -> list[str]:
        return [*(["prob"] if self.probabilities else []), *(output for output in self.outputs if output in PER_CLASS)]

    def numbers(self, prediction: Prediction) -> list[NDArray[Any]]:
        """Return the columns after `abstained` as arrays of one or more (C, B): float32 probabilities, and float64 of `outputs`."""
        prob_BK = prediction.prob_BK
        columns: list[NDArray[Any]] = [np.take_along_axis(prob_BK, prediction.decision.top_BM[:, :1], axis=1).T]
        columns += [OUTPUTS[output](prob_BK)[None] for output in self.outputs if output not in PER_CLASS]
        columns += [self._transposed(prob_BK if output == "prob" else OUTPUTS[output](prob_BK)) for output in self._per_class]
        return columns

    def _transposed(self, value_BK: NDArray[Any]) -> NDArray[Any]:
        """Return (K, B), contiguous: some rows at a time, which stay in the cache."""
        value_KB = self._buffers.empty(value_BK.shape[::-1], value_BK.dtype)
        for start in range(0, len(value_BK), TRANSPOSED_ROWS):
            value_KB[:, start : start + TRANSPOSED_ROWS] = value_BK[start : start + TRANSPOSED_ROWS].T
        return value_KB

    def decided(self, prediction: Prediction) -> tuple[NDArray[np.int64], list[tuple[int, ...]]]:
        """Return (for each row the place of its classes in the list (B,), the different sets of classes as columns)."""
        label_BK = prediction.decision.label_BK
        if self.card.policy.mode == "argmax":
            none = label_BK.shape[1]
            return np.where(prediction.decision.abstained_B, none, label_BK.argmax(axis=1)), [*((k,) for k in range(none)), ()]
        bits = np.packbits(label_BK, axis=1)
        _, first, inverse = np.unique(bits.view(np.dtype((np.void, bits.shape[1])))[:, 0], return_index=True, return_inverse=True)
        return inverse, [tuple(np.flatnonzero(label_BK[row]).tolist()) for row in first.tolist()]

    def _csv(self, rows: Rows) -> bytes:
        data, end_B = b"", np.zeros(1, np.int64)
        if rows.prediction is not None:
            at_B, sets = self.decided(rows.prediction)
            labels = [_csv_line(self._label_cells(columns))[:-1].decode() for columns in sets]
            files = None if rows.files is None else [_csv_line([file])[:-1].decode() for file in rows.files]
            number_B, abstained_B = rows.number_B[rows.kept_B], rows.prediction.decision.abstained_B
            if find_spec("pyarrow") is not None:
                from ovr.runtime.batch.answer_tables import csv_lines as make
            else:
                make = csv_lines
            columns = [column for value_CB in self.numbers(rows.prediction) for column in value_CB]
            data, end_B = make(number_B, files, at_B, labels, abstained_B, columns)
        if rows.kept_B.all():
            return data
        kept = (data[start:end] for start, end in pairwise(end_B.tolist()))
        empty = b"," * (len(self.names) - 1) + b"\n"
        pairs = zip(rows.number_B.tolist(), rows.kept_B.tolist(), strict=True)
        return b"".join(next(kept) if is_kept else str(number).encode() + empty for number, is_kept in pairs)

    def _label_cells(self, columns: Sequence[int]) -> list[str]:
        ids = [self.card.taxonomy.ids[k] for k in columns]
        names = [self.card.taxonomy[k].name for k in columns]
        if self.card.policy.mode == "argmax":
            return [ids[0], names[0]] if ids else ["", ""]
        return [json.dumps(ids, ensure_ascii=False), json.dumps(names, ensure_ascii=False)]

    def _jsonl(self, rows: Rows) -> bytes:
        records = iter([] if rows.prediction is None else rows.prediction.records(self.outputs))
        files = iter(rows.files or ())
        name = {spec.id: spec.name for spec in self.card.taxonomy}
        lines = []
        for number, kept in zip(rows.number_B.tolist(), rows.kept_B.tolist(), strict=True):
            line: dict[str, Any] = {"row": number}
            if not kept:
                line |= dict.fromkeys(
                    ("labels", "names", "abstained", "top", *(["prob"] if self.probabilities else []), *self.outputs)
                )
            else:
                record = next(records)
                if self.with_files:
                    line["file"] = next(files)
                if not self.probabilities:
                    del record["prob"]
                labels = record.pop("labels")
                line |= {"labels": labels, "names": [name[class_id] for class_id in labels], **record}
            lines.append(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        return b"".join(lines)


def csv_lines(
    number_B: NDArray[np.int64],
    files: Sequence[str] | None,
    at_B: NDArray[np.int64],
    labels: Sequence[str],
    abstained_B: NDArray[np.bool_],
    columns: Sequence[NDArray[Any]],
) -> tuple[bytes, NDArray[np.int64]]:
    """Return (rows as lines of CSV, where each begins, and where the last ends), without pyarrow.

    They are what `ovr.runtime.batch.answer_tables.csv_lines` returns, byte for byte.
    """
    cells: list[Sequence[str]] = [list(map(str, number_B.tolist())), *([] if files is None else [files])]
    cells += [[labels[at] for at in at_B.tolist()], ["true" if abstained else "false" for abstained in abstained_B.tolist()]]
    cells += [list(map(number_text, column.tolist())) for column in columns]
    lines = [",".join(row).encode() + b"\n" for row in zip(*cells, strict=True)]
    return b"".join(lines), np.cumsum([0, *map(len, lines)])


def number_text(value: float) -> str:
    """Return the shortest text of a number from 0 to 1e15 that reads back as the same float64: 1, 0.25, 0.000012, 1e-7."""
    text = repr(value)
    if text.endswith(".0"):
        return text[:-2]
    if "e" in text:
        return f"{Decimal(text):f}" if value >= LEAST_PLAIN else text.replace("e-0", "e-")
    return text


def _csv_line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
