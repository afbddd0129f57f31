"""One head as an ONNX model: features (B, D) -> calibrated probability (B, 1). Knows nothing of torch or of other heads.

Built node by node: well under a millisecond a head, where an exporter takes half a second. The initialisers are named, so that
replacing `scale` and `calibration_bias` (those of another kind of calibration: see `calibrated`) recalibrates a head without
touching its weights.

B = batch, D = features, H = hidden units
"""

import json
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ovr.core.artifact import Calibration, HeadArtifact
from ovr.errors import ArtifactError
from ovr.export.calibrated import LOOKUP, beta_nodes, calibration_kind, constants_of, isotonic_nodes, weights_of
from ovr.export.graph import FEATURES, PROB, Nodes

OPSET = 17
IR_VERSION = 8
# What `head_weights` of each kind of head gives.
WEIGHT_NAMES = {"linear": ("weight", "bias"), "mlp": ("hidden_weight", "hidden_bias", "weight", "bias")}


def head_metadata(head: HeadArtifact) -> dict[str, str]:
    """Return what a head's ONNX file says of itself; `head.json` in a bundle says more."""
    return {
        "ovr.class_id": head.class_id,
        "ovr.version": str(head.version),
        "ovr.backbone_sha256": head.backbone_sha256,
        "ovr.calibration": json.dumps(head.calibration.to_json(), sort_keys=True),
        "ovr.threshold": repr(head.threshold),
        "ovr.output": "prob: calibrated probability in [0, 1] that the row is of this class",
    }


def head_model(
    kind: str, weights: Mapping[str, NDArray[np.float32]], calibration: Calibration, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the model of one head and its calibration, with input `features` and output `prob`.

    Args:
        kind: "linear" (one Gemm) or "mlp" (Gemm, Relu, Gemm).
        weights: weight (1, D) and bias (1,); for "mlp" hidden_weight (H, D), hidden_bias (H,), weight (1, H) and bias (1,).
        metadata: goes into `metadata_props`, beside `ovr.kind`.

    Raises:
        ArtifactError: another kind; weights that are missing, unknown, of the wrong shape or not finite; a calibration that is not.
    """
    check_weights(kind, weights)
    constants = {**weights, **constants_of(calibration)}
    nodes, features = [], FEATURES
    if kind == "mlp":
        nodes += [
            helper.make_node("Gemm", [FEATURES, "hidden_weight", "hidden_bias"], ["hidden_sum"], transB=1),
            helper.make_node("Relu", ["hidden_sum"], ["hidden"]),
        ]
        features = "hidden"
    nodes.append(helper.make_node("Gemm", [features, "weight", "bias"], ["logit"], transB=1))
    initializers = [numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name) for name, value in constants.items()]
    if calibration.is_affine:
        nodes += [
            helper.make_node("Mul", ["logit", "scale"], ["scaled_logit"]),
            helper.make_node("Add", ["scaled_logit", "calibration_bias"], ["calibrated_logit"]),
            helper.make_node("Sigmoid", ["calibrated_logit"], [PROB]),
        ]
    else:
        calibrated = Nodes("")
        add_nodes = beta_nodes if calibration.kind == "beta" else isotonic_nodes
        add_nodes(calibrated, "logit", [constants], PROB)
        nodes += calibrated.nodes
        initializers = initializers[: len(weights)] + calibrated.initializers
    num_features = constants[WEIGHT_NAMES[kind][0]].shape[1]
    graph = helper.make_graph(
        nodes,
        "ovr_head",
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", num_features])],
        [helper.make_tensor_value_info(PROB, TensorProto.FLOAT, ["batch", 1])],
        initializers,
    )
    model = helper.make_model(graph, producer_name="ovr", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, {"ovr.kind": kind, **metadata})
    return model


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return a model's `metadata_props`."""
    return {entry.key: entry.value for entry in model.metadata_props}


def head_constants(model: onnx.ModelProto) -> tuple[str, dict[str, NDArray[np.float32]]]:
    """Return the kind of a model that `head_model` built, and what it is made of: the weights, and those of its calibration, which
    are scale and calibration_bias, or what `calibrated.CONSTANTS` names.

    Raises:
        ArtifactError: it is no such model.
    """
    kind = metadata_of(model).get("ovr.kind", "")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants = {name: value for name, value in constants.items() if not name.startswith(LOOKUP)}
    check_weights(kind, weights_of(constants))
    calibration_kind(constants)
    return kind, constants


def check_weights(kind: str, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ArtifactError unless `weights` are those of one head of this kind."""
    if kind not in WEIGHT_NAMES:
        raise ArtifactError(f"head kind is {kind!r}; expected one of {', '.join(map(repr, WEIGHT_NAMES))}")
    if set(weights) != set(WEIGHT_NAMES[kind]):
        raise ArtifactError(f"a {kind} head has the weights {sorted(weights)}; expected {sorted(WEIGHT_NAMES[kind])}")
    shapes = {name: weights[name].shape for name in WEIGHT_NAMES[kind]}
    first = shapes[WEIGHT_NAMES[kind][0]]
    num_units = first[0] if first else 0
    expected = {"weight": (1, first[-1] if kind == "linear" and first else num_units), "bias": (1,)}
    if kind == "mlp":
        expected |= {"hidden_weight": (num_units, first[-1] if first else 0), "hidden_bias": (num_units,)}
    if shapes != expected or 0 in first:
        raise ArtifactError(f"a {kind} head has weights of shapes {shapes}; expected {expected}")
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise ArtifactError(f"a head's {name} holds {value[~np.isfinite(value)][0]}; every weight must be finite")
