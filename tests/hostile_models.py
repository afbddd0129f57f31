"""ONNX files that mean harm, and what they are made of."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model(*nodes: onnx.NodeProto, weights: tuple[onnx.TensorProto, ...] = (), **more: Any) -> onnx.ModelProto:
    """Return a model x (B, 2) -> prob (B, 2)."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "prob")]
    graph = helper.make_graph(list(nodes), "g", values[:1], values[1:], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, **more)


def whole(name: str, *numbers: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def ones(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def outer(op: str, size: int) -> onnx.ModelProto:
    """Return a model that makes size x size values of two small constants."""
    made = helper.make_node(op, ["a", "b"], ["y"])
    return model(made, node("Add", "x", "y"), weights=(ones("a", size, 1), ones("b", 1, size)))


def node(op: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), ["prob"], **attributes)


def body() -> onnx.GraphProto:
    flag = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    step = helper.make_tensor_value_info("step", TensorProto.INT64, [])
    again = helper.make_tensor_value_info("again", TensorProto.BOOL, [])
    return helper.make_graph([helper.make_node("Identity", ["go"], ["again"])], "body", [step, flag], [again])


def external(location: str) -> onnx.ModelProto:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, location=location)
    tensor.ClearField("raw_data")
    return model(node("Mul", "x", "w"), weights=(tensor,))


def claims(*dims: int) -> onnx.ModelProto:
    return model(node("Mul", "x", "w"), weights=(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"1234"),))


def with_function() -> onnx.ModelProto:
    inner = [helper.make_node("Exp", ["a"], ["b"])]
    function = helper.make_function("local", "Relu", ["a"], ["b"], inner, [helper.make_opsetid("", 18)])
    return model(node("Relu", "x"), functions=[function])


def with_subgraph() -> onnx.ModelProto:
    relu = node("Relu", "x")
    relu.attribute.append(helper.make_attribute("body", body()))
    return model(relu)


def with_sparse() -> onnx.ModelProto:
    made = model(node("Mul", "x", "w"))
    sparse = made.graph.sparse_initializer.add(dims=[1 << 40])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    return made


def with_training() -> onnx.ModelProto:
    made = model(node("Relu", "x"))
    made.training_info.add().algorithm.CopyFrom(made.graph)
    return made


def with_card(text: str) -> onnx.ModelProto:
    made = model(node("Sigmoid", "x"))
    made.metadata_props.add(key="ovr.card", value=text)
    return made


def imports() -> onnx.ModelProto:
    made = model(node("Relu", "x"))
    made.opset_import.add(domain="evil.ops", version=1)
    return made


ENDLESS = node("Loop", "m", "go")
ENDLESS.attribute.append(helper.make_attribute("body", body()))
BRANCH = node("If", "go")
BRANCH.attribute.extend([helper.make_attribute("then_branch", body()), helper.make_attribute("else_branch", body())])
SCAN = node("Scan", "x", num_scan_inputs=1)
SCAN.attribute.append(helper.make_attribute("body", body()))
YES = numpy_helper.from_array(np.array(True), "go")
SHAPE = helper.make_node("Constant", [], ["s"], value_ints=[1 << 18, 1 << 18])
RANGE = (whole("a", 0), whole("b", 1 << 40), whole("c", 1))
ROW = ["x", *(f"v{k}" for k in range(1, 41))]
DOUBLINGS = [helper.make_node("Concat", [a, a], [b], axis=1) for a, b in itertools.pairwise(ROW)]
TILES = [helper.make_node("Tile", [a, "times"], [b]) for a, b in itertools.pairwise(ROW[:5])]
SUMS = [helper.make_node("Add", ["a", "b"], [f"s{k}"]) for k in range(99)]
TWICE = node("Flatten", "x", axis=1)
TWICE.attribute.append(helper.make_attribute("axis", 0))
# 4000 x 4000 is within the bounds, and its every value beside 4000 others is not.
STEPS = (
    helper.make_node("Add", ["a", "b"], ["square"]),
    helper.make_node("Reshape", ["square", "column"], ["long"]),
    helper.make_node("Add", ["long", "b"], ["prob"]),
)
IN_STEPS = (ones("a", 4000, 1), ones("b", 1, 4000), whole("column", 16_000_000, 1))
UNKNOWN = (helper.make_node("Add", ["size", "size"], ["sizes"]), node("Reshape", "x", "sizes"))
PLAIN = model(node("Sigmoid", "x")).SerializeToString()

MODELS: dict[str, Callable[[], onnx.ModelProto | bytes]] = {
    "Loop that never ends": lambda: model(ENDLESS, weights=(whole("m", 2**62), YES)),
    "If": lambda: model(BRANCH, weights=(YES,)),
    "Scan": lambda: model(SCAN),
    "ConstantOfShape of 64 GiB": lambda: model(node("ConstantOfShape", "s"), weights=(whole("s", 1 << 34),)),
    "ConstantOfShape of a node's constant": lambda: model(SHAPE, node("ConstantOfShape", "s")),
    "Expand of 64 GiB": lambda: model(node("Expand", "x", "s"), weights=(whole("s", 1 << 17, 1 << 17),)),
    "Range of 2**40 numbers": lambda: model(node("Range", "a", "b", "c"), weights=RANGE),
    "Tile of 2**40 copies": lambda: model(node("Tile", "x", "s"), weights=(whole("s", 1 << 20, 1 << 20),)),
    "constants that broadcast to 6.4 GB": lambda: outer("Add", 40_000),
    "product of constants of 40 GB": lambda: outer("MatMul", 100_000),
    "row that doubles 40 times": lambda: model(*DOUBLINGS, node("Relu", "v40")),
    "row tiled in steps": lambda: model(*TILES, node("Relu", "v4"), weights=(whole("times", 1, 1000),)),
    "many sums of constants": lambda: model(*SUMS, node("Relu", "x"), weights=(ones("a", 8000, 1), ones("b", 1, 8000))),
    "two weights of one name": lambda: model(node("Mul", "x", "w"), weights=(ones("w", 1), ones("w", 2))),
    "attribute that is there twice": lambda: model(TWICE),
    "nodes in another order": lambda: model(node("Relu", "y"), helper.make_node("Relu", ["x"], ["y"])),
    "operator of another domain": lambda: model(node("Inverse", "x", domain="com.microsoft")),
    "imports of another domain": lambda: imports(),
    "function of the model": with_function,
    "subgraph in a plain operator": with_subgraph,
    "sparse weights": with_sparse,
    "training graph": with_training,
    "weights in /etc/passwd": lambda: external("/etc/passwd"),
    "weights in ../../secret": lambda: external("../../secret"),
    "tensor that claims 2**36 values": lambda: claims(1 << 36),
    "tensor of negative size": lambda: claims(-1, 5),
    "length beyond the file": lambda: b"\x3a\xff\xff\xff\xff\x07" + PLAIN,
    "length of 2**34": lambda: b"\x3a\x80\x80\x80\x80\x40" + PLAIN,
    "number that does not end": lambda: b"\x08" + b"\xff" * 64,
    "group": lambda: PLAIN + b"\x3b\x3c",
    "two graphs": lambda: PLAIN + PLAIN,
    "file cut short": lambda: PLAIN[: len(PLAIN) // 2],
    "empty file": lambda: b"",
    "3000 nodes": lambda: model(*[helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(3000)]),
    "a million fields": lambda: PLAIN + b"\x28\x00" * 1_000_000,
    "card nested 100,000 deep": lambda: with_card("[" * 100_000),
    "card of four million lists": lambda: with_card("[" + "[]," * (4 << 20) + "[]]"),
    "card without end of digits": lambda: with_card('{"schema_version":' + "1" * 1_000_000 + "}"),
}
