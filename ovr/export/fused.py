"""All heads and the backbone as one ONNX model: raw rows (B, *shape) -> calibrated probabilities (B, K). Knows nothing of torch.

Generated from the backbone's and the heads' own files. All heads of a kind are one Gemm. Its columns are padded to a fixed block,
so that replacing a head, or adding one within the block, keeps every shape, and with it kernels and bits of all other answers.
Affine calibrations are folded into it; the logits of heads with others are gathered from it, and go through nodes of their own.

Where the card has cohorts, there is a second input `cohort`, int64 (B, 1): 0, its default, for the heads' own calibrations.

B = batch, D = features, K = heads, H = hidden units of one head, P = heads padded to blocks, C = cohorts and the pooled one
"""

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ovr.core.artifact import ModelCard
from ovr.core.cohorts import COHORT, POOLED, relative_affine
from ovr.core.files import canonical_json
from ovr.errors import ArtifactError
from ovr.export.calibrated import beta_nodes, calibration_kind, isotonic_nodes, weights_of
from ovr.export.graph import FEATURES, IR_VERSION, OPSET, PROB, renamed
from ovr.export.head import head_constants, metadata_of
from ovr.export.heads_graph import HeadsGraph, Stack, blank, folded, num_padded

CARD_KEY = "ovr.card"
JOINT = f"heads/{FEATURES}"  # the name of the features in the fused graph
APART = "apart/"  # how the names of heads begin, below `heads/`, that are kept apart from those of their kind

Constants = dict[str, NDArray[np.float32]]


def fused_model(backbone: onnx.ModelProto, heads: Sequence[onnx.ModelProto], card: ModelCard) -> onnx.ModelProto:
    """Return the model with input `card.input.name` (B, *shape) and output `prob` (B, K), and the card in `ovr.card`.

    Args:
        backbone: with output `features`.
        heads: as `head_model` built them, in column order.

    Raises:
        ArtifactError: as many heads as classes are not given; a head is of another class, version, backbone or feature count, or
            with cohorts has no affine calibration.
    """
    return joined(backbone, heads_graph(heads, card, num_features=num_features(backbone)), card)


def heads_graph(heads: Sequence[onnx.ModelProto], card: ModelCard, *, num_features: int, apart: Collection[int] = ()) -> HeadsGraph:
    """Return the part of the fused graph that is the heads: features `heads/features` (B, D) -> `prob` (B, K).

    Args:
        heads: as `head_model` built them, in column order.
        apart: columns whose weights are not among those of the others of their kind, but in a Gemm of their own.

    Raises:
        ArtifactError: as `fused_model`.
    """
    parts = _checked_parts(heads, card, num_features)
    graph = HeadsGraph(JOINT)
    groups: dict[tuple[str, int, bool], list[int]] = {}
    for column, (kind, constants) in enumerate(parts):
        num_units = len(constants["weight"][0]) if kind == "mlp" else 0
        groups.setdefault((kind, num_units, column in apart), []).append(column)
    logits, offset, slots = [], 0, np.empty(len(parts), np.int64)
    for (kind, _, is_apart), columns in groups.items():
        stack = _stack([parts[column][1] for column in columns])
        logits.append(graph.logits(kind, stack, apart=APART if is_apart else ""))
        slots[columns] = offset + np.arange(len(columns))
        offset += len(stack["bias"])
    logit = logits[0] if len(logits) == 1 else graph.node("Concat", logits, "logit", axis=1)
    graph.logit, graph.slot_K = logit, slots
    if card.cohorts is not None:
        if other := [spec.id for spec, (_, constants) in zip(card.taxonomy, parts, strict=True) if not _is_affine(constants)]:
            raise ArtifactError(
                f"cohorts rescale a head's calibrated logit, and {len(other)} heads have a beta or isotonic calibration: "
                f"{', '.join(map(repr, other[:5]))}; expected identity, temperature or platt"
            )
        scale_K, bias_K = (np.concatenate([constants[name] for _, constants in parts]) for name in ("scale", "calibration_bias"))
        factor_CK, offset_CK = relative_affine(card.cohorts, scale_K.astype(np.float64), bias_K.astype(np.float64))
        factor_CP, offset_CP = np.ones((len(factor_CK), offset), np.float32), np.zeros((len(factor_CK), offset), np.float32)
        factor_CP[:, slots], offset_CP[:, slots] = factor_CK, offset_CK
        logit = graph.cohorts(logit, factor_CP, offset_CP)
    # On the padded columns: the vectorised kernel may treat the end of an array otherwise than its middle.
    prob = graph.node("Sigmoid", [logit], "padded_prob")
    probs, calibrated_slots = [prob], slots.copy()
    for kind, add_nodes in (("beta", beta_nodes), ("isotonic", isotonic_nodes)):
        columns = [column for column, (_, constants) in enumerate(parts) if calibration_kind(constants) == kind]
        if columns:
            padded = columns + columns[:1] * (num_padded(len(columns)) - len(columns))
            here = graph.node("Gather", [logit, graph.constant(f"{kind}/columns", slots[padded])], f"{kind}/logit", axis=1)
            probs.append(add_nodes(graph.part(f"{kind}/"), here, [parts[column][1] for column in padded], "prob"))
            calibrated_slots[columns] = offset + np.arange(len(columns))
            offset += len(padded)
    if len(groups) == 1 and len(probs) == 1:
        graph.first(prob, len(parts), PROB)
    else:
        every = prob if len(probs) == 1 else graph.node("Concat", probs, "every_prob", axis=1)
        graph.nodes.append(helper.make_node("Gather", [every, graph.constant("slots", calibrated_slots)], [PROB], axis=1))
    return graph


def fused_model_of_stack(backbone: onnx.ModelProto, kind: str, stack: Stack, card: ModelCard) -> onnx.ModelProto:
    """Return the same of heads of one kind, given as weights with their calibration folded in, padded to whole blocks.

    Raises:
        ArtifactError: the card has cohorts.
    """
    if card.cohorts is not None:
        raise ArtifactError(
            f"the card has a calibration for each value of column {card.cohorts.column!r}; bundles with head shards hold none"
        )
    graph = HeadsGraph(JOINT)
    graph.first(graph.node("Sigmoid", [graph.logits(kind, stack)], "padded_prob"), len(card.taxonomy), PROB)
    return joined(backbone, graph, card)


def num_features(backbone: onnx.ModelProto) -> int:
    """Return D of a backbone whose output is `features` (B, D)."""
    return int(backbone.graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def joined(backbone: onnx.ModelProto, heads: HeadsGraph, card: ModelCard) -> onnx.ModelProto:
    """Return the fused model of a backbone and what `heads_graph` made."""
    trunk = renamed(backbone, lambda name: JOINT if name == FEATURES else name)
    inputs, defaults = list(trunk.graph.input), []
    if card.cohorts is not None:
        # Its own name for the number of rows: without the input there is one, which stands for all.
        inputs.append(helper.make_tensor_value_info(COHORT, TensorProto.INT64, ["cohort_batch", 1]))
        defaults.append(numpy_helper.from_array(np.full((1, 1), POOLED, np.int64), COHORT))
    graph = helper.make_graph(
        [*trunk.graph.node, *heads.nodes],
        "ovr_fused",
        inputs,
        [helper.make_tensor_value_info(PROB, TensorProto.FLOAT, ["batch", len(card.taxonomy)])],
        [*trunk.graph.initializer, *heads.initializers, *defaults],
    )
    model = helper.make_model(graph, producer_name="ovr", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, {CARD_KEY: canonical_json(card.to_json()).decode()})
    return model


def _checked_parts(heads: Sequence[onnx.ModelProto], card: ModelCard, num_features: int) -> list[tuple[str, Constants]]:
    if len(heads) != len(card.taxonomy):
        raise ArtifactError(f"{len(heads)} heads for {len(card.taxonomy)} classes; expected one a class")
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


def _is_affine(constants: Constants) -> bool:
    return calibration_kind(constants) == "affine"


def _stack(heads: list[Constants]) -> Stack:
    """Return the weights of the heads, with those calibrations folded in that are a scale and a bias, padded to whole blocks."""
    every = [weights_of(head) for head in heads]
    plain = {name: np.stack([weights[name] for weights in every]) for name in every[0]}
    affine = [calibration_kind(head) == "affine" for head in heads]
    scale_S = np.array([head["scale"][0] if is_affine else 1.0 for head, is_affine in zip(heads, affine, strict=True)])
    bias_S = np.array([head["calibration_bias"][0] if is_affine else 0.0 for head, is_affine in zip(heads, affine, strict=True)])
    stack = blank(plain, len(heads))
    for name, value in folded(plain, scale_S, bias_S).items():
        stack[name][: len(heads)] = value
    return stack
