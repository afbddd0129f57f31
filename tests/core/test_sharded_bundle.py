"""What a bundle with shards promises, whatever its files mean."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ovr.core import bundle_writer, scale
from ovr.core.artifact import DecisionPolicy
from ovr.core.bundle import BACKBONE_ONNX, MANIFEST, open_bundle
from ovr.core.bundle_writer import file_digest
from ovr.core.calibrations import Calibrations
from ovr.core.files import canonical_json, sha256_bytes
from ovr.core.heads import HeadColumns
from ovr.core.schema import InputSchema
from ovr.core.sharded_bundle import write_sharded_bundle
from ovr.core.shards import FIGURES, npz_bytes, shard_bytes, shards_of
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError, TaxonomyError
from tests.core import parts as small

IDS = tuple(f"class/{k}" for k in range(7))


def write(final, *, fused=True, **changes):
    """Write a small bundle of three shards; `changes` replace arguments of `write_sharded_bundle`."""
    figures = {"f1": np.linspace(0, 1, 7)}
    heads = HeadColumns(
        IDS,
        kind="linear",
        backbone_sha256=sha256_bytes(small.BACKBONE),
        version_K=np.arange(1, 8),
        threshold_K=np.linspace(0, 1, 7),
        calibrations=Calibrations.of([head.calibration for head in small.heads(IDS)]),
        figures=lambda: figures,
    )
    arguments = {
        "taxonomy": Taxonomy.from_ids(IDS),
        "heads": heads,
        "shards": shards_of(7, head_bytes=4),
        "input": InputSchema((2, 3)),
        "policy": DecisionPolicy("multilabel", 0.25, 2),
        "provenance": {"seed": 0},
        "parts": {BACKBONE_ONNX: small.BACKBONE, FIGURES: npz_bytes(figures)},
        "shard_parts": lambda shard: {
            shard.heads_file: shard_bytes(heads, shard, {"bias": np.zeros((shard.num_heads, 1), np.float32)}),
            shard.onnx_file: small.graph(shard.path.encode()),
        },
        "fuse": small.fuse if fused else lambda card: None,
    }
    return write_sharded_bundle(final, **(arguments | changes))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(scale, "SHARD_HEADS", 3)
    monkeypatch.setattr(scale, "LARGE_K", 5)


def test_it_comes_back_as_it_was_written(tmp_path):
    written = write(tmp_path / "bundle")
    opened = open_bundle(tmp_path / "bundle")
    assert opened == written
    assert opened.card == written.card
    assert [shard.num_heads for shard in opened.shards] == [3, 3, 1]
    assert opened.fused_onnx.is_file()
    assert not list(tmp_path.glob(".*"))


def test_every_head_is_there_by_its_id(tmp_path):
    bundle = open_bundle(write(tmp_path / "bundle").path)
    for k, class_id in enumerate(IDS):
        head = bundle.head(class_id)
        assert (head.class_id, head.version, head.calibration.scale) == (class_id, k + 1, 1.0 + k)
        assert head.metrics == {"test": {"f1": np.linspace(0, 1, 7)[k]}}
    with pytest.raises(TaxonomyError, match="'other' is not in the taxonomy"):
        bundle.head("other")
    with pytest.raises(ArtifactError, match="keeps its 7 heads in shards, and no file of head 'class/3' alone"):
        bundle.head_onnx(bundle.head("class/3"))


def test_a_small_bundle_gives_heads_by_id_too(tmp_path):
    assert small.write(tmp_path / "bundle").head("train").class_id == "train"


def test_without_a_fused_graph_it_says_what_to_use_instead(tmp_path):
    assert not write(tmp_path / "bundle", fused=False).has_fused
    bundle = open_bundle(tmp_path / "bundle")
    assert not bundle.has_fused
    with pytest.raises(ArtifactError, match=r"with 7 heads it does not fit one ONNX file; use backbone/model\.onnx and the 3"):
        _ = bundle.fused_onnx


def test_every_changed_missing_or_added_file_is_found(tmp_path):
    path = write(tmp_path / "bundle").path
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=f"{file.relative_to(path)} was changed"):
            open_bundle(path)
        file.unlink()
        with pytest.raises(ArtifactError, match=f"{file.relative_to(path)} is missing"):
            open_bundle(path)
        file.write_bytes(content)
    (path / "heads" / "shard-00003").mkdir()
    (path / "heads" / "shard-00003" / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is not named in the manifest"):
        open_bundle(path)


def test_a_shard_whose_digest_the_manifest_lacks_is_refused(tmp_path):
    path = write(tmp_path / "bundle").path
    manifest = json.loads((path / MANIFEST).read_bytes())
    del manifest["files"]["heads/shard-00001/model.onnx"]
    (path / "heads/shard-00001/model.onnx").unlink()
    derived = manifest.pop("derived")
    del manifest["bundle_sha256"]
    manifest |= {"bundle_sha256": sha256_bytes(canonical_json(manifest)), "derived": derived}
    (path / MANIFEST).write_bytes(canonical_json(manifest))
    with pytest.raises(ArtifactError, match=r"has head shards, but no digest of heads/shard-00001/model\.onnx"):
        open_bundle(path)


def test_what_its_digest_leaves_out_stands_in_for_no_other_file(tmp_path):
    path = write(tmp_path / "bundle").path
    manifest = json.loads((path / MANIFEST).read_bytes())
    other = path / "heads/shard-00001/heads.npz"
    other.write_bytes((path / "heads/shard-00000/heads.npz").read_bytes())
    manifest["derived"]["heads/shard-00001/heads.npz"] = file_digest(other)
    (path / MANIFEST).write_bytes(canonical_json(manifest))
    with pytest.raises(ArtifactError, match=r"was changed after it was written: only fused/model\.onnx is derived, got \["):
        open_bundle(path)


def test_a_manifest_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_writer, "MAX_JSON_BYTES", 1000)
    with pytest.raises(
        ArtifactError, match=r"manifest\.json takes \d+ bytes, of which at most 1000 are read; shorten ids and names"
    ):
        write(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_many_classes_in_a_file_a_head_are_said_by_the_version(tmp_path):
    heads = small.heads(IDS)
    written = small.write(tmp_path / "bundle", taxonomy=Taxonomy.from_ids(IDS), heads=heads, parts=small.parts(heads))
    assert json.loads((written.path / MANIFEST).read_bytes())["schema_version"] == 2
    assert open_bundle(written.path) == written


def test_a_bundle_from_before_there_were_shards_opens_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "LARGE_K", 100)
    heads = small.heads(IDS)
    written = small.write(tmp_path / "bundle", taxonomy=Taxonomy.from_ids(IDS), heads=heads, parts=small.parts(heads))
    assert json.loads((written.path / MANIFEST).read_bytes())["schema_version"] == 1
    monkeypatch.setattr(scale, "LARGE_K", 5)
    assert open_bundle(written.path) == written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": {}}, "a bundle needs backbone/model.onnx, report/classes.npz"),
        ({"parts": {"../x": b""}}, "must be a plain relative path"),
        ({"taxonomy": Taxonomy.from_ids("abc")}, "the 7 heads are not those of the taxonomy's 3 classes"),
        (
            {"shard_parts": lambda shard: {}},
            r"a shard needs .*/heads.npz and heads/shard-00000/model.onnx, got \[\]",
        ),
        ({"parts": {BACKBONE_ONNX: b"other", FIGURES: b""}}, "the heads were trained on backbone .*, this bundle has"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(tmp_path, changes, message):
    with pytest.raises(ArtifactError, match=message):
        write(tmp_path / "bundle", **changes)
    assert not list(tmp_path.iterdir())


def test_many_classes_are_written_as_columns(tmp_path):
    taxonomy = Taxonomy(replace(spec, owner="x" if k == 2 else "") for k, spec in enumerate(Taxonomy.from_ids(IDS)))
    assert taxonomy.to_json() == {"id": list(IDS), "owner": ["", "", "x", "", "", "", ""]}
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy
    assert Taxonomy.from_ids(IDS[:4]).to_json() == [
        {"id": i, "name": i, "owner": "", "critical": False, "parent": ""} for i in IDS[:4]
    ]
    with pytest.raises(TaxonomyError, match="a class in the taxonomy cannot be read"):
        Taxonomy.from_json({"id": ["a", "b"], "owner": ["x"]})
