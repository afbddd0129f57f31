import json

import numpy as np
import onnx
import pytest

from ovr.core.artifact import DecisionPolicy, HeadArtifact, ModelCard
from ovr.core.files import sha256_bytes
from ovr.core.onnx_file import GRAPH_OPS
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError
from ovr.export.backbone import backbone_model
from ovr.export.check import check_structure, run
from ovr.export.fused import fused_model
from ovr.export.head import head_metadata, head_model
from ovr.export.heads_graph import COLUMN_BLOCK
from tests.export.sample import HEADS, SHAPE, sample_calibrations, sample_model, sample_rows, torch_prob

INPUT = InputSchema(SHAPE)


@pytest.fixture(scope="module")
def trunk():
    """A model whose backbone all tests here share, and its ONNX export."""
    model = sample_model(backbone="cnn").eval()
    return model, backbone_model(model, INPUT)


def card(backbone, num_heads, version=1):
    return ModelCard(
        taxonomy=Taxonomy.from_ids(f"class {k}" for k in range(num_heads)),
        head_versions=(version,) * num_heads,
        thresholds=(0.5,) * num_heads,
        policy=DecisionPolicy(),
        input=INPUT,
        backbone_sha256=sha256_bytes(backbone.SerializeToString(deterministic=True)),
        bundle_sha256="0" * 64,
    )


def head_protos(module, calibrations, the_card):
    return [
        head_model(
            module.kind,
            module.head_weights(k),
            calibration,
            head_metadata(
                HeadArtifact(
                    the_card.taxonomy[k].id, the_card.head_versions[k], the_card.backbone_sha256, module.kind, calibration, 0.5
                )
            ),
        )
        for k, calibration in enumerate(calibrations)
    ]


def fuse(trunk, kind, num_heads, seed=0):
    """Return the model with these heads, the calibrations, the head protos, the card and the fused graph's bytes."""
    model, backbone = trunk
    model.head = HEADS[kind](model.backbone.num_features, num_heads)
    calibrations, the_card = sample_calibrations(num_heads, seed), card(backbone, num_heads)
    protos = head_protos(model.head, calibrations, the_card)
    return calibrations, protos, the_card, serialised(fused_model(backbone, protos, the_card))


def serialised(proto):
    return check_structure(proto, allowed_ops=GRAPH_OPS, what="fused")


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("num_heads", [1, 2, 10, COLUMN_BLOCK, COLUMN_BLOCK + 1])
def test_it_gives_torchs_calibrated_probabilities(trunk, kind, num_heads):
    calibrations, _, _, data = fuse(trunk, kind, num_heads)
    x = sample_rows()
    prob_NK = run(data, x)
    assert prob_NK.shape == (len(x), num_heads)
    assert prob_NK.dtype == np.float32
    np.testing.assert_allclose(prob_NK, torch_prob(trunk[0], x, calibrations), atol=1e-6)


def test_heads_of_several_kinds_come_out_in_column_order(trunk):
    model, backbone = trunk
    the_card, calibrations, x = card(backbone, 6), sample_calibrations(6), sample_rows()
    protos, expected_NK = [None] * 6, np.empty((len(x), 6))
    for kind, columns in (("linear", (0, 3, 4)), ("mlp", (1, 2, 5))):
        model.head = HEADS[kind](model.backbone.num_features, 6)
        candidates, prob_NK = head_protos(model.head, calibrations, the_card), torch_prob(model, x, calibrations)
        for k in columns:
            protos[k], expected_NK[:, k] = candidates[k], prob_NK[:, k]
    np.testing.assert_allclose(run(serialised(fused_model(backbone, protos, the_card)), x), expected_NK, atol=1e-6)


@pytest.mark.parametrize("kind", HEADS)
def test_a_rows_bits_do_not_depend_on_its_batch(trunk, kind):
    _, _, _, data = fuse(trunk, kind, 10)
    x = sample_rows(130)
    whole = run(data, x)
    for batch_size in (1, 2, 3, 7, 16, 64, 129):
        assert np.array_equal(run(data, x, batch_size=batch_size), whole), batch_size


@pytest.mark.parametrize("kind", HEADS)
def test_replacing_a_head_leaves_the_bits_of_all_others(trunk, kind):
    _, protos, the_card, before = fuse(trunk, kind, 10)
    _, others, _, _ = fuse(trunk, kind, 10, seed=1)
    protos[3] = others[3]
    after = serialised(fused_model(trunk[1], protos, the_card))
    x = sample_rows(40)
    for batch_size in (1, 40):
        same = (run(before, x, batch_size=batch_size) == run(after, x, batch_size=batch_size)).all(axis=0)
        assert same.tolist() == [k != 3 for k in range(10)]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("more", [11, COLUMN_BLOCK, COLUMN_BLOCK + 1, 3 * COLUMN_BLOCK])
def test_adding_heads_leaves_the_bits_of_all_others(trunk, kind, more):
    model, backbone = trunk
    model.head = HEADS[kind](model.backbone.num_features, more)
    calibrations, x = sample_calibrations(more), sample_rows(40)
    probs = []
    for num_heads in (10, more):
        the_card = card(backbone, num_heads)
        data = serialised(fused_model(backbone, head_protos(model.head, calibrations[:num_heads], the_card), the_card))
        probs.append([run(data, x, batch_size=batch_size)[:, :10] for batch_size in (1, 40)])
    assert np.array_equal(probs[0], probs[1])


def test_the_card_travels_inside(trunk):
    _, _, the_card, data = fuse(trunk, "linear", 3)
    said = {entry.key: entry.value for entry in onnx.load_model_from_string(data).metadata_props}
    assert ModelCard.from_json(json.loads(said["ovr.card"])) == the_card


def test_it_is_in_versions_that_runtimes_take_and_names_its_ends(trunk):
    model = onnx.load_model_from_string(fuse(trunk, "linear", 3)[3])
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (10, [("", 18)])
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "prob"]
    assert sum(node.op_type == "Gemm" and node.input[0] == "heads/features" for node in model.graph.node) == 1


def test_the_same_parts_give_the_same_bytes(trunk):
    _, protos, the_card, data = fuse(trunk, "mlp", 3)
    assert serialised(fused_model(trunk[1], protos, the_card)) == data


def test_too_few_heads_are_refused(trunk):
    _, protos, the_card, _ = fuse(trunk, "linear", 3)
    with pytest.raises(ArtifactError, match="2 heads for 3 classes"):
        fused_model(trunk[1], protos[:2], the_card)


def test_a_head_in_another_classes_column_is_refused(trunk):
    _, protos, the_card, _ = fuse(trunk, "linear", 3)
    with pytest.raises(ArtifactError, match=r"class 'class 0' says ovr\.class_id = 'class 1'; expected 'class 0'"):
        fused_model(trunk[1], [protos[1], protos[0], protos[2]], the_card)


def test_a_head_of_another_version_is_refused(trunk):
    _, protos, _, _ = fuse(trunk, "linear", 3)
    with pytest.raises(ArtifactError, match=r"says ovr\.version = '1'; expected '2'"):
        fused_model(trunk[1], protos, card(trunk[1], 3, version=2))


def test_a_head_of_another_backbone_is_refused(trunk):
    _, protos, the_card, _ = fuse(trunk, "linear", 3)
    other = HeadArtifact("class 1", 1, "f" * 64, "linear", sample_calibrations(1)[0], 0.5)
    protos[1] = head_model("linear", trunk[0].head.head_weights(1), other.calibration, head_metadata(other))
    with pytest.raises(ArtifactError, match=r"class 'class 1' says ovr\.backbone_sha256 = 'ffff"):
        fused_model(trunk[1], protos, the_card)


def test_a_head_of_another_feature_count_is_refused(trunk):
    the_card = card(trunk[1], 2)
    with pytest.raises(ArtifactError, match="head 'class 0' takes 5 features; the backbone gives 16"):
        fused_model(trunk[1], head_protos(HEADS["linear"](5, 2), sample_calibrations(2), the_card), the_card)
