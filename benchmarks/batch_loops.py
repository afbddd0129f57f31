"""Programs of some lines that score a file with ONNX Runtime, beside which `ovr predict` is measured.

B = rows at a time, D = values of a row, K = heads
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq

from ovr.core.bundle import open_bundle

BATCH = 256
READ_ROWS = 1 << 13  # of a file at a time: as long as with four times as many, and quicker than with all


def session_of(bundle: Path, num_threads: int) -> onnxruntime.InferenceSession:
    """Return a session of the bundle's fused graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    return onnxruntime.InferenceSession(open_bundle(bundle).fused_onnx, options, providers=["CPUExecutionProvider"])


def bare_loop(bundle: Path, x: np.ndarray, num_threads: int) -> Callable[[], None]:
    """Return a loop over rows in memory, whose answers are thrown away."""
    session = session_of(bundle, num_threads)

    def run() -> None:
        for start in range(0, len(x), BATCH):
            session.run(["prob"], {"x": x[start : start + BATCH]})

    return run


def loop_over_file(bundle: Path, source: Path, output: Path, num_threads: int) -> Callable[[], None]:
    """Return a loop that reads the same file and writes the same columns: no checks, nothing kept on the way, no flush.

    A bundle is not opened again each time.
    """
    session = session_of(bundle, num_threads)
    ids = pa.array(open_bundle(bundle).taxonomy.ids)
    names = ["row", "label", "name", "abstained", "confidence", *(f"prob:{class_id}" for class_id in ids.to_pylist())]

    def run() -> None:
        writer, first = None, 0
        for x in rows_of(source):
            prob_BK = np.concatenate([session.run(["prob"], {"x": x[at : at + BATCH]})[0] for at in range(0, len(x), BATCH)])
            top_B = prob_BK.argmax(axis=1)
            label = ids.take(pa.array(top_B))
            columns = [pa.array(np.arange(first, first + len(x))), label, label, pa.array(np.zeros(len(x), bool))]
            columns += map(pa.array, (prob_BK.max(axis=1), *np.ascontiguousarray(prob_BK.T)))
            table = pa.Table.from_arrays(columns, names)
            writer = writer or pq.ParquetWriter(output, table.schema, use_dictionary=["label", "name"], compression="snappy")
            writer.write_table(table)
            first += len(x)
        if writer is not None:
            writer.close()

    return run


def rows_of(source: Path) -> Iterator[np.ndarray]:
    """Yield the rows of a file as the network takes them (B, D)."""
    if source.suffix == ".npy":
        x = np.load(source, mmap_mode="r")
        yield from (np.array(x[start : start + READ_ROWS]) for start in range(0, len(x), READ_ROWS))
        return
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(READ_ROWS):
            if batch.schema.names == ["x"]:
                yield batch.column(0).flatten().to_numpy().reshape(len(batch), -1)
            else:
                yield table_rows(batch)


def table_rows(batch: pa.RecordBatch) -> np.ndarray:
    """Return what the encoder of `batch_scoring.table` makes of a batch: numbers as they are, a place a category."""
    numbers = [column.to_numpy() for column, name in zip(batch.columns, batch.schema.names, strict=True) if name[0] == "n"]
    texts = [column.dictionary_encode() for column, name in zip(batch.columns, batch.schema.names, strict=True) if name[0] == "c"]
    x = np.zeros((len(batch), 2 * len(numbers) + 10 * len(texts)), np.float32)
    for c, column in enumerate(numbers):
        missing = np.isnan(column)
        x[:, 2 * c] = np.where(missing, 0, column)
        x[:, 2 * c + 1] = missing
    for c, column in enumerate(texts):
        place_V = np.array([int(text.removeprefix("value ")) for text in column.dictionary.to_pylist()])
        x[np.arange(len(batch)), 2 * len(numbers) + 10 * c + place_V[column.indices.to_numpy()]] = 1
    return x
