"""What an ONNX file is made of, read off its bytes before any parser sees it. Knows the numbers of ONNX's fields, not onnx.

Weights are passed over by their length, so that 100 MB take milliseconds. What is read strictly here (no graph that is given in two
pieces, every operator that a node names, no attribute twice) is read no other way by protobuf's own parser.
"""

import math
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.onnx_sizes import MAX_MADE, Node, Shape, problems_of_sizes
from ovr.core.protobuf_fields import BYTES, VARINT, Damaged, Fields, signed
from ovr.errors import ArtifactError

MAX_NODES = 2000
MAX_HEAD_VALUES = 2**24  # that one operator of a head, or of a shard of heads, makes for a row: 64 MiB in float32
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
EDGE_OPS = GRAPH_OPS | {"QuantizeLinear", "DequantizeLinear"}  # with those of models of int8 (`ovr export target=edge`)
_NUMBERS = {1: "<f4", 6: "<i4", 7: "<i8", 11: "<f8"}  # TensorProto.DataType -> how raw_data holds it


def check_onnx(data: bytes | memoryview, *, allowed_ops: frozenset[str], what: str) -> None:
    """Check that a model holds nothing but a plain graph of known operators.

    Args:
        what: how errors call the model.

    Raises:
        ArtifactError: not the bytes of an ONNX model; operators outside `allowed_ops` or the default domain; functions, subgraphs,
            sparse or external weights, more than 2000 nodes, what `problems_of_sizes` finds too large. All are told at once.
    """
    found = _Graph()
    try:
        _read_model(Fields(memoryview(data)), found)
    except Damaged as error:
        raise ArtifactError(f"{what} is not a valid ONNX model: {error}") from None
    problems = []
    if len(found.nodes) > MAX_NODES:
        problems.append(f"{len(found.nodes)} nodes, at most {MAX_NODES}")
    if foreign := found.foreign | {op for op in found.ops if op not in allowed_ops}:
        shown = ", ".join(op if len(op) <= 60 else f"{op[:57]}..." for op in sorted(foreign)[:5])
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        problems.append(f"operators {shown}{more} are not among those that ovr serves")
    problems += sorted(found.problems)
    of_heads = allowed_ops <= HEAD_OPS | SHARD_OPS  # whose sizes are all known
    problems += problems_of_sizes(
        found.nodes,
        found.inputs,
        found.shapes,
        found.numbers,
        found.made,
        most=MAX_HEAD_VALUES if of_heads else MAX_MADE,
        strict=of_heads and not problems,
    )
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
        fields = Fields(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    found = {}
    for number, *entry in fields.of(0, len(fields.data)):
        if number == 14:
            texts = {inner: _text(fields.bytes_of(*place)) for inner, *place in fields.message(*entry)}
            found[texts.get(1, "")] = texts.get(2, "")
    return found


@dataclass
class _Graph:
    """What was found."""

    ops: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    problems: set[str] = field(default_factory=set)
    nodes: list[Node] = field(default_factory=list)
    inputs: dict[bytes, Shape | None] = field(default_factory=dict)
    shapes: dict[bytes, Shape] = field(default_factory=dict)  # of weights and constants
    numbers: dict[bytes, list[int]] = field(default_factory=dict)  # small constants of whole numbers
    made: dict[bytes, float] = field(default_factory=dict)  # small constants: how many values something of that shape has


def _read_model(fields: Fields, found: _Graph) -> None:
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
        raise Damaged(f"it has {len(graphs)} graphs" if graphs else "it has no graph")
    for number, wire, start, end in fields.message(*graphs[0]):
        if number == 1:
            _read_node(fields, found, wire, start, end)
        elif number == 5:
            _read_tensor(fields, found, wire, start, end, names=None)
        elif number == 11:
            _read_input(fields, found, wire, start, end)
        elif number == 15:
            found.problems.add("sparse weights")


def _read_node(fields: Fields, found: _Graph, wire: int, start: int, end: int) -> None:
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
    whole: dict[str, list[int]] = {}
    for attribute in attributes:
        _read_attribute(fields, found, *attribute, whole=whole, constant=outputs if "Constant" in ops else None, names=outputs)
    found.nodes.append(Node(ops[-1] if ops else "", inputs, outputs, whole))


def _read_attribute(
    fields: Fields,
    found: _Graph,
    wire: int,
    start: int,
    end: int,
    *,
    whole: dict[str, list[int]],
    constant: list[bytes] | None,
    names: list[bytes],
) -> None:
    """Read an attribute of the node that makes `names`; `constant` are these of a node that is a constant."""
    name = ""
    shape: Shape | None = None
    values: list[int] = []
    kinds: set[int] = set()
    for number, kind, first, last in fields.message(wire, start, end):
        if number == 1:
            name = _text(fields.bytes_of(kind, first, last))
        elif number in (6, 11):
            found.problems.add("subgraphs")
        elif number in (5, 10):
            _read_tensor(fields, found, kind, first, last, names=names, is_constant=constant is not None)
        elif number in (22, 23):
            found.problems.add("sparse weights")
        elif number == 21:
            found.problems.add("attributes of functions")
        elif number in (3, 8):
            values += [signed(first)] if kind == VARINT else fields.varints(first, last)
            shape = () if number == 3 else (len(values),)
            kinds.add(number)
        elif number in (2, 7) and constant is not None:  # a number, or numbers, with a point
            shape = () if number == 2 else ((shape or (0,))[0] + (last - first) // 4,)
    if name in whole or len(kinds) > 1:
        found.problems.add(f"attribute {name[:60]!r} twice")
    whole[name] = values
    if constant is not None and shape is not None:
        _know(found, constant, shape, values or None)
        if values:
            _remember(found, constant, np.array(values, np.float64))


def _read_input(fields: Fields, found: _Graph, wire: int, start: int, end: int) -> None:
    """Read the shape of what is fed: one row in the first axis."""
    name, sizes = b"", []
    for number, *entry in fields.message(wire, start, end):
        if number == 1:
            name = fields.bytes_of(*entry)
        elif number == 2:
            for kind, *tensor in fields.message(*entry):
                for inner, *shape in fields.message(*tensor) if kind == 1 else ():
                    for _, *dim in fields.message(*shape) if inner == 2 else ():
                        found_sizes = [first for n, w, first, _ in fields.message(*dim) if n == 1 and w == VARINT]
                        sizes.append(signed(found_sizes[-1]) if found_sizes else 0)
    known = all(size > 0 for size in sizes[1:])
    found.inputs[name] = (1, *sizes[1:])[: len(sizes)] if known else None


def _know(found: _Graph, names: list[bytes], shape: Shape, numbers: list[int] | None) -> None:
    """Keep the shape of a constant, and its values where they are a few whole numbers."""
    for name in names:
        if name in found.shapes:
            found.problems.add(f"two weights with the name {_text(name)[:60]!r}")
        found.shapes[name] = shape
        if numbers is not None and len(numbers) == math.prod(shape):
            found.numbers[name] = numbers


def _read_tensor(
    fields: Fields, found: _Graph, wire: int, start: int, end: int, *, names: list[bytes] | None, is_constant: bool = True
) -> None:
    """Read the head of a TensorProto; `names` are those of its value where it is no initializer but an attribute."""
    dims: list[int] = []
    data_type = num_bytes = 0
    values: list[tuple[int, int, int, int]] = []
    name = b""
    for number, kind, first, last in fields.message(wire, start, end):
        if number == 1:
            dims += [signed(first)] if kind == VARINT else fields.varints(first, last)
        elif number == 2:
            data_type = first if kind == VARINT else -1
        elif number == 8:
            name = fields.bytes_of(kind, first, last)
        elif number == 13 or (number == 14 and first != 0):
            found.problems.add("weights in external files")
        elif number in (4, 5, 6, 7, 9, 10, 11):
            num_bytes += last - first if kind == BYTES else 8
            values.append((number, kind, first, last))
    if any(size < 0 for size in dims) or math.prod(dims) > 2 * num_bytes:  # the smallest numbers are of four bits
        if "weights in external files" not in found.problems:
            found.problems.add(f"weights {_text(name)!r} of shape {tuple(dims)} in {num_bytes} bytes")
        return
    numbers: list[float] = []
    if data_type in _NUMBERS and math.prod(dims) <= 64:
        for number, kind, first, last in values:
            if number in (5, 7):
                numbers += [signed(first)] if kind == VARINT else fields.varints(first, last)
            elif number in (4, 9, 10) and kind == BYTES:
                dtype = np.dtype({4: "<f4", 9: _NUMBERS[data_type], 10: "<f8"}[number])
                numbers += np.frombuffer(fields.data[first : last - (last - first) % dtype.itemsize], dtype).tolist()
        _remember(found, [name] if names is None else names, np.array(numbers, np.float64))
    if is_constant:
        whole = [int(value) for value in numbers] if data_type in (6, 7) else None
        _know(found, [name] if names is None else names, tuple(dims), whole)


def _remember(found: _Graph, names: list[bytes], values: NDArray[Any]) -> None:
    """Keep how many values there are in what has these sizes; a scale or step below 1 counts as its inverse."""
    size = np.abs(values)
    size = np.where(size == 0, 1.0, size)
    with np.errstate(over="ignore", divide="ignore"):
        made = float(np.prod(np.maximum(size, 1.0 / size)))
    for name in names:
        found.made[name] = max(found.made.get(name, 1.0), made)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
