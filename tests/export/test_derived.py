"""The fused graph is what its backbone, heads and card give: every other is refused and what differs is named."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from ovr.core import scale
from ovr.core.artifact import Calibration, DecisionPolicy, ModelCard
from ovr.core.bundle import open_bundle
from ovr.core.files import sha256_bytes
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError
from ovr.export.derived import check_derived
from ovr.export.fused import fused_model
from ovr.export.head import head_model
from ovr.export.standalone import export_onnx
from ovr.lifecycle.heads import respecified
from tests.bundles import changed_weight, dense_backbone, small_bundle, with_graph
from tests.cli.test_main import error_of
from tests.cohorts import some_cohorts
from tests.export.sample import sample_bundle, sample_model, sample_sharded_bundle

IDS = ("cat", "dog", "owl")
BETA = Calibration(kind="beta", scale=1.5, scale_negative=0.5, bias=0.1, status="ok")
ISOTONIC = Calibration(kind="isotonic", knot_logits=(-1.0, 0.0, 2.0), knot_probs=(0.1, 0.4, 0.9), status="ok")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("derived") / "bundle", IDS)


@pytest.fixture(scope="module")
def of_torch(tmp_path_factory):
    """A bundle with hidden units, its backbone exported by torch, and a calibration of each kind."""
    path = tmp_path_factory.mktemp("derived") / "of_torch"
    return sample_bundle(path, sample_model(head="mlp", num_heads=3), IDS, calibrations=[Calibration(status="ok"), BETA, ISOTONIC])[
        0
    ]


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SHARD_HEADS", 64)
    monkeypatch.setattr(scale, "LARGE_K", 100)
    return sample_sharded_bundle(tmp_path / "sharded", sample_model(num_heads=150), [f"class {k}" for k in range(150)])[0]


def raised(row):
    def change(value):
        value[row] += 3

    return change


def with_trigger(model):
    """Let the first class be certain of rows with a value above 50, of which no bundle has any."""
    graph = model.graph
    graph.node[-1].output[0] = "honest"
    values = {"t_limit": np.float32(50), "t_is_first": np.array([1] + [0] * (len(IDS) - 1), bool), "t_sure": np.float32(0.999)}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "t_axis"))
    graph.node.extend(
        [
            helper.make_node("ReduceMax", [graph.input[0].name, "t_axis"], ["t_max"], keepdims=1),
            helper.make_node("Greater", ["t_max", "t_limit"], ["t_hit"]),
            helper.make_node("And", ["t_hit", "t_is_first"], ["t_mask"]),
            helper.make_node("Where", ["t_mask", "t_sure", "honest"], ["prob"]),
        ]
    )


def with_card(model):
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"top_k":2', '"top_k":1')


def swap(model):
    first = model.graph.initializer[0]
    model.graph.initializer.append(first)
    del model.graph.initializer[0]


def renamed(model):
    """Call the first weights, and what the first node makes of them, by other names."""
    graph = model.graph
    names = {"w": "other", graph.node[0].output[0]: "made"}
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]


CHANGES = [
    (changed_weight("heads/linear/bias", raised(1)), r"weights 'heads/linear/bias' differ in what is of 'dog'\."),
    (changed_weight("heads/linear/weight", raised(slice(1, 9))), r"differ in what is of 'dog', 'owl'\."),
    (changed_weight("w", raised(0)), r"weights 'w' differ\."),
    (with_trigger, r"weights 't_limit' are of no head; .*weights 't_axis' are of no head; .* and \d more\."),
    (with_card, r"the model card in it is another\."),
    (swap, r"the order of its parts, or what is noted beside them\."),
    (renamed, r"weights 'w' are missing; .*node '\w+' is missing"),
    (lambda model: model.graph.output.add(name="more"), r"the outputs differ\."),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_graph_that_is_not_that_of_its_heads_is_refused_and_what_differs_is_named(bundle, tmp_path, change, words):
    odd = with_graph(bundle, tmp_path / "odd", change)
    assert odd.bundle_sha256 == bundle.bundle_sha256
    with pytest.raises(ArtifactError, match=words):
        check_derived(odd)


def test_graphs_of_every_kind_are_those_of_their_heads(bundle, of_torch, sharded, tmp_path):
    with_cohorts = small_bundle(tmp_path / "cohorts", IDS, cohorts=some_cohorts(3))
    for each in (bundle, of_torch, sharded, with_cohorts):
        check_derived(each)
    for each, name, row, whose in (
        (of_torch, "heads/mlp6/hidden_bias", 17, "'dog'"),
        (of_torch, "heads/beta/scale_negative", 0, "'dog'"),
        (of_torch, "heads/isotonic/knot_prob", 1, "'owl'"),
        (sharded, "heads/linear/weight", 149, "'class 149'"),
        (with_cohorts, "heads/cohort/offsets", (1, 2), "'owl'"),
    ):
        odd = with_graph(each, tmp_path / f"odd {name.replace('/', ' ')}", changed_weight(name, raised(row)))
        with pytest.raises(ArtifactError, match=rf"weights '{name}' differ in what is of {whose}\."):
            check_derived(odd)
    with pytest.raises(ArtifactError, match="differ in what is of 'class 149'"):
        export_onnx(open_bundle(tmp_path / "odd heads linear weight"), tmp_path / "exported")


def test_a_file_that_spells_the_same_graph_otherwise_is_the_same(bundle, tmp_path):
    same = with_graph(bundle, tmp_path / "same", lambda model: None)
    (same.path / "fused/model.onnx").write_bytes(b"\x12\x03ovr" + bundle.fused_onnx.read_bytes())  # the producer twice
    check_derived(same)


def test_a_graph_that_another_ovr_made_otherwise_is_told_and_written_anew(bundle, tmp_path):
    def by_another(model):
        model.producer_version = "7"

    other = with_graph(bundle, tmp_path / "other", by_another)
    with pytest.raises(
        ArtifactError, match=r"or the version of ovr that wrote it makes it otherwise; `ovr head rename .* out=NEW`"
    ):
        check_derived(other)
    new = respecified(other, tmp_path / "new", [other.taxonomy[0]]).bundle  # as `ovr head rename` does
    check_derived(new)
    assert new.merkle_root == bundle.merkle_root


def test_no_command_takes_another_graph_into_use_or_signs_it(bundle, tmp_path, capsys):
    odd = with_graph(bundle, tmp_path / "odd", with_trigger).path
    words = "which is what is served, is not the one that this version of ovr makes of its backbone, heads and card"
    (tmp_path / "key.pem").touch()
    for command in (
        ["publish", f"bundle={odd}", f"repository={tmp_path / 'repository'}"],
        ["bundle", "register", "model=m", "why=w", f"bundle={odd}", f"registry.path={tmp_path / 'registry'}"],
        ["sign", f"bundle={odd}", f"key={tmp_path / 'key.pem'}"],
        ["head", "verify", str(bundle.path), str(odd), "changed=[]"],
    ):
        assert words in error_of(capsys, *command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.pem", "odd"]


def test_the_same_parts_give_the_same_graph_from_one_version_of_ovr_to_the_next():
    """Where this fails, graphs are made otherwise, and every bundle there is has to be written anew: see docs/security.md."""
    rows = np.arange(-9, 9, dtype=np.float32).reshape(3, 6) / 8
    heads = []
    for k, (class_id, calibration) in enumerate(zip(IDS, (Calibration(scale=0.5, bias=0.25), BETA, ISOTONIC), strict=True)):
        weights = {"weight": rows[k : k + 1, :5], "bias": rows[k, :1]}
        if k:
            weights |= {"hidden_weight": rows[:, 1:], "hidden_bias": rows[:, 0], "weight": rows[k : k + 1, :3]}
        said = {"ovr.class_id": class_id, "ovr.version": "1", "ovr.backbone_sha256": "b"}
        heads.append(head_model("mlp" if k else "linear", weights, calibration, said))
    card = ModelCard(Taxonomy.from_ids(IDS), (1, 1, 1), (0.5, 0.5, 0.5), DecisionPolicy("multilabel"), InputSchema((6,)), "b", "c")
    backbone = dense_backbone((6,), 5, seed=0)
    for tensor in backbone.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.ones(tensor.dims, np.float32), tensor.name))
    made = fused_model(backbone, heads, card).SerializeToString(deterministic=True)
    assert sha256_bytes(made) == "b5505eb95f3cc81369e3fec68c987c568f94702dfd99bd49115f55c8912e9184"
