import json
import subprocess
import sys

import numpy as np
import pytest

from ovr.core.artifact import ModelCard
from ovr.core.bundle import open_bundle
from ovr.core.taxonomy import slug
from ovr.errors import ArtifactError
from ovr.export.check import run
from ovr.export.standalone import export_onnx
from tests.export.sample import sample_bundle, sample_model, sample_rows

IDS = ["a", "b/c", "d"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return sample_bundle(tmp_path_factory.mktemp("sample") / "bundle", sample_model(num_heads=3), IDS)[0]


def test_the_files_are_the_bundles_own_and_the_fused_graph_is_made_anew(bundle, tmp_path):
    exported = export_onnx(open_bundle(bundle.path), tmp_path / "out")
    assert exported.path == tmp_path / "out"
    assert sorted(path.relative_to(exported.path).as_posix() for path in exported.path.rglob("*.*")) == sorted(
        ["backbone.onnx", "card.json", "fused.onnx", *(f"heads/{slug(class_id)}.onnx" for class_id in IDS)]
    )
    assert (exported.path / "backbone.onnx").read_bytes() == bundle.backbone_onnx.read_bytes()
    assert (exported.path / "fused.onnx").read_bytes() == bundle.fused_onnx.read_bytes()
    for head in bundle.heads:
        assert (exported.path / "heads" / f"{slug(head.class_id)}.onnx").read_bytes() == bundle.head_onnx(head).read_bytes()
    assert ModelCard.from_json(json.loads((exported.path / "card.json").read_text())) == bundle.card
    assert max(exported.max_abs_diff.values()) <= 1e-5


def test_heads_after_the_backbone_and_the_fused_graph_agree(bundle, tmp_path):
    path, x = export_onnx(bundle, tmp_path / "out").path, sample_rows(9, seed=3)
    features_ND = run((path / "backbone.onnx").read_bytes(), x)
    head_prob_NK = np.hstack([run((path / "heads" / f"{slug(class_id)}.onnx").read_bytes(), features_ND) for class_id in IDS])
    np.testing.assert_allclose(run((path / "fused.onnx").read_bytes(), x), head_prob_NK, atol=1e-6)


def test_a_directory_is_never_overwritten(bundle, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        export_onnx(bundle, tmp_path / "out")


def test_a_head_that_does_not_give_the_reference_is_not_written(tmp_path):
    bundle, _ = sample_bundle(tmp_path / "bundle", sample_model(num_heads=3), IDS)
    wrong = np.load(bundle.path / "reference" / "prob.npy")
    wrong[4, 1] += 0.5
    np.save(bundle.path / "reference" / "prob.npy", wrong)
    with pytest.raises(
        ArtifactError, match=r"gives class 'b/c' on reference row 4 the probability .* \(1 of 3 classes are wrong\)"
    ):
        export_onnx(bundle, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_model_that_is_no_onnx_file_is_named(tmp_path):
    bundle, _ = sample_bundle(tmp_path / "bundle", sample_model(num_heads=3), IDS)
    bundle.head_onnx(bundle.heads[1]).write_bytes(b"\xff\xff\xff")
    with pytest.raises(ArtifactError, match="head 'b/c' is not an ONNX file"):
        export_onnx(bundle, tmp_path / "out")


def test_it_needs_no_torch():
    code = "import sys, ovr.export.standalone; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_bundle_is_not_exported_into_itself(bundle):
    with pytest.raises(ArtifactError, match=r"lies within the bundle .*never changed"):
        export_onnx(bundle, bundle.path / "onnx")
    assert open_bundle(bundle.path) == bundle
