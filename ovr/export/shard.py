"""One shard as an ONNX model: features (B, D) -> calibrated probabilities (B, S). Knows nothing of torch or of other shards.

B = batch, D = features, S = heads of one shard
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from ovr.core.onnx_file import SHARD_OPS
from ovr.errors import ArtifactError
from ovr.export.check import check_structure
from ovr.export.graph import FEATURES, IR_VERSION, OPSET, PROB
from ovr.export.head import WEIGHT_NAMES, check_weights
from ovr.export.heads_graph import HeadsGraph, Stack, blank


def shard_model(kind: str, stack: Stack, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Return the model with input `features` (B, D) and output `prob` (B, S).

    Args:
        kind: "linear" or "mlp".
        stack: weights (S, ...) with their calibration folded in.
        metadata: goes into `metadata_props`, beside `ovr.kind`.
    """
    num_heads = len(stack["bias"])
    whole_blocks = blank(stack, num_heads)
    for name, value in stack.items():
        whole_blocks[name][:num_heads] = value
    heads = HeadsGraph(FEATURES)
    heads.first(heads.node("Sigmoid", [heads.logits(kind, whole_blocks)], "padded_prob"), num_heads, PROB)
    num_features = stack[WEIGHT_NAMES[kind][0]].shape[-1]
    graph = helper.make_graph(
        heads.nodes,
        "ovr_shard",
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", num_features])],
        [helper.make_tensor_value_info(PROB, TensorProto.FLOAT, ["batch", num_heads])],
        heads.initializers,
    )
    model = helper.make_model(graph, producer_name="ovr", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, {"ovr.kind": kind, **metadata})
    return model


def shard_metadata(*, first_column: int, backbone_sha256: str) -> dict[str, str]:
    """Return what a shard's ONNX file says of itself; the manifest of its bundle says more."""
    return {
        "ovr.first_column": str(first_column),
        "ovr.backbone_sha256": backbone_sha256,
        "ovr.output": "prob: calibrated probabilities in [0, 1] that the row is of the class of each column from first_column on",
    }


def shard_file(model: onnx.ModelProto, *, what: str) -> bytes:
    """Return the serialised shard if it may be served.

    Raises:
        ArtifactError: it may not.
    """
    return check_structure(model, allowed_ops=SHARD_OPS, what=what)


def check_stack(kind: str, stack: Stack) -> None:
    """Raise ArtifactError unless the weights are those of heads of this kind, all finite."""
    check_weights(kind, {name: value[0] for name, value in stack.items()})
    for name, value in stack.items():
        if not np.isfinite(value).all():
            head = int(np.argwhere(~np.isfinite(value))[0][0])
            raise ArtifactError(f"a head's {name} holds {value[head][~np.isfinite(value[head])][0]}; every weight must be finite")
