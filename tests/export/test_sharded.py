"""A real model exported in shards: every file gives what torch gives, and every head is there by its id."""

import json

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.core import scale
from ovr.core.artifact import Calibration
from ovr.core.bundle import open_bundle
from ovr.core.calibrations import Calibrations
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy, slug
from ovr.errors import ArtifactError, ConfigError
from ovr.export import sharded
from ovr.export.check import run
from ovr.export.standalone import export_onnx
from ovr.export.stored import stored_models, stored_weights
from ovr.serving.repository import publish
from ovr.training.initial import start_from_bundle
from tests.export.sample import (
    HEADS,
    SHAPE,
    sample_bundle,
    sample_calibrations,
    sample_model,
    sample_rows,
    sample_sharded_bundle,
    torch_prob,
)

K = 150
IDS = [f"class/{k}" for k in range(K)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(scale, "SHARD_HEADS", 64)
    monkeypatch.setattr(scale, "LARGE_K", 100)


@pytest.mark.parametrize("head", HEADS)
def test_shards_fused_graph_and_single_heads_give_torchs_probabilities(tmp_path, head):
    model = sample_model(head=head, num_heads=K)
    written, diffs = sample_sharded_bundle(tmp_path / "bundle", model, IDS)
    assert model.training, "the export left the model as it was"
    assert set(diffs) == {"heads", "fused"}
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle == written
    x = sample_rows(9, seed=4)
    expected_NK = torch_prob(model, x, sample_calibrations(K))
    np.testing.assert_allclose(EdgePredictor(bundle.path).predict(x).prob_BK, expected_NK, atol=1e-5)
    features_ND = run(bundle.backbone_onnx.read_bytes(), x)
    for shard in bundle.shards:
        prob_NS = run((bundle.path / shard.onnx_file).read_bytes(), features_ND)
        np.testing.assert_allclose(prob_NS, expected_NK[:, shard.columns], atol=1e-5)
    columns = (0, 63, 64, 149)
    for k, own in zip(columns, stored_models(bundle, columns), strict=True):
        np.testing.assert_allclose(run(own.SerializeToString(), features_ND), expected_NK[:, k : k + 1], atol=1e-5)


def test_a_head_of_a_shard_is_the_head_that_a_small_bundle_has(tmp_path, monkeypatch):
    model = sample_model(num_heads=K)
    large, _ = sample_sharded_bundle(tmp_path / "large", model, IDS)
    small, _ = sample_bundle(tmp_path / "small", model, IDS, versions=[3] * K, thresholds=np.linspace(0.1, 0.9, K).tolist())
    for ours, theirs in zip(*(stored_models(bundle, [70, 0, 149, 70]) for bundle in (large, small)), strict=True):
        assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    ours, theirs = (list(stored_weights(bundle, [149, 2, 64, 2])) for bundle in (large, small))
    assert [(column, kind) for column, kind, _ in ours] == [(2, "linear"), (64, "linear"), (149, "linear")]
    for (_, _, one), (_, _, other) in zip(ours, theirs, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in ("weight", "bias"))
    x = sample_rows(20, seed=5)
    assert np.array_equal(run(large.fused_onnx.read_bytes(), x), run(small.fused_onnx.read_bytes(), x))


def test_the_bundle_keeps_what_later_steps_need(tmp_path):
    bundle, _ = sample_sharded_bundle(tmp_path / "bundle", sample_model(num_heads=K), IDS)
    assert json.loads((bundle.path / "report" / "metrics.json").read_text()) == {"accuracy": 0.5}
    with np.load(bundle.path / "report" / "classes.npz") as figures:
        assert np.array_equal(figures["positives"], np.arange(K))
    assert np.load(bundle.path / "calibration" / "features.npy").shape == (3, 16)
    head = open_bundle(bundle.path).head("class/7")
    assert (head.version, head.metrics) == (3, {"test": {"f1": 0.5, "positives": 7}})
    assert head.calibration == sample_calibrations(K)[7]


@pytest.mark.parametrize("head", HEADS)
def test_training_starts_from_shards_by_class_id(tmp_path, head):
    source = sample_model(head=head, num_heads=K)
    sample_sharded_bundle(tmp_path / "bundle", source, IDS)
    model = sample_model(head=head, num_heads=3, seed=1)
    drawn = model.head.head_weights(1)
    taxonomy = Taxonomy.from_ids(["class/149", "new", "class/5"])
    start_from_bundle(model, tmp_path / "bundle", taxonomy=taxonomy, input=InputSchema(SHAPE), needed=("class/5",))
    for column, theirs in ((0, source.head.head_weights(149)), (1, drawn), (2, source.head.head_weights(5))):
        ours = model.head.head_weights(column)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_export_writes_shards_or_the_heads_that_are_asked_for(tmp_path):
    bundle, _ = sample_sharded_bundle(tmp_path / "bundle", sample_model(num_heads=K), IDS)
    whole = export_onnx(bundle, tmp_path / "whole")
    names = ["backbone.onnx", "card.json", "fused.onnx", *(f"heads/shard-0000{i}.onnx" for i in range(3))]
    assert sorted(path.relative_to(whole.path).as_posix() for path in whole.path.rglob("*.*")) == sorted(names)
    assert (whole.num_heads, set(whole.max_abs_diff)) == (K, {"heads", "fused"})
    some = export_onnx(bundle, tmp_path / "some", class_ids=["class/149", "class/0", "class/149"])
    names = ["backbone.onnx", f"heads/{slug('class/149')}.onnx", f"heads/{slug('class/0')}.onnx"]
    assert sorted(path.relative_to(some.path).as_posix() for path in some.path.rglob("*.*")) == sorted(names)
    assert (some.num_heads, set(some.max_abs_diff)) == (2, {"heads"})


@pytest.mark.parametrize("head", HEADS)
def test_large_heads_lie_in_more_shards(tmp_path, head, monkeypatch):
    model = sample_model(head=head, num_heads=K)
    head_bytes = sum(value.nbytes for value in model.head.head_weights(0).values())
    monkeypatch.setattr(scale, "SHARD_BYTES", 40 * head_bytes)
    bundle, _ = sample_sharded_bundle(tmp_path / "bundle", model, IDS)
    assert [shard.num_heads for shard in open_bundle(bundle.path).shards] == [32, 32, 32, 32, 22]
    x = sample_rows(9, seed=4)
    features_ND = run(bundle.backbone_onnx.read_bytes(), x)
    prob_NK = np.hstack([run((bundle.path / shard.onnx_file).read_bytes(), features_ND) for shard in bundle.shards])
    np.testing.assert_allclose(prob_NK, torch_prob(model, x, sample_calibrations(K)), atol=1e-5)


def test_an_export_of_no_head_is_refused(tmp_path):
    bundle, _ = sample_sharded_bundle(tmp_path / "bundle", sample_model(num_heads=K), IDS)
    with pytest.raises(ConfigError, match="heads is an empty list; name the class ids"):
        export_onnx(bundle, tmp_path / "out", class_ids=[])
    assert not (tmp_path / "out").exists()


def test_training_starts_from_a_file_a_head_into_many(tmp_path):
    source = sample_model(num_heads=3)
    sample_bundle(tmp_path / "bundle", source, ["class/149", "gone", "class/5"])
    model = sample_model(num_heads=K, seed=1)
    drawn = model.head.head_weights(0)
    start_from_bundle(model, tmp_path / "bundle", taxonomy=Taxonomy.from_ids(IDS), input=InputSchema(SHAPE), needed=())
    sample_sharded_bundle(tmp_path / "large", model, IDS)
    kept = stored_weights(open_bundle(tmp_path / "large"), [0, 5, 149])
    for (_, _, ours), theirs in zip(kept, (drawn, source.head.head_weights(2), source.head.head_weights(0)), strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_reference_rows_are_trimmed_to_their_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "REFERENCE_VALUES", 2 * K + 1)
    bundle, _ = sample_sharded_bundle(tmp_path / "bundle", sample_model(num_heads=K), IDS)
    assert np.load(bundle.path / "reference" / "prob.npy").shape == (2, K)
    monkeypatch.setattr(sharded, "REFERENCE_VALUES", 1)
    bundle, _ = sample_sharded_bundle(tmp_path / "least", sample_model(num_heads=K), IDS)
    assert np.load(bundle.path / "reference" / "x.npy").shape == (1, *SHAPE)
    monkeypatch.setattr(sharded, "REFERENCE_VALUES", 2 * K * 6)
    bundle, _ = sample_sharded_bundle(tmp_path / "units", sample_model(head="mlp", num_heads=K), IDS)
    assert np.load(bundle.path / "reference" / "prob.npy").shape == (2, K)


@pytest.mark.parametrize("spare", [-K * 17 * 4, 0], ids=["the weights are too large", "the card is what is too much"])
def test_heads_that_do_not_fit_one_file_have_no_fused_graph(tmp_path, monkeypatch, spare):
    monkeypatch.setattr(sharded, "MAX_FUSED_BYTES", K * 17 * 4 + 32 * 17 * 4 + spare)
    bundle, diffs = sample_sharded_bundle(tmp_path / "bundle", sample_model(num_heads=K), IDS)
    assert set(diffs) == {"heads"}
    assert not (bundle.path / "fused").exists()
    for use in (lambda: EdgePredictor(bundle.path), lambda: publish(bundle, tmp_path / "repository")):
        with pytest.raises(ArtifactError, match="has no fused graph: with 150 heads it does not fit one ONNX file"):
            use()
    assert set(export_onnx(bundle, tmp_path / "out").max_abs_diff) == {"heads"}


def test_a_model_a_head_is_not_published_from_shards(tmp_path):
    bundle, _ = sample_sharded_bundle(tmp_path / "bundle", sample_model(num_heads=K), IDS)
    with pytest.raises(ArtifactError, match="keeps its 150 heads in shards; publish it with layout fused"):
        publish(bundle, tmp_path / "repository", layout="per_head")
    assert not (tmp_path / "repository").exists()
    assert publish(bundle, tmp_path / "repository").versions == {"ovr_scores": 1, "ovr": 1}


def test_a_model_that_onnx_does_not_follow_is_not_written(tmp_path):
    model = sample_model(num_heads=K)
    weights = model.head.head_weights
    model.head.head_weights = lambda column: {**weights(column), "bias": weights(column)["bias"] + np.float32(column == 99)}
    with pytest.raises(ArtifactError, match="the backbone with heads/shard-00001 gives class 'class/99' on reference row 0"):
        sample_sharded_bundle(tmp_path / "bundle", model, IDS)
    model.head.head_weights = lambda column: {
        **weights(column),
        "bias": weights(column)["bias"] * np.float32(np.nan if column == 99 else 1),
    }
    with pytest.raises(ArtifactError, match="a head's bias holds nan; every weight must be finite"):
        sample_sharded_bundle(tmp_path / "bundle", model, IDS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [{"calibrations": Calibrations.of(sample_calibrations(2))}, {"threshold_K": np.zeros(2)}, {"figures": {"f1": np.zeros(2)}}],
)
def test_counts_that_differ_are_refused(tmp_path, changes):
    with pytest.raises(ArtifactError, match=r"2 (calibrations|thresholds|f1) for 150 classes; expected one a class"):
        sample_sharded_bundle(tmp_path / "bundle", sample_model(num_heads=K), IDS, **changes)


def test_calibrations_that_are_no_scale_and_bias_are_refused(tmp_path):
    calibrations = sample_calibrations(5)
    calibrations[2] = Calibration("beta", scale_negative=0.5)
    with pytest.raises(ArtifactError, match=r"a bundle with head shards keeps .* calibrations only; that of head column 2 is beta"):
        sample_sharded_bundle(tmp_path / "b", sample_model(), list("abcde"), calibrations=Calibrations.of(calibrations))
    assert not (tmp_path / "b").exists()
