"""How large the tensors are that a graph makes of one row, as far as its operators tell it by shapes alone. Knows no file format.

A shape here is an upper bound, axis by axis, with one row in the first axis of what is fed. Of operators without a rule, and of
what comes of them, nothing is known.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

MAX_MADE = 2**26  # values that one operator makes for a row, or all make of constants alone: 256 MiB in float32
Shape = tuple[int, ...]

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
# Those that make something of the shape that all their inputs have together.
_TOGETHER_OPS = "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where"
_TOGETHER = frozenset(_TOGETHER_OPS.split())
# Those that make something of the shape of their first input, or a part of it.
_AS_FIRST_OPS = """
Abs BatchNormalization Cast Ceil Clip Cos CumSum DequantizeLinear Elu Erf Exp Floor Gelu GroupNormalization HardSigmoid
HardSwish Identity InstanceNormalization IsNaN LRN LayerNormalization LeakyRelu Log LogSoftmax Mish Neg Not QuantizeLinear
Reciprocal Relu Round ScatterElements ScatterND Selu Sigmoid Sign Sin Slice Softmax Softplus Softsign Split Sqrt Tanh Trilu
"""
_AS_FIRST = frozenset(_AS_FIRST_OPS.split())


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. `whole` are its attributes that are whole numbers, or lists of such."""

    op: str
    inputs: Sequence[bytes]
    outputs: Sequence[bytes]
    whole: Mapping[str, Sequence[int]] = field(default_factory=dict)


def problems_of_sizes(
    nodes: Sequence[Node],
    inputs: Mapping[bytes, Shape | None],
    constants: Mapping[bytes, Shape],
    numbers: Mapping[bytes, Sequence[int]],
    makes: Mapping[bytes, float],
    *,
    most: int,
    strict: bool,
) -> list[str]:
    """Return what a graph makes that is too large.

    Args:
        nodes: in the order in which they stand.
        inputs: the shapes of what is fed; None: not known.
        constants: the shapes of weights and constants.
        numbers: the values of small constants of whole numbers.
        makes: how many values something has whose shape a small constant says.
        most: values that one operator may make for a row.
        strict: what has no known size is refused too.
    """
    problems: list[str] = []
    shapes: dict[bytes, Shape | None] = {**inputs, **constants}
    folded, num_folded = set(constants), 0
    for node in nodes:
        given = [name for name in node.inputs if name]
        if late := [name for name in given if name not in shapes]:
            problems.append(f"{node.op} takes {late[0][:60].decode(errors='replace')!r}, which nothing before it makes")
            break
        made = max((makes.get(name, 1.0) for name in node.inputs[_MAKERS[node.op]]), default=1.0) if node.op in _MAKERS else 1.0
        if made > MAX_MADE:
            problems.append(f"{node.op} makes {made:.0f} values of a constant, at most {MAX_MADE}")
        shape = None if any(shapes[name] is None for name in given) else _made(node, shapes, numbers)
        of_constants = node.op != "Constant" and all(name in folded for name in given)
        for name in node.outputs:
            shapes.setdefault(name, shape)
            if of_constants:
                folded.add(name)
        size = 0 if shape is None else math.prod(shape)
        if shape is None and strict:
            problems.append(f"{node.op} makes a number of values that is not known beforehand")
        elif size > most:
            problems.append(f"{node.op} makes {size} values for a row, at most {most}")
        elif of_constants and num_folded <= MAX_MADE < num_folded + size:
            problems.append(f"{num_folded + size} values are made of constants alone, at most {MAX_MADE}")
        num_folded += size if of_constants else 0
    return problems


def _made(node: Node, shapes: Mapping[bytes, Shape | None], numbers: Mapping[bytes, Sequence[int]]) -> Shape | None:
    """Return what the node makes of inputs whose shapes are all known; None where that is not known."""
    every = [shapes[name] or () for name in node.inputs if name]
    if node.op in _TOGETHER:
        return _together(every)
    if node.op in _AS_FIRST and every:
        return every[0]
    rule = _RULES.get(node.op)
    if rule is None or not every:
        return None
    second = numbers.get(node.inputs[1]) if len(node.inputs) > 1 else None
    try:
        return rule(node, every, second)
    except (IndexError, ValueError):  # axes that no runtime takes
        return None


def _together(every: Sequence[Shape]) -> Shape:
    rank = max(map(len, every), default=0)
    return tuple(max(column) for column in zip(*((1,) * (rank - len(shape)) + shape for shape in every), strict=True))


def _one(node: Node, name: str, default: int) -> int:
    return int(node.whole[name][-1]) if node.whole.get(name) else default


def _gemm(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape:
    return (every[0][1 if _one(node, "transA", 0) else 0], every[1][0 if _one(node, "transB", 0) else 1])


def _matmul(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape:
    left, right = every[0], every[1]
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    return (*_together([left[:-2], right[:-2]]), *rows, *columns)


def _gather(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape:
    data = every[0]
    axis = range(len(data))[_one(node, "axis", 0)]
    return (*data[:axis], *every[1], *data[axis + 1 :])


def _reshape(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape | None:
    if second is None or _one(node, "allowzero", 0):
        return None
    sizes = [size or every[0][axis] for axis, size in enumerate(second)]
    others = math.prod(size for size in sizes if size > 0)
    return tuple(size if size > 0 else max(1, math.prod(every[0]) // others) for size in sizes)


def _reduced(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape | None:
    return every[0] if _one(node, "keepdims", 1) else _squeezed(node, every, second)


def _unsqueezed(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape | None:
    axes = node.whole.get("axes", second)
    if axes is None:
        return None
    rank = len(every[0]) + len(axes)
    new, rest = {range(rank)[axis] for axis in axes}, iter(every[0])
    return tuple(1 if axis in new else next(rest, 1) for axis in range(rank))


def _squeezed(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape | None:
    axes = node.whole.get("axes", second)
    if axes is None:
        return None
    gone = {range(len(every[0]))[axis] for axis in axes}
    return tuple(size for axis, size in enumerate(every[0]) if axis not in gone)


def _transposed(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape:
    order = node.whole.get("perm") or range(len(every[0]) - 1, -1, -1)
    return tuple(every[0][axis] for axis in order)


def _concat(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape:
    axis = range(len(every[0]))[_one(node, "axis", 0)]
    joined = list(_together(every))
    joined[axis] = sum(shape[axis] for shape in every)
    return tuple(joined)


def _flat(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape:
    axis = _one(node, "axis", 1)
    return (math.prod(every[0][:axis]), math.prod(every[0][axis:]))


def _expanded(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape | None:
    return None if second is None else _together([every[0], tuple(second)])


def _tiled(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape | None:
    return None if second is None else tuple(size * times for size, times in zip(every[0], second, strict=True))


def _padded(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape | None:
    if second is None or len(node.inputs) > 3:  # some axes alone
        return None
    rank = len(every[0])
    return tuple(size + before + after for size, before, after in zip(every[0], second[:rank], second[rank:], strict=True))


def _convolved(node: Node, every: Sequence[Shape], second: Sequence[int] | None) -> Shape:
    data, pads = every[0], node.whole.get("pads", ())
    num_axes = len(data) - 2
    more = [sum(pads[axis::num_axes]) for axis in range(num_axes)] if pads else [0] * num_axes
    channels = every[1][0] if node.op == "Conv" else data[1]
    return (data[0], channels, *(size + extra for size, extra in zip(data[2:], more, strict=True)))


_RULES: dict[str, Callable[[Node, Sequence[Shape], Sequence[int] | None], Shape | None]] = {
    "AveragePool": _convolved,
    "Concat": _concat,
    "Conv": _convolved,
    "Expand": _expanded,
    "Flatten": _flat,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda node, every, second: every[0],
    "GlobalMaxPool": lambda node, every, second: every[0],
    "MatMul": _matmul,
    "MaxPool": _convolved,
    "Pad": _padded,
    "ReduceL1": _reduced,
    "ReduceL2": _reduced,
    "ReduceLogSumExp": _reduced,
    "ReduceMax": _reduced,
    "ReduceMean": _reduced,
    "ReduceMin": _reduced,
    "ReduceProd": _reduced,
    "ReduceSum": _reduced,
    "ReduceSumSquare": _reduced,
    "Reshape": _reshape,
    "Shape": lambda node, every, second: (len(every[0]),),
    "Squeeze": _squeezed,
    "Tile": _tiled,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}
