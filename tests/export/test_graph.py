import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ovr.export.check import run
from ovr.export.graph import IR_VERSION, OPSET, renamed


def test_every_name_changes_and_the_answers_do_not():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["v"], name="product", doc_string="at /srv/someone/model.py"),
        helper.make_node("Clip", ["v", "", "top"], ["y"]),  # the lower bound is not given
    ]
    constants = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("w", 3.0), ("top", 5.0))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    other = renamed(model, lambda name: f"deep/{name}")
    assert [value.name for value in (*other.graph.input, *other.graph.output)] == ["deep/x", "deep/y"]
    assert list(other.graph.node[1].input) == ["deep/v", "", "deep/top"]
    assert b"someone" not in other.SerializeToString()
    onnx.checker.check_model(other)
    x = np.array([[-4.0, 9.0]], np.float32)
    assert np.array_equal(run(other.SerializeToString(), x), run(model.SerializeToString(), x))
    assert model.graph.node[0].name == "product", "the given model stays as it is"
