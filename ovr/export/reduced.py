"""Backbone and heads in fewer bits: what the weights of a part become. Knows nothing of how good the answers then are.

fp16: weights are stored as float16, and every runtime computes with them in float32, as kernels in float16 are rare on a CPU. Half
the size; speed and memory are those of fp32, because a session unfolds them once.
int8: ONNX Runtime's static quantisation (QDQ): uint8 activations, whose ranges rows decide, and int8 weights, a scale a channel.
Tables that rows are looked up in (embeddings) are no weights of a product, and become float16.

N = rows, D = features
"""

import logging
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ovr.errors import ArtifactError
from ovr.export.fused import APART, JOINT
from ovr.export.graph import IR_VERSION, OPSET, PROB
from ovr.export.heads_graph import HeadsGraph

PRECISIONS = ("fp32", "fp16", "int8")
NUM_RANGE_ROWS = 512  # that the ranges of activations are read off
BATCH_ROWS = 64
_WEIGHT_OPS = ("Conv", "Gemm", "MatMul")  # whose second input is weights that int8 takes
_MIN_VALUES = 64  # of weights; fewer save nothing
_MAX_FP16 = float(np.finfo(np.float16).max)

F32 = NDArray[np.float32]


def reducible(model: onnx.ModelProto, precision: str) -> bool:
    """Return whether a model has weights that this precision makes smaller."""
    return bool(_fp16_names(model) if precision == "fp16" else _weight_nodes(model) or _tables(model))


def reduced(model: onnx.ModelProto, precision: str, x: F32) -> onnx.ModelProto:
    """Return the model with its weights in another precision; those of heads apart, and what has too few, stay as they are.

    Args:
        precision: "fp16" or "int8".
        x: rows (N, ...) of the model's only input, for the ranges of int8.

    Raises:
        ArtifactError: ONNX Runtime cannot quantise it.
    """
    return _half(model, _fp16_names(model)) if precision == "fp16" else _half(_quantised(model, x), _tables(model))


def heads_model(graph: HeadsGraph, num_features: int, *, output: str = PROB) -> onnx.ModelProto:
    """Return the heads alone as a model with input `heads/features` (B, D) and one value of theirs as output."""
    made = helper.make_graph(
        graph.nodes,
        "ovr_heads",
        [helper.make_tensor_value_info(JOINT, TensorProto.FLOAT, ["batch", num_features])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", None])],
        graph.initializers,
    )
    model: onnx.ModelProto = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return model


def reduced_heads(graph: HeadsGraph, precision: str, z_ND: F32) -> HeadsGraph:
    """Return the heads with their weights in another precision, for features (N, D) as the backbone gives them."""
    model = reduced(heads_model(graph, z_ND.shape[1]), precision, z_ND)
    made = HeadsGraph(graph.features)
    made.nodes, made.initializers = list(model.graph.node), list(model.graph.initializer)
    made.logit, made.slot_K = graph.logit, graph.slot_K
    return made


def _weight_nodes(model: onnx.ModelProto) -> list[int]:
    """Return the numbers of the nodes whose weights int8 takes."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    return [
        number
        for number, node in enumerate(model.graph.node)
        if node.op_type in _WEIGHT_OPS and sizes.get(node.input[1], 0) >= _MIN_VALUES and not _is_apart(node.input[1])
    ]


def _is_apart(name: str) -> bool:
    return name.startswith(f"heads/{APART}")


def _fp16_names(model: onnx.ModelProto) -> list[str]:
    names = []
    for tensor in model.graph.initializer:
        kept = tensor.name.startswith(("heads/beta/", "heads/isotonic/")) or _is_apart(tensor.name)
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _MIN_VALUES or kept:
            continue
        if np.abs(numpy_helper.to_array(tensor)).max() <= _MAX_FP16:  # beyond, they would be infinite: such weights stay
            names.append(tensor.name)
    return names


def _tables(model: onnx.ModelProto) -> list[str]:
    """Return the names of weights that are looked up in and nothing else; those of heads are calibrations."""
    names = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    names -= {name for node in model.graph.node for name in (node.input[1:] if node.op_type == "Gather" else node.input)}
    return [name for name in _fp16_names(model) if name in names and not name.startswith("heads/")]


def _half(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    casts = []
    for tensor in copy.graph.initializer:
        if tensor.name in names:
            stored = f"{tensor.name}/fp16"
            casts.append(helper.make_node("Cast", [stored], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), stored))
    nodes = [*casts, *copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _quantised(model: onnx.ModelProto, x: F32) -> onnx.ModelProto:
    chosen = _weight_nodes(model)
    if not chosen:
        return model
    from onnxruntime import quantization

    class Rows(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = _batches(x, model.graph.input[0].name)

        def get_next(self) -> Any:
            return next(self.batches, None)

    named = onnx.ModelProto()
    named.CopyFrom(model)
    for number, node in enumerate(named.graph.node):
        node.name = f"{number}/{node.op_type}"
    said = logging.getLogger()
    level = said.level
    said.setLevel(logging.ERROR)  # it advises another pass, to the root logger, whatever it is given
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            quantization.quantize_static(
                named,
                file,
                Rows(),
                quant_format=quantization.QuantFormat.QDQ,
                nodes_to_quantize=[named.graph.node[number].name for number in chosen],
                per_channel=True,
                # 7 bits of weight: with 8, products of two pairs overflow 16 bits on x86 without VNNI, and devices would answer
                # otherwise than the machine that judged them.
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                # Sums stay in float32: 256 steps of a logit would tie rows that differ.
                extra_options={"OpTypesToExcludeOutputQuantization": list(_WEIGHT_OPS)},
            )
            made = onnx.load(file)
    except Exception as error:  # whatever its passes raise
        raise ArtifactError(
            f"ONNX Runtime cannot quantise this model to int8: {str(error).strip() or type(error).__name__}"
        ) from None
    finally:
        said.setLevel(level)
    # It quantises values, not edges: whatever else takes one is to have it as it was, heads apart above all.
    inputs = {tuple(node.output): node.input for number, node in enumerate(model.graph.node) if number not in chosen}
    for node in made.graph.node:
        node.name = ""
        if tuple(node.output) in inputs:
            node.input[:] = inputs[tuple(node.output)]
    return made


def _batches(x: F32, name: str) -> Iterator[dict[str, F32]]:
    number_M = np.linspace(0, len(x) - 1, min(len(x), NUM_RANGE_ROWS)).astype(np.int64)
    for start in range(0, len(number_M), BATCH_ROWS):
        yield {name: np.ascontiguousarray(x[number_M[start : start + BATCH_ROWS]], np.float32)}
