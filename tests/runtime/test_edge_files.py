"""The directory of an edge export: what is missing of it is named, and its card is as small as what it describes lets it be."""

import shutil

import pytest

from ovr import EdgePredictor
from ovr.core.files import canonical_json, sha256_bytes
from ovr.errors import ArtifactError
from ovr.lifecycle.edge_export import EdgeOptions, export_edge
from ovr.runtime.edge_files import checked_model, export_files, is_edge_export
from tests.bundles import small_bundle
from tests.edge.exports import export


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("edge") / "bundle")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("card.json", "has no card.json, as every edge export has beside its model; copy all that"),
        ("model.onnx", "has no model.onnx, which its card.json names; copy all that"),
    ],
)
def test_of_an_export_that_was_copied_in_part_it_is_said_what_is_missing(bundle, tmp_path, missing, said):
    export_edge(bundle, tmp_path / "out", EdgeOptions())
    (tmp_path / "out" / missing).unlink()
    with pytest.raises(ArtifactError, match=said):
        EdgePredictor(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"has no card\.json, as|has no model\.onnx or model\.ort beside its card\.json; copy"):
        export_files(tmp_path / "out")


def test_what_has_a_manifest_is_a_bundle(bundle, tmp_path):
    path = shutil.copytree(bundle.path, tmp_path / "bundle")
    (path / "card.json").write_text("{}")
    assert not is_edge_export(path)
    with pytest.raises(ArtifactError, match=r"card\.json is not named in the manifest"):
        EdgePredictor(path)


def test_the_card_of_many_classes_is_read_beside_a_small_model(tmp_path):
    path = export(tmp_path / "out", b"small")
    ece = {"fp32": 0.012345678901234567, "without_refit": 0.01234567890123456, "final": 0.01, "with_refit": None}
    head = {"class_id": "a class of some length", "precision": "int8", "judged": True, "refitted": False, "ece_upper": ece}
    head |= {"num_positives": 12, "num_negatives": 120, "num_decisions_changed": 0, "average_precision": ece}
    said = {"file": "model.onnx", "sha256": sha256_bytes(b"small"), "size_bytes": 5}
    classes = [f"class {k}" for k in range(9999)]
    card = {"target": "edge", "model": said, "classes": classes, "gate": {"heads": [head] * len(classes)}}
    (path / "card.json").write_bytes(canonical_json(card))
    assert checked_model(path) == path / "model.onnx"


def test_a_file_in_the_runtimes_own_format_that_it_does_not_open_is_of_another_release(tmp_path):
    path = export(tmp_path / "out", b"of another release", file="model.ort")
    with pytest.raises(ArtifactError, match=r"own format is for the release that made it and later ones, and this is [0-9.]+: run"):
        EdgePredictor(path)


def test_a_path_that_cannot_be_looked_at_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"x\.onnx cannot be read: File name too long"):
        EdgePredictor(tmp_path / f"{'x' * 300}.onnx")
