import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from ovr.core.onnx_file import GRAPH_OPS, check_onnx, check_onnx_file, onnx_metadata
from ovr.errors import ArtifactError
from tests import hostile_models as hostile


def test_what_mutation_hides_from_the_check_is_hidden_from_the_parser_too(rng):
    """Whatever bytes a model has, one that passes has no other operators, subgraphs or external weights when it is parsed."""
    sources = [m.SerializeToString() for m in (hostile.model(hostile.ENDLESS), hostile.external("x"), hostile.with_function())]
    sources.append(hostile.PLAIN)
    num_passed = 0
    for _ in range(1500):
        data = bytearray(sources[rng.integers(len(sources))])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            check_onnx(bytes(data), allowed_ops=GRAPH_OPS, what="it")
        except ArtifactError:
            continue
        try:
            parsed = onnx.load_model_from_string(bytes(data))
        except DecodeError:
            continue
        num_passed += 1
        assert not parsed.functions
        assert all(node.op_type in GRAPH_OPS and not node.domain for node in parsed.graph.node)
        assert not any(attribute.HasField("g") or attribute.graphs for node in parsed.graph.node for attribute in node.attribute)
        assert not any(t.data_location == TensorProto.EXTERNAL or t.external_data for t in parsed.graph.initializer)
    assert num_passed > 30


def test_the_sizes_that_plain_models_make_are_let_through():
    sizes = numpy_helper.from_array(np.array([1, 3, 224, 224], np.int64), "s")
    check_onnx(
        hostile.model(hostile.node("Expand", "x", "s"), weights=(sizes,)).SerializeToString(), allowed_ops=GRAPH_OPS, what="it"
    )
    scales = numpy_helper.from_array(np.array([1, 1, 0.5, 2], np.float32), "s")
    resize = hostile.node("Resize", "x", "", "s")
    check_onnx(hostile.model(resize, weights=(scales,)).SerializeToString(), allowed_ops=GRAPH_OPS, what="it")


@pytest.mark.parametrize(
    "typed", [{"int64_data": [1 << 20, 1 << 20], "data_type": 7}, {"float_data": [2.0**40, 1.0], "data_type": 1}]
)
def test_sizes_are_seen_however_they_are_written(typed):
    tensor = TensorProto(name="s", dims=[2], **typed)
    model = hostile.model(helper.make_node("Constant", [], ["s"], value=tensor), hostile.node("Expand", "x", "s"))
    with pytest.raises(ArtifactError, match="Expand makes 1099511627776 values of a constant"):
        check_onnx(model.SerializeToString(), allowed_ops=GRAPH_OPS, what="it")


@pytest.mark.parametrize("data", [b"\x38\x01", b"\x00\x00", b"\x3a\x02\x08\x01", b"\x12\x00"])
def test_fields_of_another_kind_are_no_model(data):
    with pytest.raises(ArtifactError, match="it is not a valid ONNX model"):
        check_onnx(data, allowed_ops=GRAPH_OPS, what="it")


def test_metadata_is_read_as_onnx_reads_it(tmp_path):
    model = hostile.with_card("äöü")
    model.metadata_props.add(key="b", value="")
    onnx.save(model, tmp_path / "m.onnx")
    check_onnx_file(tmp_path / "m.onnx", allowed_ops=GRAPH_OPS, what="it")
    assert onnx_metadata(tmp_path / "m.onnx") == {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
