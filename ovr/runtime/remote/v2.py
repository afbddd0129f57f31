"""Requests and answers of the KServe v2 protocol with Triton's binary tensors, and both as bytes for HTTP.

Knows nothing of connections and models. `ovr.runtime.remote.grpc` has them as messages.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER_LENGTH = "inference-header-content-length"
DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT64": np.dtype("<i8"),
    "BOOL": np.dtype(np.bool_),
}
LENGTH = struct.Struct("<I")  # in front of each value of a BYTES tensor


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input: float32, int64 or, with datatype BYTES, objects that are bytes."""

    name: str
    datatype: str
    array: NDArray[Any]

    def raw(self) -> bytes:
        """Return its values as they are sent."""
        if self.datatype != "BYTES":
            return self.array.tobytes()
        return b"".join(part for value in self.array.ravel() for part in (LENGTH.pack(len(value)), value))


@dataclass(frozen=True, slots=True)
class Request:
    """One inference: what is asked of which model."""

    model: str
    tensors: Sequence[Tensor]
    outputs: Sequence[str]
    id: str
    what: str  # for messages: "infer rows 0 to 63"
    parameters: Mapping[str, str | int | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)  # of HTTP, or metadata of gRPC, beside the client's own


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Arrays may be read-only."""

    version: str
    id: str
    arrays: Mapping[str, NDArray[Any]]


def to_http(request: Request) -> tuple[bytes, int]:
    """Return the body of a request, and the length of the JSON that it begins with."""
    raw = [tensor.raw() for tensor in request.tensors]
    head = {
        "id": request.id,
        "parameters": dict(request.parameters),
        "inputs": [
            {
                "name": tensor.name,
                "shape": tensor.array.shape,
                "datatype": tensor.datatype,
                "parameters": {"binary_data_size": len(values)},
            }
            for tensor, values in zip(request.tensors, raw, strict=True)
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs],
    }
    text = json.dumps(head).encode()
    return b"".join([text, *raw]), len(text)


def from_http(body: bytes, head_length: str | None) -> Answer:
    """Return the answer in a body, whose JSON has the length that its header says.

    Raises:
        ValueError: the body is none of the protocol.
    """
    try:
        length = len(body) if head_length is None else int(head_length)
        head = json.loads(body[:length])
        arrays = {}
        for output in head["outputs"]:
            size = output["parameters"]["binary_data_size"]
            if not 0 <= size <= len(body) - length:
                raise ValueError(f"output {output['name']!r} has {size} bytes, and {len(body) - length} are left")
            arrays[output["name"]] = array_of(output["datatype"], output["shape"], memoryview(body)[length : length + size])
            length += size
        return Answer(str(head["model_version"]), head.get("id", ""), arrays)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no answer of the v2 protocol: {type(error).__name__} {error}") from None


def array_of(datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> NDArray[Any]:
    """Return a tensor's values.

    Raises:
        ValueError: a datatype that models of ovr do not have, or a size that does not fit the shape.
    """
    if datatype != "BYTES":
        if datatype not in DTYPES:
            raise ValueError(f"an output has datatype {datatype!r}; expected one of {', '.join(DTYPES)} or BYTES")
        return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)
    values, start = [], 0
    while start < len(raw):
        start += LENGTH.size
        if start > len(raw) or (end := start + LENGTH.unpack_from(raw, start - LENGTH.size)[0]) > len(raw):
            raise ValueError("an output of datatype BYTES ends in the middle of a value")
        values.append(bytes(raw[start:end]))
        start = end
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array.reshape(shape)
