"""A row that a model takes, made from its configuration and, of the router, the encoder. Knows nothing of what the answer is.

The row stands for no class: it is there to have the model compute. It is the same in every request.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ArtifactError
from ovr.input.columns import CategoryColumn, DateColumn, NumericColumn, shown_time
from ovr.input.encoder import encoder_from_json
from ovr.input.records import IMAGE, TEXTS, to_bytes
from ovr.input.table import TableEncoder

TEXT = "a text that asks whether the model answers"


def probe_inputs(config: Mapping[str, Any], encoder: Mapping[str, Any] | None) -> dict[str, NDArray[Any]]:
    """Return one row (1, ...) for each input that the model cannot do without.

    Args:
        config: the model's configuration as the server tells it.
        encoder: of the input of a router that takes texts, cells or images, as in its card.

    Raises:
        ArtifactError: an input of a type or a shape that ovr's models do not have.
    """
    inputs: dict[str, NDArray[Any]] = {}
    for tensor in config["input"]:
        if tensor.get("optional"):
            continue
        dims = [int(dim) for dim in tensor["dims"]]
        if min(dims, default=1) < 1:
            raise ArtifactError(f"input {tensor['name']!r} of {config['name']} has dims {dims}; expected a fixed size")
        if tensor["data_type"] == "TYPE_FP32":
            # Neither zero nor constant: what is scaled by a row's norm or variance must not divide by zero.
            inputs[tensor["name"]] = np.linspace(0, 1, int(np.prod(dims)), dtype=np.float32).reshape(1, *dims)
        elif tensor["data_type"] == "TYPE_INT64":
            inputs[tensor["name"]] = np.zeros((1, *dims), np.int64)  # a cohort: the pooled one
        elif tensor["data_type"] == "TYPE_STRING" and encoder is not None:
            inputs[tensor["name"]] = to_bytes([_record(encoder)])
        else:
            raise ArtifactError(f"input {tensor['name']!r} of {config['name']} is {tensor['data_type']}; no row can be made for it")
    return inputs


def _record(encoder: Mapping[str, Any]) -> Any:
    kind = encoder.get("kind")
    if kind in TEXTS:
        return TEXT
    if kind == IMAGE:
        return _png()
    if kind == "table":
        table = encoder_from_json(dict(encoder))
        assert isinstance(table, TableEncoder)
        return {column.name: _cell(column) for column in table.columns}
    return {"0": 1.0}  # sparse rows


def _cell(column: NumericColumn | CategoryColumn | DateColumn) -> Any:
    """Return a cell that no policy of the column refuses."""
    if isinstance(column, NumericColumn):
        return column.fill
    if isinstance(column, DateColumn):
        if not column.formats:
            return shown_time(column.fill)
        return np.datetime64(round(column.fill), "s").item().strftime(column.formats[0])
    return next(iter(column.categories), TEXT)


def _png() -> bytes:
    """Return the file of a grey picture of two by two pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)
    pixels = b"".join(b"\0" + bytes(line) for line in ((0, 85), (170, 255)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
