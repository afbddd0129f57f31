"""Sizes are those that onnx's own inference of shapes tells."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ovr.core.onnx_file import GRAPH_OPS, check_onnx
from ovr.core.onnx_sizes import Node, problems_of_sizes
from ovr.errors import ArtifactError

CASES = [
    ("Add", [(1, 4, 1), (3, 1, 5)], {}),
    ("Where", [(1, 4), (3, 1), (1,)], {}),
    ("Sigmoid", [(1, 7)], {}),
    ("QuantizeLinear", [(1, 7), ()], {}),
    ("DequantizeLinear", [(1, 7), ()], {}),
    ("Gemm", [(1, 6), (6, 3)], {}),
    ("Gemm", [(6, 2), (3, 6)], {"transA": 1, "transB": 1}),
    ("MatMul", [(2, 1, 3, 4), (5, 4, 6)], {}),
    ("MatMul", [(2, 3, 4), (4,)], {}),
    ("MatMul", [(4,), (2, 4, 3)], {}),
    ("Gather", [(5, 6, 7), (2, 3)], {"axis": 1}),
    ("Gather", [(5, 6), (4,)], {"axis": -1}),
    ("Concat", [(1, 2, 3), (1, 4, 3)], {"axis": 1}),
    ("Transpose", [(1, 2, 3)], {"perm": [0, 2, 1]}),
    ("Transpose", [(1, 2, 3)], {}),
    ("Flatten", [(2, 3, 4)], {"axis": 2}),
    ("Conv", [(1, 3, 8, 9), (5, 3, 1, 1)], {"pads": [1, 2, 1, 2]}),
    ("MaxPool", [(1, 3, 8, 9)], {"kernel_shape": [1, 1], "pads": [0, 0, 0, 0]}),
    ("Reshape", [(2, 3, 4), [0, -1, 2]], {}),
    ("Unsqueeze", [(2, 3), [0, 3]], {}),
    ("Squeeze", [(2, 1, 3, 1), [1, -1]], {}),
    ("ReduceSum", [(2, 3, 4), [1]], {"keepdims": 0}),
    ("Expand", [(2, 1), [3, 1, 4]], {}),
    ("Tile", [(2, 3), [2, 5]], {}),
    ("Pad", [(2, 3), [1, 0, 1, 4]], {}),
    ("Shape", [(2, 3, 4)], {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES)
def test_a_size_is_that_of_onnx(op, inputs, attributes):
    names = [f"i{k}" for k in range(len(inputs))]
    shaped = {name: value for name, value in zip(names, inputs, strict=True) if isinstance(value, tuple)}
    numbers = {name: value for name, value in zip(names, inputs, strict=True) if isinstance(value, list)}
    dtypes = {"Gather": {"i1": TensorProto.INT64}, "Where": {"i0": TensorProto.BOOL}, "DequantizeLinear": {"i0": TensorProto.UINT8}}
    types = dtypes.get(op, {})
    values = [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), shape) for n, shape in shaped.items()]
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()]
    node = helper.make_node(op, names, ["y"], **attributes)
    made = {"Shape": TensorProto.INT64, "QuantizeLinear": TensorProto.UINT8}.get(op, TensorProto.FLOAT)
    out = helper.make_tensor_value_info("y", made, None)
    model = helper.make_model(helper.make_graph([node], "g", values, [out], weights), opset_imports=[helper.make_opsetid("", 18)])
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output[0].type.tensor_type.shape
    size = math.prod(dim.dim_value for dim in inferred.dim)
    whole = {name: value if isinstance(value, list) else [value] for name, value in attributes.items()}
    given = {name.encode(): shape for name, shape in shaped.items()}
    constants = {name.encode(): (len(value),) for name, value in numbers.items()}
    known = {name.encode(): value for name, value in numbers.items()}

    def problems(most):
        nodes = [Node(op, [name.encode() for name in names], [b"y"], whole)]
        return problems_of_sizes(nodes, given, constants, known, {}, most=most, strict=True)

    assert problems(size) == []
    assert problems(size - 1) == [f"{op} makes {size} values for a row, at most {size - 1}"]


def test_an_operator_without_a_rule_is_let_through_where_all_need_not_be_known():
    nodes = [Node("Einsum", [b"x"], [b"y"]), Node("Relu", [b"y"], [b"z"])]
    for strict in (False, True):
        said = problems_of_sizes(nodes, {b"x": (1, 3)}, {}, {}, {}, most=9, strict=strict)
        assert (
            said
            == ["Einsum makes a number of values that is not known beforehand"] * strict
            + ["Relu makes a number of values that is not known beforehand"] * strict
        )


def test_a_row_is_as_large_as_the_model_says_it_is():
    for sizes, wrong in ((["batch", 1 << 15], True), (["batch", 9], False), (["batch", "any"], False)):
        values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes), helper.make_tensor_value_info("y", 1, None)]
        column = numpy_helper.from_array(np.ones((1 << 15, 1), np.float32), "w")
        graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [column])
        data = helper.make_model(graph).SerializeToString()
        if not wrong:
            check_onnx(data, allowed_ops=GRAPH_OPS, what="it")
            continue
        with pytest.raises(ArtifactError, match="it cannot be served: Mul makes 1073741824 values for a row"):
            check_onnx(data, allowed_ops=GRAPH_OPS, what="it")
