"""`ovr export target=edge`: the same bits where it says so, fewer bits only where rows show that no head is the worse for it."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from ovr import EdgePredictor
from ovr.calibrator.beta import Beta
from ovr.calibrator.platt import Platt
from ovr.calibrator.temperature import Temperature
from ovr.cli.main import main
from ovr.core.artifact import DecisionPolicy
from ovr.core.bundle import open_bundle
from ovr.core.files import canonical_json
from ovr.core.shards import npy_bytes
from ovr.decision.decide import decide
from ovr.edge.__main__ import main as edge_main
from ovr.errors import ArtifactError, ConfigError, TaxonomyError
from ovr.export.check import run
from ovr.export.reduced import reduced, reducible
from ovr.export.versions import with_versions
from ovr.lifecycle.edge_export import EdgeOptions, export_edge
from ovr.lifecycle.edge_gate import GateRows, kept_rows, reduce_model
from ovr.lifecycle.edge_heads import GatedHeads, Limits
from ovr.runtime.edge_files import checked_model
from tests.bundles import dense_backbone, forge, small_bundle
from tests.cli.test_main import error_of
from tests.cohorts import some_cohorts
from tests.export.sample import sample_bundle, sample_model, sample_sharded_bundle
from tests.lifecycle.conftest import CLASS_IDS, rows_of, sample_labels, torch_logits

CRUDE = 'a/b, "c"'  # the head that 7 bits a weight are too few for
MANY_IDS = (*CLASS_IDS, *(f"more{k}" for k in range(60)))


def make_bundle(path, class_ids):
    """Linear heads on pixels, of which one has a weight that drowns its others in int8; kept features and labels."""
    model = sample_model(backbone="identity", num_heads=len(class_ids))
    x = rows_of(1)
    x[:, 0, 0, 0] = 0.3  # the normaliser's mean: the weight of this pixel counts for no row
    with torch.no_grad():
        model.head.weight_KD *= 8
        model.head.weight_KD[1, 0] = 4000.0
    logit_NK = torch_logits(model, x)
    target_NK, mask_NK = sample_labels(logit_NK)
    calibrations = Temperature().fit(logit_NK, target_NK, mask_NK)
    calibrations[2] = Platt().fit(logit_NK[:, [2]], target_NK[:, [2]], mask_NK[:, [2]])[0]
    calibrations[3] = Beta().fit(logit_NK[:, [3]], target_NK[:, [3]], mask_NK[:, [3]])[0]
    with torch.no_grad():
        arrays = {"features": model.features(torch.from_numpy(x)).numpy(), "target": target_NK, "mask": mask_NK}
    sample_bundle(path, model, class_ids, calibrations=calibrations, reference_rows=x[:32], calibration_arrays=arrays)
    (path / "signatures").mkdir()
    (path / "signatures" / "bundle.sig").write_text("{}")
    return open_bundle(path), x


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("edge") / "bundle", CLASS_IDS)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """As many heads as a mixture of precisions needs to be smaller than all of them in fp32."""
    return make_bundle(tmp_path_factory.mktemp("many") / "bundle", MANY_IDS)


def test_all_classes_in_fp32_are_the_fused_graph_byte_for_byte_with_its_signature(bundle, tmp_path, capsys):
    bundle, x = bundle
    assert main(["export", f"bundle={bundle.path}", f"out={tmp_path / 'out'}", "target=edge"]) == 0
    assert "4 heads fp32" in capsys.readouterr().out
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"model.onnx", "card.json", "signatures/bundle.sig"}
    assert (tmp_path / "out" / "model.onnx").read_bytes() == bundle.fused_onnx.read_bytes()
    predictor = EdgePredictor(tmp_path / "out")
    assert predictor.card == bundle.card
    assert (predictor.predict_proba(x) == EdgePredictor(bundle.path).predict_proba(x)).all()
    np.save(tmp_path / "x.npy", x[:3])
    assert edge_main([str(tmp_path / "out"), str(tmp_path / "x.npy")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("batch_size", [1, 256])
def test_some_classes_have_the_bits_that_they_have_among_all(bundle, tmp_path, batch_size):
    bundle, x = bundle
    card = export_edge(bundle, tmp_path / "out", EdgeOptions(class_ids=["train", CRUDE]))
    predictor = EdgePredictor(tmp_path / "out")
    assert predictor.card.taxonomy.ids == (CRUDE, "train")
    assert predictor.card.thresholds == tuple(bundle.head(class_id).threshold for class_id in (CRUDE, "train"))
    whole_NK = EdgePredictor(bundle.path).predict_proba(x)
    assert (predictor.predict_proba(x, batch_size=batch_size) == whole_NK[:, [1, 3]]).all()
    assert card["classes"] == [CRUDE, "train"]
    assert not card["same_bytes_as_fused_graph"]
    assert not (tmp_path / "out" / "signatures").exists()  # it says nothing of this file


@pytest.mark.parametrize("refit", [True, False])
def test_a_head_that_int8_makes_worse_stays_in_fp32_with_its_bits_and_is_listed(many, tmp_path, refit):
    bundle, x = many
    card = export_edge(bundle, tmp_path / "out", EdgeOptions(precision="int8", refit=refit, margin=0.05))
    lines = {line["class_id"]: line for line in card["gate"]["heads"]}
    assert {class_id for class_id, line in lines.items() if line["precision"] == "fp32"} == {CRUDE}
    assert card["precision"]["num_heads"] == {"fp32": 1, "int8": 63}
    assert card["precision"]["backbone"] == "fp32"
    assert "raw rows" in card["precision"]["backbone_because"]["reason"]
    assert lines[CRUDE]["average_precision"]["final"] == lines[CRUDE]["average_precision"]["fp32"]
    for line in lines.values():
        ece = line["ece_upper"]
        assert ece["final"] <= ece["fp32"] + 0.05
        assert line["average_precision"]["final"] >= line["average_precision"]["fp32"] - 0.05
        if not line["refitted"]:
            assert ece["without_refit"] == pytest.approx(ece["final"], abs=1e-12)
        # Platt and temperature calibrations are tried, that of a head that stays is not; "train" has a beta calibration.
        assert (ece["with_refit"] is None) is (not refit or line["class_id"] in (CRUDE, "train"))
    got_NK, whole_NK = (EdgePredictor(path).predict_proba(x) for path in (tmp_path / "out", bundle.path))
    assert (got_NK[:, 1] == whole_NK[:, 1]).all()
    others = [k for k in range(64) if k != 1]
    assert (got_NK[:, others] != whole_NK[:, others]).any(axis=0).all()
    num_rows = len(x)  # all of them are known to some head
    assert kept_rows(bundle, range(64)).record["num_rows"] == num_rows
    assert_changes(card["gate"], *(EdgePredictor(path).predict(x).decision for path in (tmp_path / "out", bundle.path)))
    with pytest.raises(ArtifactError, match=r"nothing of this model can be int8 within a margin of 0.01 on \d+ rows: every head"):
        export_edge(bundle, tmp_path / "crude", EdgeOptions(precision="int8", class_ids=[CRUDE]))


def assert_changes(gate, got, whole):
    """Compare what a card says of decisions that changed with those that the predictors make."""
    changed_NK = got.label_BK != whole.label_BK
    assert [line["num_decisions_changed"] for line in gate["heads"]] == changed_NK.sum(axis=0).tolist()
    changed_N = changed_NK.any(axis=1) | (got.abstained_B != whole.abstained_B)
    assert 0 < gate["num_rows_decided_otherwise"] == changed_N.sum() < len(changed_N)


def test_decisions_that_change_are_those_of_the_policy(bundle):
    bundle, x = bundle
    policy = DecisionPolicy(mode="multilabel", abstain_below=0.5)
    card, rows = replace(bundle.card, policy=policy, thresholds=(0.95,) * 4), kept_rows(bundle, range(4))
    made = reduce_model(bundle, card, range(4), rows, precision="int8", limits=Limits(0.5), refit=False)
    models = made.model.SerializeToString(), bundle.fused_onnx.read_bytes()
    got, whole = (decide(run(model, x), threshold_K=card.thresholds, policy=policy) for model in models)
    only_abstained_N = (got.abstained_B != whole.abstained_B) & ~(got.label_BK != whole.label_BK).any(axis=1)
    assert only_abstained_N.any()
    num_changed_K, num_rows = made.final.changed_from(made.full)
    lines = [{"num_decisions_changed": int(count)} for count in num_changed_K]
    assert_changes({"heads": lines, "num_rows_decided_otherwise": num_rows}, got, whole)


def test_a_calibration_that_fits_the_rows_stays_bit_for_bit_and_one_that_does_not_is_fitted_again(bundle):
    bundle, _ = bundle
    off = replace(bundle.head("cat").calibration, scale=bundle.head("cat").calibration.scale / 4)
    rows = kept_rows(bundle, range(4))
    limits = Limits(0.0)  # the calibration that fits may not even make the bound worse by rounding
    made = {}
    for refit in (True, False):
        gate = GatedHeads(bundle, bundle.card, range(4), rows.target_NK, rows.mask_NK, limits, refit)
        assert gate.calibrations[0] == bundle.head("cat").calibration
        gate.calibrations = [off, *gate.calibrations[1:]]
        full = gate.judged(gate.prob(gate.graph(gate.calibrations), rows.z_ND))
        made[refit] = gate.attempt(gate.reduced(rows.z_ND, "fp16", frozenset()), rows.z_ND, full)
    taken, left = made[True], made[False]
    assert [new != old for new, old in zip(taken.calibrations, left.calibrations, strict=True)] == [True, False, False, False]
    assert taken.calibrations[0].scale == pytest.approx(off.scale * 4, rel=0.05)
    assert taken.final.ece_upper_K[0] < taken.without_refit.ece_upper_K[0] - 0.05
    assert taken.refit_ece_upper_K[0] < taken.without_refit.ece_upper_K[0] - 0.05
    for k in (1, 2, 3):
        assert taken.calibrations[k] == left.calibrations[k] == bundle.heads[k].calibration
        assert taken.final.ece_upper_K[k] == left.final.ece_upper_K[k] == taken.without_refit.ece_upper_K[k]


@pytest.mark.parametrize("num_rows", [60, 400])
def test_whatever_passes_without_refit_passes_with_it(bundle, num_rows):
    bundle, _ = bundle
    every = kept_rows(bundle, range(4))
    rows = replace(every, target_NK=every.target_NK[:num_rows], mask_NK=every.mask_NK[:num_rows], z_ND=every.z_ND[:num_rows])
    with_refit, without = (
        reduce_model(bundle, bundle.card, range(4), rows, precision="fp16", limits=Limits(0.005), refit=refit)
        for refit in (True, False)
    )
    assert without.head_precisions == ("fp16",) * 4
    assert with_refit.head_precisions == without.head_precisions
    assert (with_refit.final.ece_upper_K <= with_refit.without_refit.ece_upper_K + 1e-12).all()


def test_heads_with_too_few_rows_are_not_judged(bundle, tmp_path, capsys):
    bundle, _ = bundle
    every = kept_rows(bundle, range(4))
    few = replace(every, target_NK=every.target_NK[:8], mask_NK=np.ones((8, 4), bool), z_ND=every.z_ND[:8])
    said = r"judged on 5 known rows of its class and 5 of others at least, which 4 of 4 heads do not have \('cat': \d and \d, "
    with pytest.raises(ArtifactError, match=said):
        export_edge(bundle, tmp_path / "out", EdgeOptions(precision="fp16"), few)
    made = reduce_model(bundle, bundle.card, range(4), few, precision="fp16", limits=Limits(1.0, 1, 1), refit=False)
    assert made.is_judged_K.all()


def test_the_terminal_names_heads_that_are_not_judged_and_shows_changes(many, tmp_path, capsys):
    bundle, _ = many
    rows = kept_rows(bundle, range(64))
    num_positives = (rows.target_NK & rows.mask_NK).sum(axis=0)
    lone = int(num_positives.argmin())
    least = int(np.sort(num_positives)[1])
    assert num_positives[lone] < least
    args = ["export", f"bundle={bundle.path}", f"out={tmp_path / 'out'}", "target=edge", "precision=int8", "margin=0.05"]
    assert main([*args, f"min_positives={least}", "opset=18"]) == 0
    text = capsys.readouterr().out
    said = f"1 heads are not judged, and stay in fp32, as they have fewer than {least} known rows of their class or 5 of others: "
    assert said + repr(bundle.taxonomy.ids[lone]) in text
    card = json.loads((tmp_path / "out" / "card.json").read_bytes())
    assert (card["model"]["opset"], card["model"]["ir_version"]) == (18, 8)
    lines = card["gate"]["heads"]
    assert [line["num_positives"] for line in lines] == num_positives.tolist()
    assert lines[lone]["precision"] == "fp32"
    for line in (line for line in text.splitlines() if line.split()[0] in bundle.taxonomy.ids):
        told = next(head for head in lines if head["class_id"] == line.split()[0])
        ece = told["ece_upper"]
        assert float(line.split()[6]) == pytest.approx(ece["final"] - ece["fp32"], abs=6e-5)


def test_an_export_that_would_be_larger_than_fp32_is_not_written(bundle, tmp_path):
    bundle, _ = bundle
    with pytest.raises(
        ArtifactError, match=r"in int8 the model has \d+ bytes, and in fp32 no more than \d+: its backbone is fp32 .*1 of 4"
    ):
        export_edge(bundle, tmp_path / "out", EdgeOptions(precision="int8"))
    assert not (tmp_path / "out").exists()


def test_fp16_is_smaller_and_close(bundle, tmp_path):
    bundle, x = bundle
    card = export_edge(bundle, tmp_path / "out", EdgeOptions(precision="fp16", class_ids=["cat", "größe", "train"], refit=False))
    assert set(card["precision"]["num_heads"]) == {"fp16"}
    assert card["size_bytes"]["model"] < card["size_bytes"]["fp32"] - 3 * 64 * 2 + 500
    got_NK, whole_NK = (EdgePredictor(path).predict_proba(x) for path in (tmp_path / "out", bundle.path))
    assert 0 < np.abs(got_NK - whole_NK[:, [0, 2, 3]]).max() < 0.01


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_backbone_is_reduced_where_rows_show_that_no_head_is_worse(trained, tmp_path, precision):
    _, bundle = trained("mlp")
    x = rows_of(1)
    target_NK, mask_NK = (np.load(bundle.path / "calibration" / f"{name}.npy") for name in ("target", "mask"))
    rows = GateRows(target_NK, mask_NK, {"rows": "some"}, x=x)
    card = export_edge(bundle, tmp_path / "out", EdgeOptions(precision=precision, margin=0.02), rows)
    assert card["precision"]["backbone"] == precision
    assert backbone_bytes(tmp_path / "out" / "model.onnx") < 0.6 * backbone_bytes(bundle.fused_onnx)
    whole_NK, got_NK = (EdgePredictor(path).predict_proba(x) for path in (bundle.path, tmp_path / "out"))
    assert 0 < np.abs(whole_NK - got_NK).max() < 0.3
    for line in card["gate"]["heads"]:
        assert line["ece_upper"]["final"] - line["ece_upper"]["fp32"] <= 0.02
        assert line["average_precision"]["fp32"] - line["average_precision"]["final"] <= 0.02
    target_NK[:, 3] = False  # a head that cannot be judged would not be known to be as good
    made = reduce_model(bundle, bundle.card, range(4), rows, precision=precision, limits=Limits(0.02), refit=True)
    assert made.backbone == "fp32"
    assert "fewer than 5 known rows of their class or 5 of others" in made.because["reason"]
    assert (made.because["num_heads"], made.because["heads"]) == (1, [CLASS_IDS[3]])
    assert made.head_precisions[3] == "fp32"


def backbone_bytes(file):
    tensors = onnx.load(file).graph.initializer
    return sum(len(tensor.raw_data) or 4 * np.prod(tensor.dims) for tensor in tensors if tensor.name.startswith("backbone/"))


def test_a_head_without_a_positive_row_is_not_judged_and_stays(many, tmp_path):
    bundle, _ = many
    rows = kept_rows(bundle, range(64))
    rows.target_NK[:, 3] = False
    card = export_edge(bundle, tmp_path / "out", EdgeOptions(precision="int8", margin=0.02), rows)
    assert [line["precision"] for line in card["gate"]["heads"][:5]] == ["int8", "fp32", "int8", "fp32", "int8"]
    assert card["gate"]["heads"][3]["average_precision"]["fp32"] is None
    assert [line["judged"] for line in card["gate"]["heads"]] == [k != 3 for k in range(64)]


def test_tables_of_embeddings_become_float16_in_int8_too(rng):
    table = rng.normal(size=(50, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["features"], keepdims=0),
    ]
    values = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")]
    ends = [helper.make_tensor_value_info(*end) for end in (("x", 1, ["batch", 3]), ("features", 1, ["batch", 8]))]
    graph = helper.make_graph(nodes, "bag", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = rng.integers(0, 50, size=(7, 3)).astype(np.float32)
    made = reduced(model, "int8", x)
    assert reducible(model, "int8")
    assert [tensor.data_type for tensor in made.graph.initializer] == [onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64]
    expected = table.astype(np.float16).astype(np.float32)[x.astype(int)].sum(axis=1)
    np.testing.assert_allclose(run(made.SerializeToString(), x), expected, atol=1e-6)
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot quantise this model to int8"):
        reduced(dense_backbone((64,), 8, seed=0), "int8", x)  # rows of 3 numbers, where it takes 64


def test_an_older_opset_gives_the_same_answers_or_says_which_is_needed(tmp_path, rng):
    bundle, x = small_bundle(tmp_path / "bundle"), rng.normal(size=(9, 6)).astype(np.float32)
    card = export_edge(bundle, tmp_path / "old", EdgeOptions(opset=15))
    assert (card["model"]["opset"], card["model"]["ir_version"]) == (15, 8)
    assert (EdgePredictor(tmp_path / "old").predict_proba(x) == EdgePredictor(bundle.path).predict_proba(x)).all()
    assert export_edge(bundle, tmp_path / "ir", EdgeOptions(ir_version=9))["model"]["ir_version"] == 9
    card = export_edge(bundle, tmp_path / "same", EdgeOptions(opset=18))  # of which the IR version alone is older
    assert (card["model"]["opset"], card["model"]["ir_version"], card["same_bytes_as_fused_graph"]) == (18, 8, False)
    assert (EdgePredictor(tmp_path / "same").predict_proba(x) == EdgePredictor(bundle.path).predict_proba(x)).all()
    card = export_edge(bundle, tmp_path / "both", EdgeOptions(opset=18, ir_version=10))
    assert card["same_bytes_as_fused_graph"]
    with pytest.raises(
        ConfigError, match=r"cannot be brought to opset 12 .*Relu.*; it needs opset 14 or a later one, and with it onnxruntime 1.8 "
    ):
        with_versions(onnx.load(bundle.fused_onnx), 12, None)
    with pytest.raises(ConfigError, match=r"needs opset 14 or a later one, and with it onnxruntime 1.18 or"):
        with_versions(onnx.load(bundle.fused_onnx), 12, 10)  # whose IR version no earlier runtime takes
    odd = onnx.load(bundle.fused_onnx)
    odd.graph.initializer.add(name="odd", data_type=99, dims=[1], raw_data=b"1")
    with pytest.raises(ConfigError, match=r"cannot be brought to opset 15 \(Unknown tensor data type\); it needs opset 18"):
        with_versions(odd, 15, None)


def test_a_file_in_onnx_runtimes_format_is_opened_with_its_digest_alone(tmp_path, rng):
    bundle, x = small_bundle(tmp_path / "bundle"), rng.normal(size=(9, 6)).astype(np.float32)
    export_edge(bundle, tmp_path / "out", EdgeOptions(format="ort"))
    file = tmp_path / "out" / "model.ort"
    for path in (tmp_path / "out", file):
        predictor = EdgePredictor(path)
        assert predictor.card == bundle.card
        assert (predictor.predict_proba(x) == EdgePredictor(bundle.path).predict_proba(x)).all()
    alone = tmp_path / "alone.ort"
    alone.write_bytes(file.read_bytes())
    with pytest.raises(ArtifactError, match=r"has no card\.json beside it"):
        EdgePredictor(alone)
    (tmp_path / "out" / "other.ort").write_bytes(file.read_bytes())
    with pytest.raises(ArtifactError, match=r"other\.ort is not the model that the card\.json beside it names"):
        EdgePredictor(tmp_path / "out" / "other.ort")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"model\.ort was changed or cut short"):
        EdgePredictor(file)
    file.rename(tmp_path / "out" / "model.onnx")
    with pytest.raises(ArtifactError, match=r"has no model\.ort, which its card\.json names"):
        EdgePredictor(tmp_path / "out")
    (tmp_path / "out" / "card.json").write_bytes(canonical_json({"target": "web"}))
    with pytest.raises(ArtifactError, match="is not that of `ovr export target=edge`"):
        checked_model(tmp_path / "out")


def test_options_that_cannot_be_are_refused_and_nothing_is_written(bundle, tmp_path, capsys):
    bundle, _ = bundle
    for options, kind, said in (
        ({"class_ids": ["trian"]}, TaxonomyError, r"does not have: 'trian' \(nearest: train\)"),
        ({"class_ids": []}, ConfigError, "classes is an empty list"),
        ({"class_ids": ["train", "cat", "train"]}, ConfigError, "classes names 'train' more than once"),
        ({"precision": "int4"}, ConfigError, "precision is 'int4'; expected one of fp32, fp16, int8"),
        ({"format": "tflite"}, ConfigError, "format is 'tflite'; expected one of onnx, ort"),
        ({"opset": 99}, ConfigError, "opset is 99; expected a whole number from 7 to 18"),
        ({"ir_version": 3}, ConfigError, "ir_version is 3; expected a whole number from 4 to 10"),
        ({"format": "ort", "opset": 17}, ConfigError, "opset and ir_version are of ONNX files"),
        ({"format": "ort", "precision": "fp16"}, ConfigError, "fp16 would be as large as fp32"),
        ({"precision": "int8", "margin": 2}, ConfigError, "margin is 2; expected a number from 0 to 1"),
        ({"precision": "int8", "min_positives": 0}, ConfigError, "min_positives is 0; expected a whole number of at least 1"),
        ({"precision": "int8", "min_negatives": 2.5}, ConfigError, "min_negatives is 2.5; expected a whole number of at least 1"),
    ):
        with pytest.raises(kind, match=said):
            export_edge(bundle, tmp_path / "out", EdgeOptions(**options))
    args = ["export", f"bundle={bundle.path}", f"out={tmp_path / 'out'}", "target=edge"]
    for more, said in (
        (["precision=int8", "refit=maybe"], "refit is 'maybe'; expected true or false"),
        (["data=digits"], "data is of precision=fp16 and int8"),
        (["margin=0.3", "min_positives=9"], "margin, min_positives is of precision=fp16 and int8"),
        (["precision=int8", "rows=test"], "rows=test is of a source of rows"),
        (["precision=int8", "max_overlap=0.5"], "max_overlap=0.5 is of a source of rows"),
        (["rows=test", "max_overlap=0.5"], "rows, max_overlap is of precision=fp16 and int8"),
        (["heads=[train]"], "heads is of target=onnx"),
    ):
        assert said in error_of(capsys, *args, *more)
    assert "target is 'tab'; expected one of onnx, edge, web" in error_of(capsys, *args[:-1], "target=tab")
    assert "margin, refit is of target=edge" in error_of(capsys, *args[:-1], "margin=0.5", "refit=false")
    assert "rows, max_overlap is of target=edge" in error_of(capsys, *args[:-1], "rows=test", "max_overlap=0.5")
    assert "precision, opset is of target=edge" in error_of(capsys, *args[:-1], "precision=int8", "opset=17")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArtifactError, match="lies within the bundle"):
        export_edge(bundle, bundle.path / "edge", EdgeOptions())
    (tmp_path / "out").mkdir()
    assert "exists already" in error_of(capsys, *args)


def test_bundles_that_are_not_judged_are_refused(tmp_path, rng):
    plain = small_bundle(tmp_path / "plain")
    with pytest.raises(ArtifactError, match="keeps no features of calibration rows"):
        export_edge(plain, tmp_path / "out", EdgeOptions(precision="int8"))
    arrays = {"features": np.zeros((3, 5), np.float32), "target": np.zeros((2, 3), bool), "mask": np.zeros((2, 3), bool)}
    forge(plain.path, {f"calibration/{name}.npy": npy_bytes(array) for name, array in arrays.items()})
    with pytest.raises(ArtifactError, match="keeps 3 features, 2 targets and 2 masks"):
        kept_rows(plain, [0])
    of_cohorts = small_bundle(tmp_path / "cohorts", cohorts=some_cohorts(3))
    with pytest.raises(ConfigError, match="a calibration for each value of 'sex'"):
        export_edge(of_cohorts, tmp_path / "out", EdgeOptions(precision="int8"))
    export_edge(of_cohorts, tmp_path / "out", EdgeOptions(class_ids=["owl", "dog"]))
    x = rng.normal(size=(9, 6)).astype(np.float32)
    whole_NK, some_NK = (EdgePredictor(p).predict_proba(x, cohort="M") for p in (of_cohorts.path, tmp_path / "out"))
    assert (some_NK == whole_NK[:, 1:]).all()


def test_heads_of_shards_are_exported_in_fp32_alone(tmp_path):
    ids = [f"c{k}" for k in range(5)]
    bundle, _ = sample_sharded_bundle(tmp_path / "bundle", sample_model(backbone="identity", num_heads=5), ids)
    x = rows_of(3, 20)
    export_edge(bundle, tmp_path / "out", EdgeOptions(class_ids=["c4", "c1"]))
    whole_NK = EdgePredictor(bundle.path).predict_proba(x)
    assert (EdgePredictor(tmp_path / "out").predict_proba(x) == whole_NK[:, [1, 4]]).all()
    with pytest.raises(ConfigError, match="not for bundles with head shards"):
        export_edge(bundle, tmp_path / "small", EdgeOptions(precision="fp16"))
    with pytest.raises(TaxonomyError, match="'c9'"):
        export_edge(bundle, tmp_path / "small", EdgeOptions(class_ids=["c9"]))
    alone = SimpleNamespace(path=bundle.path, has_fused=False, heads=bundle.heads)
    with pytest.raises(ArtifactError, match=r"name those that the device needs with classes=\[ID,...\]"):
        export_edge(alone, tmp_path / "small", EdgeOptions())


def test_it_needs_no_torch_and_quantisation_is_loaded_when_it_is_used():
    code = "import sys, ovr.lifecycle.edge_export; sys.exit('torch' in sys.modules or 'onnxruntime.quantization' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_card_of_the_export_is_what_it_returns(bundle, tmp_path):
    bundle, _ = bundle
    card = export_edge(bundle, tmp_path / "out", EdgeOptions(precision="fp16"))
    assert json.loads((tmp_path / "out" / "card.json").read_bytes()) == card
    assert card["bundle_sha256"] == bundle.bundle_sha256
    assert card["latency_p50_s"].keys() == card["size_bytes"].keys() == {"fp32", "model"}
    props = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert json.loads(props["ovr.edge"]) == {"bundle_sha256": bundle.bundle_sha256, "precision": "fp16", "classes": None}
