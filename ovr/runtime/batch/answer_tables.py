"""Predictions as batches of Arrow, and as lines of CSV that Arrow makes. Needs pyarrow (the extra `data`).

B = rows of a chunk, K = heads
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ovr.runtime.batch.answers import Answers, Rows


def schema(answers: "Answers") -> Any:
    """Return the columns of a batch; without `with_empty` the only nulls are labels of rows that abstained."""
    single = answers.card.policy.mode == "argmax"
    text = pa.dictionary(pa.int32(), pa.string()) if single else pa.list_(pa.string())
    kinds = {"row": pa.int64(), "file": pa.string(), "abstained": pa.bool_()}
    kinds |= dict.fromkeys(("label", "name", "labels", "names"), text)
    fields = []
    for name in answers.names:
        probability = name == "confidence" or name.startswith("prob:")
        nullable = name != "row" and (answers.with_empty or name in ("label", "name"))
        fields.append(pa.field(name, kinds.get(name, pa.float32() if probability else pa.float64()), nullable=nullable))
    return pa.schema(fields)


def text_columns(answers: "Answers") -> list[str]:
    """Return the columns whose values come up again and again."""
    return ["label", "name"] if answers.card.policy.mode == "argmax" else ["labels.list.element", "names.list.element"]


def compression(answers: "Answers") -> dict[str, str]:
    """Return how columns are compressed; those of numbers are not, of whose bits Snappy leaves nearly all at twice the time."""
    return dict.fromkeys(["row", *(["file"] if answers.with_files else []), *text_columns(answers)], "snappy")


def with_statistics(answers: "Answers") -> list[str]:
    """Return the columns whose least and greatest value is told of each row group; of probabilities these tell nothing."""
    return ["row", *(["file"] if answers.with_files else []), *text_columns(answers), "abstained", "confidence"]


def batch(rows: "Rows", answers: "Answers") -> Any:
    """Return the rows as a record batch of `schema`."""
    made = answers.schema
    if rows.prediction is None:
        columns = [pa.array(rows.number_B), *(pa.nulls(len(rows.number_B), field.type) for field in list(made)[1:])]
        return pa.RecordBatch.from_arrays(columns, schema=made)
    at_B, sets = answers.decided(rows.prediction)
    taxonomy = answers.card.taxonomy
    columns = [] if rows.files is None else [pa.array(rows.files, pa.string())]
    for texts in (taxonomy.ids, [spec.name for spec in taxonomy]):
        if answers.card.policy.mode == "argmax":
            code = pa.array(at_B.astype(np.int32), mask=rows.prediction.decision.abstained_B)
            columns.append(pa.DictionaryArray.from_arrays(code, pa.array(texts, pa.string())))
        else:
            values = pa.array([[texts[k] for k in columns] for columns in sets], pa.list_(pa.string()))
            columns.append(values.take(pa.array(at_B)))
    columns.append(pa.array(rows.prediction.decision.abstained_B))
    for value_CB in answers.numbers(rows.prediction):
        values, num_rows = pa.array(value_CB.reshape(-1)), value_CB.shape[1]
        columns += [values.slice(c * num_rows, num_rows) for c in range(len(value_CB))]
    if not rows.kept_B.all():
        place = pa.array(np.cumsum(rows.kept_B) - 1, mask=~rows.kept_B)
        columns = [column.take(place) for column in columns]
    return pa.RecordBatch.from_arrays([pa.array(rows.number_B), *columns], schema=made)


def csv_lines(
    number_B: NDArray[np.int64],
    files: Sequence[str] | None,
    at_B: NDArray[np.int64],
    labels: Sequence[str],
    abstained_B: NDArray[np.bool_],
    columns: Sequence[NDArray[Any]],
) -> tuple[bytes, NDArray[np.int64]]:
    """Return (rows as lines of CSV, where each begins, and where the last ends).

    Args:
        files: a cell a row, quoted where it must be; None writes none.
        at_B: for each row the place in `labels` of its cells, which have the commas between them.
        columns: (B,) numbers each.
    """
    cells = [pa.array(number_B).cast(pa.string()), *([] if files is None else [pa.array(files, pa.string())])]
    cells += [pa.array(labels, pa.string()).take(pa.array(at_B)), pa.array(abstained_B).cast(pa.string())]
    cells += [pa.array(column.astype(np.float64)).cast(pa.string()) for column in columns]
    joined = pc.binary_join_element_wise(pc.binary_join_element_wise(*cells, ","), "\n", "")
    end_B = np.frombuffer(joined.buffers()[1], np.int32)[joined.offset : joined.offset + len(joined) + 1].astype(np.int64)
    return bytes(memoryview(joined.buffers()[2])[end_B[0] : end_B[-1]]), end_B - end_B[0]
