"""What an ONNX file is made of, read off its bytes before any parser sees it. Knows protobuf's wire format, not onnx.

Weights are passed over by their length, so that 100 MB take milliseconds. What is read strictly here (no groups, no graph that
is given in two pieces, every operator that a node names) is read no other way by protobuf's own parser.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ArtifactError

MAX_NODES = 2000
MAX_FIELDS = 100_000  # that are looked at in one file
MAX_MADE = 2**26  # values that one operator makes of constants alone: 256 MiB in float32
AFFINE_HEAD_OPS = frozenset({"Gemm", "Relu", "Mul", "Add", "Sigmoid"})
# With those of beta and isotonic calibrations.
HEAD_OPS = AFFINE_HEAD_OPS | {"Softplus", "Neg", "Sub", "Gather", "GreaterOrEqual", "Where", "Max", "Min", "Clip", "Div"}
SHARD_OPS = AFFINE_HEAD_OPS | {"Slice", "Reshape", "ReduceSum"}
# No control flow (a few bytes of Loop hang a session), nothing that reads files, nothing random.
_BACKBONE_OPS = """
Abs And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos
CumSum DepthToSpace Div Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu GlobalAveragePool
GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsNaN
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LRN MatMul Max MaxPool Mean Min Mish Mod Neg Not OneHot Or PRelu
Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Reshape Resize Round ScatterElements ScatterND Selu Shape Sign Sin Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where
"""
GRAPH_OPS = HEAD_OPS | frozenset(_BACKBONE_OPS.split())
# Operators whose output is as large as some of their inputs say, and which these are.
_MAKERS = {
    "ConstantOfShape": slice(0, 1),
    "Expand": slice(1, 2),
    "OneHot": slice(1, 2),
    "Pad": slice(1, 2),
    "Range": slice(0, 3),
    "Resize": slice(2, 4),
    "Tile": slice(1, 2),
}
_NUMBERS = {1: "<f4", 6: "<i4", 7: "<i8", 11: "<f8"}  # TensorProto.DataType -> how raw_data holds it
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


def check_onnx(data: bytes | memoryview, *, allowed_ops: frozenset[str], what: str) -> None:
    """Check that a model holds nothing but a plain graph of known operators.

    Args:
        what: how errors call the model.

    Raises:
        ArtifactError: not the bytes of an ONNX model; operators outside `allowed_ops` or the default domain; functions, subgraphs,
            sparse or external weights, more than 2000 nodes, a constant that makes more than 2**26 values. All are told at once.
    """
    found = _Graph()
    try:
        _read_model(_Fields(memoryview(data)), found)
    except _Damaged as error:
        raise ArtifactError(f"{what} is not a valid ONNX model: {error}") from None
    problems = []
    if found.num_nodes > MAX_NODES:
        problems.append(f"{found.num_nodes} nodes, at most {MAX_NODES}")
    if foreign := found.foreign | {op for op in found.ops if op not in allowed_ops}:
        shown = ", ".join(op if len(op) <= 60 else f"{op[:57]}..." for op in sorted(foreign)[:5])
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        problems.append(f"operators {shown}{more} are not among those that ovr serves")
    problems += sorted(found.problems)
    for op, inputs in found.makers:
        made = max((found.made.get(name, 1.0) for name in inputs), default=1.0)
        if made > MAX_MADE:
            problems.append(f"{op} makes {made:.0f} values of a constant, at most {MAX_MADE}")
    if problems:
        raise ArtifactError(f"{what} cannot be served: {'; '.join(problems)}")


def check_onnx_file(path: Path, *, allowed_ops: frozenset[str], what: str) -> None:
    """Check the model in a file as `check_onnx` does; its weights are not read."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise ArtifactError(f"{what} is not a valid ONNX model: it is empty")
        check_onnx(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), allowed_ops=allowed_ops, what=what)


def onnx_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a checked model file carries; its weights are not read."""
    with path.open("rb") as file:
        fields = _Fields(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    found = {}
    for number, *entry in fields.of(0, len(fields.data)):
        if number == 14:
            texts = {inner: _text(fields.bytes_of(*place)) for inner, *place in fields.message(*entry)}
            found[texts.get(1, "")] = texts.get(2, "")
    return found


class _Damaged(Exception):
    """What keeps the bytes from being a model."""


@dataclass
class _Graph:
    """What was found."""

    num_nodes: int = 0
    ops: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    problems: set[str] = field(default_factory=set)
    makers: list[tuple[str, list[bytes]]] = field(default_factory=list)
    made: dict[bytes, float] = field(default_factory=dict)  # small constants: how many values something of that shape has


class _Fields:
    """The fields of protobuf messages in one buffer."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.left = data, MAX_FIELDS

    def of(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (number, wire type, start, end) of each field; a varint's value stands in place of its start."""
        position = start
        while position < end:
            self.left -= 1
            if self.left < 0:
                raise _Damaged(f"it has more than {MAX_FIELDS} fields")
            tag, position = self._varint(position, end, 5)
            number, wire = tag >> 3, tag & 7
            if number == 0 or tag >= 1 << 32:
                raise _Damaged(f"field tag {tag} at byte {position}")
            if wire == _VARINT:
                value, position = self._varint(position, end, 10)
                yield number, wire, value, position
                continue
            if wire == _BYTES:
                size, position = self._varint(position, end, 5)
            elif wire in (_FIXED_64, _FIXED_32):
                size = 8 if wire == _FIXED_64 else 4
            else:
                raise _Damaged(f"wire type {wire} at byte {position}")
            if size > end - position:
                raise _Damaged(f"field {number} at byte {position} is to have {size} bytes, {end - position} are left")
            yield number, wire, position, position + size
            position += size

    def bytes_of(self, wire: int, start: int, end: int) -> bytes:
        """Return the bytes of a field that is some."""
        if wire != _BYTES:
            raise _Damaged(f"wire type {wire} at byte {start} in place of bytes")
        return bytes(self.data[start:end])

    def message(self, wire: int, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Return the fields of a field that is a message."""
        if wire != _BYTES:
            raise _Damaged(f"wire type {wire} at byte {start} in place of a message")
        return self.of(start, end)

    def varints(self, start: int, end: int) -> list[int]:
        """Return packed varints as signed 64-bit numbers."""
        values, position = [], start
        while position < end:
            value, position = self._varint(position, end, 10)
            values.append(_signed(value))
        return values

    def _varint(self, position: int, end: int, most: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 7 * most, 7):
            if position >= end:
                raise _Damaged(f"it ends within a number at byte {position}")
            byte = self.data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise _Damaged(f"a number at byte {position} does not end")


def _read_model(fields: _Fields, found: _Graph) -> None:
    graphs = []
    for number, wire, start, end in fields.of(0, len(fields.data)):
        if number == 7:
            graphs.append((wire, start, end))
        elif number == 8:
            for inner, kind, first, last in fields.message(wire, start, end):
                domain = _text(fields.bytes_of(kind, first, last)) if inner == 1 else ""
                if domain not in ("", "ai.onnx") and not domain.startswith("pkg."):  # torch names its packages, and uses none
                    found.problems.add(f"operators of domain {domain!r}")
        elif number == 20:
            found.problems.add("training graphs")
        elif number == 25:
            names = [_text(fields.bytes_of(k, a, b)) for n, k, a, b in fields.message(wire, start, end) if n == 1]
            found.foreign |= set(names or ["functions"])
    if len(graphs) != 1:
        raise _Damaged(f"it has {len(graphs)} graphs" if graphs else "it has no graph")
    for number, wire, start, end in fields.message(*graphs[0]):
        if number == 1:
            found.num_nodes += 1
            _read_node(fields, found, wire, start, end)
        elif number == 5:
            _read_tensor(fields, found, wire, start, end, names=None)
        elif number == 15:
            found.problems.add("sparse weights")


def _read_node(fields: _Fields, found: _Graph, wire: int, start: int, end: int) -> None:
    ops: list[str] = []
    domain = ""
    inputs, outputs, attributes = [], [], []
    for number, kind, first, last in fields.message(wire, start, end):
        if number == 1:
            inputs.append(fields.bytes_of(kind, first, last))
        elif number == 2:
            outputs.append(fields.bytes_of(kind, first, last))
        elif number == 4:
            ops.append(_text(fields.bytes_of(kind, first, last)))
        elif number == 5:
            attributes.append((kind, first, last))
        elif number == 7:
            domain = _text(fields.bytes_of(kind, first, last)) or domain
    for op in ops or [""]:
        (found.foreign if domain else found.ops).add(f"{domain}:{op}" if domain else op)
        if op in _MAKERS:
            found.makers.append((op, inputs[_MAKERS[op]]))
    made: list[int] = []
    for attribute in attributes:
        for number, kind, first, last in fields.message(*attribute):
            if number in (6, 11):
                found.problems.add("subgraphs")
            elif number in (5, 10):
                _read_tensor(fields, found, kind, first, last, names=outputs)
            elif number in (22, 23):
                found.problems.add("sparse weights")
            elif number == 21:
                found.problems.add("attributes of functions")
            elif number in (3, 8) and "Constant" in ops:
                made += [_signed(first)] if kind == _VARINT else fields.varints(first, last)
    if made:
        _remember(found, outputs, np.array(made, np.float64))


def _read_tensor(fields: _Fields, found: _Graph, wire: int, start: int, end: int, *, names: list[bytes] | None) -> None:
    """Read the head of a TensorProto; `names` are those of its value where it is no initializer."""
    dims: list[int] = []
    data_type = num_bytes = 0
    values: list[tuple[int, int, int, int]] = []
    name = b""
    for number, kind, first, last in fields.message(wire, start, end):
        if number == 1:
            dims += [_signed(first)] if kind == _VARINT else fields.varints(first, last)
        elif number == 2:
            data_type = first if kind == _VARINT else -1
        elif number == 8:
            name = fields.bytes_of(kind, first, last)
        elif number == 13 or (number == 14 and first != 0):
            found.problems.add("weights in external files")
        elif number in (4, 5, 6, 7, 9, 10, 11):
            num_bytes += last - first if kind == _BYTES else 8
            values.append((number, kind, first, last))
    if any(size < 0 for size in dims) or math.prod(dims) > 2 * num_bytes:  # the smallest numbers are of four bits
        if "weights in external files" not in found.problems:
            found.problems.add(f"weights {_text(name)!r} of shape {tuple(dims)} in {num_bytes} bytes")
        return
    if data_type in _NUMBERS and math.prod(dims) <= 64:
        numbers: list[float] = []
        for number, kind, first, last in values:
            if number in (5, 7):
                numbers += [_signed(first)] if kind == _VARINT else fields.varints(first, last)
            elif number in (4, 9, 10) and kind == _BYTES:
                dtype = np.dtype({4: "<f4", 9: _NUMBERS[data_type], 10: "<f8"}[number])
                numbers += np.frombuffer(fields.data[first : last - (last - first) % dtype.itemsize], dtype).tolist()
        _remember(found, [name] if names is None else names, np.array(numbers, np.float64))


def _remember(found: _Graph, names: list[bytes], values: NDArray[Any]) -> None:
    """Keep how many values there are in what has these sizes; a scale or step below 1 counts as its inverse."""
    size = np.abs(values)
    size = np.where(size == 0, 1.0, size)
    with np.errstate(over="ignore", divide="ignore"):
        made = float(np.prod(np.maximum(size, 1.0 / size)))
    for name in names:
        found.made[name] = max(found.made.get(name, 1.0), made)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
