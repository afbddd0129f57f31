"""Whether a bundle's fused graph is the one that its backbone, heads and card give: it is made anew, and the two are compared.

The fused graph is what is served, and the bundle's own digest, its Merkle root and the owners' signatures of heads leave it out:
that its columns are those heads follows from nothing else. Knows nothing of torch or of answers: a graph with other nodes in it may
give the right ones for every row at hand.

P = heads padded to blocks
"""

import numpy as np
import onnx
from onnx import numpy_helper

from ovr.core.bundle import ModelBundle
from ovr.core.files import sha256_bytes, sha256_file
from ovr.core.heads import HeadColumns
from ovr.core.shards import read_weights
from ovr.errors import ArtifactError
from ovr.export.fused import fused_model, fused_model_of_stack
from ovr.export.heads_graph import Stack, blank, folded, num_padded
from ovr.export.stored import parsed, stored_models, stored_weights


def check_derived(bundle: ModelBundle) -> None:
    """Raise ArtifactError unless the bundle's fused graph, if it has one, is what this ovr makes of its backbone, heads and card.

    Models are compared, as protobuf reads them, not how their files are spelled. What differs is named: weights with the classes
    whose they are, nodes, the card. A graph that another version of ovr made in another way is refused too: that it is of the same
    heads cannot be told from its answers.
    """
    if not bundle.has_fused:
        return
    try:
        made = _made_anew(bundle)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"bundle {bundle.path}: its backbone and heads give no fused graph: {error}") from None
    expected = made.SerializeToString(deterministic=True)
    if sha256_file(bundle.fused_onnx) == sha256_bytes(expected):
        return
    found = parsed(bundle.fused_onnx.read_bytes(), what=f"the fused graph of bundle {bundle.path}")
    if found.SerializeToString(deterministic=True) == expected:
        return
    problems = _differences(bundle, made, found)
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    raise ArtifactError(
        f"bundle {bundle.path}: its fused graph, which is what is served, is not the one that this version of ovr makes of its "
        f"backbone, heads and card: {'; '.join(problems[:5])}{more}. Either it was changed after it was written, or the version of "
        "ovr that wrote it makes it otherwise; `ovr head rename bundle=BUNDLE class=ID name=NAME out=NEW` writes the bundle with "
        "the graph of its heads"
    )


def _made_anew(bundle: ModelBundle) -> onnx.ModelProto:
    backbone = parsed(bundle.backbone_onnx.read_bytes(), what="the backbone")
    heads = bundle.heads
    if not isinstance(heads, HeadColumns):
        return fused_model(backbone, list(stored_models(bundle, range(len(heads)))), bundle.card)
    every: Stack = {}
    for shard in bundle.shards:
        here = heads.calibrations[shard.columns]
        stack = folded(read_weights(bundle.path, shard), here.scale_K, here.bias_K)
        every = every or blank(stack, len(heads))
        for name, value in stack.items():
            every[name][shard.columns] = value
    return fused_model_of_stack(backbone, heads.kind, every, bundle.card)


def _differences(bundle: ModelBundle, made: onnx.ModelProto, found: onnx.ModelProto) -> list[str]:
    """Return what differs, in words; at least one."""
    problems = []
    ours, theirs = ({tensor.name: tensor for tensor in model.graph.initializer} for model in (made, found))
    for name in dict.fromkeys((*ours, *theirs)):
        what = f"weights {name[:80]!r}"
        if name in ours and name in theirs and ours[name] != theirs[name]:
            problems.append(f"{what} differ{_whose(bundle, name, ours[name], theirs[name])}")
        elif (name in ours) != (name in theirs):
            problems.append(f"{what} are {'missing' if name in ours else 'of no head'}")
    nodes, others = ({tuple(node.output): node for node in model.graph.node} for model in (made, found))
    for outputs in dict.fromkeys((*nodes, *others)):
        what = f"node {', '.join(outputs)[:80]!r}"
        if outputs in nodes and outputs in others and nodes[outputs] != others[outputs]:
            problems.append(f"{what} differs")
        elif (outputs in nodes) != (outputs in others):
            problems.append(f"{what} is {'missing' if outputs in nodes else 'of no head'}")
    for field, what in (("input", "the inputs differ"), ("output", "the outputs differ")):
        if list(getattr(made.graph, field)) != list(getattr(found.graph, field)):
            problems.append(what)
    if list(made.metadata_props) != list(found.metadata_props):
        problems.append("the model card in it is another")
    return problems or ["the order of its parts, or what is noted beside them"]


def _whose(bundle: ModelBundle, name: str, ours: onnx.TensorProto, theirs: onnx.TensorProto) -> str:
    """Return of which classes the entries are that differ, in words; "" where that cannot be told."""
    one, other = (numpy_helper.to_array(tensor) for tensor in (ours, theirs))
    if one.shape != other.shape or one.dtype != other.dtype or not one.ndim:
        return ""
    differ = one != other
    slots = _slots(bundle)
    if name.startswith("heads/cohort/") and one.ndim == 2:
        ids = [each for group in slots.values() for each in [*group, *[None] * (num_padded(len(group)) - len(group))]]
        places = np.flatnonzero(differ.any(axis=0)).tolist()
    else:
        ids = next((list(group) for prefix, group in slots.items() if name.startswith(prefix)), [])
        rows = np.flatnonzero(differ.reshape(len(differ), -1).any(axis=1))
        places = sorted({*(rows * num_padded(len(ids)) // len(one)).tolist()}) if ids else []
    named = [repr(ids[place]) for place in places if place < len(ids) and ids[place] is not None]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return f" in what is of {', '.join(named[:5])}{more}" if named else ""


def _slots(bundle: ModelBundle) -> dict[str, list[str]]:
    """Return the classes in the order in which the fused graph has their weights, by how the names of these begin."""
    slots: dict[str, list[str]] = {}
    for column, kind, weights in stored_weights(bundle, range(len(bundle.heads))):
        name = "linear" if kind == "linear" else f"mlp{len(weights['hidden_bias'])}"
        slots.setdefault(f"heads/{name}/", []).append(bundle.taxonomy.ids[column])
    for head in () if bundle.shards else bundle.heads:
        if not head.calibration.is_affine:
            slots.setdefault(f"heads/{head.calibration.kind}/", []).append(head.class_id)
    return slots
