"""Untouched heads: by ONNX Runtime in every cohort and on all cores to the bit, by torch within 1e-6."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from ovr.calibrator.apply import calibrated_prob
from ovr.core.artifact import DecisionPolicy
from ovr.core.bundle import FUSED_ONNX, MANIFEST, open_bundle
from ovr.core.files import canonical_json, sha256_bytes
from ovr.errors import ArtifactError
from ovr.lifecycle.heads import retire
from ovr.lifecycle.put import put
from ovr.lifecycle.same_answers import same_answers
from ovr.lifecycle.verify import verify
from ovr.training.initial import start_from_bundle
from tests.cohorts import some_cohorts
from tests.export.sample import sample_bundle, sample_calibrations, sample_model
from tests.lifecycle.conftest import CLASS_IDS, rows_of
from tests.lifecycle.test_heads import new_head


@pytest.fixture(scope="module")
def with_cohorts(tmp_path_factory):
    made, _ = sample_bundle(
        tmp_path_factory.mktemp("cohorts") / "bundle",
        sample_model(num_heads=4),
        CLASS_IDS,
        cohorts=some_cohorts(4, ("F", "M", "x")),
        policy=DecisionPolicy(mode="multilabel"),
    )
    return made


def with_fused(bundle, folder, name, change):
    """Return a copy of the bundle whose fused graph has another constant, its digest put right."""
    shutil.copytree(bundle.path, folder)
    model = onnx.load(folder / FUSED_ONNX)
    tensor = next(t for t in model.graph.initializer if t.name.endswith(name))
    value = numpy_helper.to_array(tensor).copy()
    change(value)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    data = model.SerializeToString()
    (folder / FUSED_ONNX).write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["derived"][FUSED_ONNX] = {"sha256": sha256_bytes(data), "size_bytes": len(data)}
    (folder / MANIFEST).write_bytes(canonical_json(manifest))
    return open_bundle(folder)


def test_heads_of_a_bundle_with_cohorts_keep_their_bits_in_each(with_cohorts, tmp_path):
    made = put(
        with_cohorts, tmp_path / "put", [new_head("new", with_cohorts), new_head(CLASS_IDS[1], with_cohorts)], entry={}
    ).bundle
    found = verify(with_cohorts, made, changed=["new", CLASS_IDS[1]])
    plain = found.num_answers
    assert found.ids("unchanged") == (CLASS_IDS[0], *CLASS_IDS[2:])
    gone = retire(made, tmp_path / "gone", [CLASS_IDS[0]]).bundle
    assert verify(made, gone, changed=[CLASS_IDS[0]]).num_answers == plain
    assert plain == len(np.load(made.path / "reference/x.npy")) * (1 + 4) + 3 * (64 * 65 // 2)


@pytest.mark.parametrize("cohort", [0, 2, 3])
def test_an_answer_of_a_single_cohort_that_differs_is_found(with_cohorts, tmp_path, cohort):
    def change(offset_CP):
        offset_CP[cohort, 2] += 1e-4

    odd = with_fused(with_cohorts, tmp_path / "odd", "cohort/offsets", change)
    with pytest.raises(ArtifactError, match=rf"head {CLASS_IDS[2]!r} has the same files in both bundles and another answer by"):
        verify(with_cohorts, odd, changed=[])


def test_bundles_that_share_no_cohort_are_compared_without_any(with_cohorts, tmp_path):
    plain, _ = sample_bundle(tmp_path / "plain", sample_model(num_heads=4), CLASS_IDS, policy=DecisionPolicy(mode="multilabel"))
    x = rows_of(2, 40)
    assert same_answers(plain, plain, CLASS_IDS, x) == 40 * 2 + 3 * (64 * 65 // 2)
    assert same_answers(plain, plain, [], x) == 0


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("mlp", "linear"),
        ("cnn", "mlp"),
        pytest.param("mlp", "mlp", marks=pytest.mark.exhaustive),
        pytest.param("cnn", "linear", marks=pytest.mark.exhaustive),
    ],
)
def test_torch_s_answers_of_untouched_heads_stay_within_a_millionth(tmp_path, backbone, head):
    model = sample_model(backbone=backbone, head=head, num_heads=4)
    calibrations = sample_calibrations(4)
    old, _ = sample_bundle(tmp_path / "old", model, CLASS_IDS, calibrations=calibrations)
    more = [new_head(name, old, kind=head, seed=seed) for seed, name in enumerate(("new", *(f"n {k}" for k in range(40))))]
    made = {
        "replaced": put(old, tmp_path / "replaced", [new_head(CLASS_IDS[1], old, kind=head)], entry={}).bundle,
        "added": put(old, tmp_path / "added", more[:1], entry={}).bundle,
        "many": put(old, tmp_path / "many", more, entry={}).bundle,
        "retired": retire(old, tmp_path / "retired", [CLASS_IDS[1]]).bundle,
    }
    before = torch_of(old, backbone, head)
    rng, x = np.random.default_rng(0), rows_of(3, 100)
    ids = (CLASS_IDS[0], *CLASS_IDS[2:])
    for what, new in made.items():
        after = torch_of(new, backbone, head)
        for size in range(1, 65):
            rows = rng.integers(0, len(x), size)
            diff = probs(after, new, ids, x[rows]) - probs(before, old, ids, x[rows])
            alone = probs(before, old, ids, x[rows[:1]])[0] - probs(after, new, ids, x[rows])[0]
            assert max(np.abs(diff).max(), np.abs(alone).max()) <= 1e-6, (what, size)


def torch_of(bundle, backbone, head):
    model = sample_model(backbone=backbone, head=head, num_heads=len(bundle.heads), seed=9)
    start_from_bundle(model, bundle.path, taxonomy=bundle.taxonomy, input=bundle.input, needed=bundle.taxonomy.ids)
    return model.eval()


def probs(model, bundle, ids, x):
    with torch.no_grad():
        logit_BK = model(torch.from_numpy(x)).numpy()
    columns = [bundle.taxonomy.column(class_id) for class_id in ids]
    return calibrated_prob(logit_BK[:, columns], [bundle.head(class_id).calibration for class_id in ids])
