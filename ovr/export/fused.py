"""All heads and the backbone as one ONNX model: raw rows (B, *shape) -> calibrated probabilities (B, K). Knows nothing of torch.

Generated from the backbone's and the heads' own files. All heads of a kind are one Gemm. Its columns are padded to a fixed block,
so that replacing a head, or adding one within the block, keeps every shape, and with it kernels and bits of all other answers.

B = batch, D = features, K = heads, H = hidden units of one head, P = heads padded to blocks
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ovr.core.artifact import ModelCard
from ovr.core.files import canonical_json
from ovr.errors import ArtifactError
from ovr.export.graph import FEATURES, IR_VERSION, OPSET, PROB, renamed
from ovr.export.head import head_constants, metadata_of

COLUMN_BLOCK = 32  # columns that the widest CPU kernels (AVX-512) take at once; 64 costs 0.3 us more a row at K = 10
CARD_KEY = "ovr.card"
_FEATURES = f"heads/{FEATURES}"

Constants = dict[str, NDArray[np.float32]]


def fused_model(backbone: onnx.ModelProto, heads: Sequence[onnx.ModelProto], card: ModelCard) -> onnx.ModelProto:
    """Return the model with input `card.input.name` (B, *shape) and output `prob` (B, K), and the card in `ovr.card`.

    Args:
        backbone: with output `features`.
        heads: as `head_model` built them, in column order.

    Raises:
        ArtifactError: as many heads as classes are not given; a head is of another class, version, backbone or feature count.
    """
    parts = _checked_parts(backbone, heads, card)
    builder = _Builder()
    groups: dict[tuple[str, int], list[int]] = {}
    for column, (kind, constants) in enumerate(parts):
        groups.setdefault((kind, len(constants["weight"][0]) if kind == "mlp" else 0), []).append(column)
    logits, offset, slots = [], 0, np.empty(len(parts), np.int64)
    for (kind, _), columns in groups.items():
        stacked = _stack([_with_calibration_folded_in(parts[column][1]) for column in columns])
        logits.append(builder.linear(stacked) if kind == "linear" else builder.mlp(stacked))
        slots[columns] = offset + np.arange(len(columns))
        offset += len(stacked["bias"])
    logit = logits[0] if len(logits) == 1 else builder.node("Concat", logits, "logit", axis=1)
    # On the padded columns: the vectorised kernel may treat the end of an array otherwise than its middle.
    prob = builder.node("Sigmoid", [logit], "padded_prob")
    if len(groups) == 1:
        bounds = [builder.constant(name, np.array([value])) for name, value in (("start", 0), ("end", len(parts)), ("axis", 1))]
        builder.nodes.append(helper.make_node("Slice", [prob, *bounds], [PROB]))
    else:
        builder.nodes.append(helper.make_node("Gather", [prob, builder.constant("slots", slots)], [PROB], axis=1))

    trunk = renamed(backbone, lambda name: _FEATURES if name == FEATURES else name)
    graph = helper.make_graph(
        [*trunk.graph.node, *builder.nodes],
        "ovr_fused",
        trunk.graph.input,
        [helper.make_tensor_value_info(PROB, TensorProto.FLOAT, ["batch", len(parts)])],
        [*trunk.graph.initializer, *builder.initializers],
    )
    model = helper.make_model(graph, producer_name="ovr", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, {CARD_KEY: canonical_json(card.to_json()).decode()})
    return model


def _checked_parts(backbone: onnx.ModelProto, heads: Sequence[onnx.ModelProto], card: ModelCard) -> list[tuple[str, Constants]]:
    if len(heads) != len(card.taxonomy):
        raise ArtifactError(f"{len(heads)} heads for {len(card.taxonomy)} classes; expected one a class")
    num_features = backbone.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    parts = []
    for spec, version, head in zip(card.taxonomy, card.head_versions, heads, strict=True):
        said = metadata_of(head)
        expected = {"ovr.class_id": spec.id, "ovr.version": str(version), "ovr.backbone_sha256": card.backbone_sha256}
        for key, value in expected.items():
            if said.get(key) != value:
                raise ArtifactError(
                    f"the head in the column of class {spec.id!r} says {key} = {said.get(key)!r}; expected {value!r}"
                )
        kind, constants = head_constants(head)
        got = constants["weight" if kind == "linear" else "hidden_weight"].shape[1]
        if got != num_features:
            raise ArtifactError(f"head {spec.id!r} takes {got} features; the backbone gives {num_features}")
        parts.append((kind, constants))
    return parts


def _with_calibration_folded_in(constants: Constants) -> Constants:
    """Return the weights of the head whose plain logit is scale * logit + calibration_bias: two nodes less for each answer."""
    scale, bias = (constants[name].astype(np.float64) for name in ("scale", "calibration_bias"))
    folded = {name: value for name, value in constants.items() if name not in ("scale", "calibration_bias")}
    folded["weight"] = (scale * constants["weight"]).astype(np.float32)
    folded["bias"] = (scale * constants["bias"] + bias).astype(np.float32)
    return folded


def _stack(heads: list[Constants]) -> Constants:
    """Return each constant with a leading axis over the heads, padded with zeros to a multiple of the block."""
    padded = -(-len(heads) // COLUMN_BLOCK) * COLUMN_BLOCK
    stacked = {}
    for name, first in heads[0].items():
        stacked[name] = np.zeros((padded, *first.shape), np.float32)
        np.stack([head[name] for head in heads], out=stacked[name][: len(heads)])
    return stacked


class _Builder:
    """Nodes and initialisers of the heads' part, under names that begin with `heads/`."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), f"heads/{name}"))
        return f"heads/{name}"

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"heads/{output}"], **attributes))
        return f"heads/{output}"

    def linear(self, heads: Constants) -> str:
        """Add calibrated logits (B, P) of linear heads."""
        weight = self.constant("linear/weight", heads["weight"][:, 0])
        bias = self.constant("linear/bias", heads["bias"][:, 0])
        return self.node("Gemm", [_FEATURES, weight, bias], "linear/logit", transB=1)

    def mlp(self, heads: Constants) -> str:
        """Add calibrated logits (B, P) of heads with H hidden units each: one Gemm, a product by entries, a sum over H."""
        padded, hidden = heads["hidden_bias"].shape
        name = f"mlp{hidden}"
        weight = self.constant(f"{name}/hidden_weight", heads["hidden_weight"].reshape(padded * hidden, -1))
        bias = self.constant(f"{name}/hidden_bias", heads["hidden_bias"].reshape(-1))
        flat = self.node("Gemm", [_FEATURES, weight, bias], f"{name}/hidden_sum", transB=1)
        units = self.node("Relu", [flat], f"{name}/hidden")
        shape = self.constant(f"{name}/shape", np.array([-1, padded, hidden]))
        grouped = self.node("Reshape", [units, shape], f"{name}/grouped")
        product = self.node("Mul", [grouped, self.constant(f"{name}/weight", heads["weight"][:, 0])], f"{name}/product")
        axes = self.constant(f"{name}/axes", np.array([2]))
        total = self.node("ReduceSum", [product, axes], f"{name}/sum", keepdims=0)
        return self.node("Add", [total, self.constant(f"{name}/bias", heads["bias"][:, 0])], f"{name}/logit")
