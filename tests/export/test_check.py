from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ovr.core.onnx_file import GRAPH_OPS
from ovr.errors import ArtifactError
from ovr.export.check import check_structure, run
from ovr.export.graph import IR_VERSION, OPSET


def model(nodes, initializers=(), outputs=("y",), opset=OPSET, **arguments):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", *outputs)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, **arguments)


def check(proto):
    return check_structure(proto, allowed_ops=GRAPH_OPS, what="the model")


RELU = helper.make_node("Relu", ["x"], ["y"])


def test_a_plain_model_passes_and_runs_in_batches():
    x = np.array([[-1, 2], [3, -4], [5, 6]], np.float32)
    data = check(model([RELU]))
    for batch_size in (1, 2, 256):
        assert np.array_equal(run(data, x, batch_size=batch_size), np.maximum(x, 0))


def test_value_names_that_collide_are_refused():
    with pytest.raises(ArtifactError, match="the model is not a valid ONNX model"):
        check(model([RELU, helper.make_node("Exp", ["x"], ["y"])]))


def test_a_dangling_input_is_refused():
    with pytest.raises(ArtifactError, match="the model cannot be served: Relu takes 'absent', which nothing before it makes"):
        check(model([helper.make_node("Relu", ["absent"], ["y"])]))


@pytest.mark.parametrize("op", ["Loop", "If", "Scan", "RandomNormalLike", "Relu2"])
def test_control_flow_random_and_unknown_operators_are_refused(op):
    with pytest.raises(ArtifactError, match=f"the model cannot be served: operators {op} are not among"):
        check(model([helper.make_node(op, ["x"], ["y"])]))


def test_operators_of_another_domain_are_refused():
    with pytest.raises(ArtifactError, match=r"operators com\.evil:Relu are not among"):
        check(model([helper.make_node("Relu", ["x"], ["y"], domain="com.evil")]))


def test_functions_are_refused():
    function = helper.make_function(
        "local", "Relu", ["a"], ["b"], [helper.make_node("Exp", ["a"], ["b"])], [helper.make_opsetid("", OPSET)]
    )
    with pytest.raises(ArtifactError, match="operators Relu are not among"):
        check(model([RELU], functions=[function]))


def test_subgraphs_are_refused():
    node = helper.make_node("Relu", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("body", model([RELU]).graph))
    with pytest.raises(ArtifactError, match="the model cannot be served: subgraphs"):
        check(model([node]))


def test_weights_in_other_files_are_refused():
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, location="../../secret")
    tensor.ClearField("raw_data")
    with pytest.raises(ArtifactError, match="weights in external files"):
        check(model([helper.make_node("Mul", ["x", "w"], ["y"])], [tensor]))


def test_too_many_nodes_are_refused():
    names = ["x", *(f"v{i}" for i in range(2000)), "y"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in pairwise(names)]
    with pytest.raises(ArtifactError, match="2001 nodes, at most 2000"):
        check(model(nodes))


def test_a_model_too_large_for_one_file_is_refused(monkeypatch):
    monkeypatch.setattr("ovr.export.check.MAX_MODEL_BYTES", 10)
    with pytest.raises(ArtifactError, match="one ONNX file holds at most 10"):
        check(model([RELU]))


def test_all_problems_are_told_at_once():
    node = helper.make_node("Loop", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("body", model([RELU]).graph))
    with pytest.raises(ArtifactError, match=r"operators Loop .*; subgraphs"):
        check(model([node]))


def test_what_onnx_runtime_refuses_is_told():
    with pytest.raises(ArtifactError, match="ONNX Runtime refuses the exported model"):
        run(b"not a model", np.zeros((1, 2), np.float32))
    with pytest.raises(ArtifactError, match="ONNX Runtime refuses the exported model"):
        run(check(model([RELU])), np.zeros((1, 3), np.float32))
