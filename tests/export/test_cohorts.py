"""A calibration a cohort through an export: the fused graph gives torch's logits with numpy's sums, for every cohort."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import Calibration
from ovr.core.bundle import open_bundle
from ovr.core.calibrations import cohort_calibrations
from ovr.errors import ArtifactError
from ovr.export.bundle import torch_logits
from ovr.export.check import run
from ovr.export.fused import fused_model_of_stack
from ovr.export.reference import check_fused
from ovr.export.standalone import export_onnx
from ovr.runtime.reference import load_reference
from tests.cohorts import some_cohorts
from tests.export.sample import SHAPE, sample_bundle, sample_calibrations, sample_model, sample_rows

IDS = ["a", "b", "c", "d", "e"]
COHORTS = some_cohorts(5, ("F", "M", "x"))


@pytest.fixture(scope="module", params=["mlp"])
def exported(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("cohorts")
    model = sample_model(head=request.param)
    plain, _ = sample_bundle(root / "plain", model, IDS)
    bundle, diffs = sample_bundle(root / "bundle", model, IDS, cohorts=COHORTS)
    assert diffs["fused"] <= 1e-5 * 3
    return model, plain, bundle


def test_every_cohort_gets_its_own_sums_of_torchs_logits(exported):
    model, plain, bundle = exported
    data, x = bundle.fused_onnx.read_bytes(), sample_rows(50, seed=3)
    [logit_NK] = torch_logits(model, x)
    for number in (1, 2, 3):
        expected = calibrated_prob(logit_NK, cohort_calibrations(COHORTS, number - 1))
        np.testing.assert_allclose(run(data, x, cohort=number), expected, atol=3e-5)
    pooled = run(plain.fused_onnx.read_bytes(), x)
    for number in (None, 0, 4, -1):
        assert (run(data, x, cohort=number) == pooled).all()


def test_the_bundle_comes_back_and_is_exported_with_its_cohorts(exported, tmp_path):
    _, plain, bundle = exported
    opened = open_bundle(bundle.path)
    assert opened.cohorts == opened.card.cohorts == COHORTS
    assert export_onnx(opened, tmp_path / "onnx").max_abs_diff["fused"] <= 1e-5 * 3
    assert (tmp_path / "onnx/fused.onnx").read_bytes() == bundle.fused_onnx.read_bytes()
    assert not (plain.path / "reference/logit.npy").exists()
    assert "cohort" not in {value.name for value in onnx.load(plain.fused_onnx).graph.input}


def test_a_graph_that_is_wrong_for_one_cohort_is_refused(exported):
    reference = load_reference(exported[2])
    graph = onnx.load(exported[2].fused_onnx)
    check_fused(graph, reference)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    factors, offsets, size = (tensors[f"heads/cohort/{name}"] for name in ("factors", "offsets", "size"))
    factor_CP, offset_CP = onnx.numpy_helper.to_array(factors), onnx.numpy_helper.to_array(offsets)
    wrong_CP = factor_CP.copy()
    wrong_CP[2, 3] *= 1.1
    set_values(factors, wrong_CP)
    with pytest.raises(ArtifactError, match="the fused graph for sex=M gives class 'd'"):
        check_fused(graph, reference)
    for tensor, value in ((factors, np.append(factor_CP, 2 * factor_CP[:1], 0)), (offsets, np.append(offset_CP, offset_CP[:1], 0))):
        set_values(tensor, value)
    set_values(size, np.array(5))
    with pytest.raises(ArtifactError, match="gives cohort number 4 other probabilities than rows without a cohort"):
        check_fused(graph, reference)


def set_values(tensor, value):
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))


def test_only_affine_heads_and_bundles_without_shards_have_cohorts(tmp_path):
    isotonic = Calibration("isotonic", knot_logits=(-1.0, 1.0), knot_probs=(0.2, 0.8))
    calibrations = [*sample_calibrations(4), isotonic]
    with pytest.raises(ArtifactError, match="1 heads have a beta or isotonic calibration: 'e'; expected identity, temperature or"):
        sample_bundle(tmp_path / "isotonic", sample_model(), IDS, calibrations=calibrations, cohorts=COHORTS)
    with pytest.raises(ArtifactError, match="the cohorts of column 'sex' are of 3 heads; expected 5"):
        sample_bundle(tmp_path / "three", sample_model(), IDS, cohorts=some_cohorts(3))


def test_a_graph_of_stacked_heads_takes_no_cohorts(exported):
    with pytest.raises(ArtifactError, match="for each value of column 'sex'; bundles with head shards hold none"):
        fused_model_of_stack(onnx.ModelProto(), "linear", {}, exported[2].card)


def test_rows_without_a_cohort_keep_their_bits_when_cohorts_change(exported, tmp_path):
    model, plain, _ = exported
    other, _ = sample_bundle(tmp_path / "other", model, IDS, cohorts=replace(COHORTS, bias=COHORTS.scale))
    x = np.random.default_rng(1).normal(size=(40, *SHAPE)).astype(np.float32)
    assert (run(other.fused_onnx.read_bytes(), x) == run(plain.fused_onnx.read_bytes(), x)).all()
