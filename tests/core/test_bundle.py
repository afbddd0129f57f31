"""The bundle: written whole, opened only if nothing was changed."""

import dataclasses
import json
import os
import shutil

import pytest

from ovr.core.bundle import BACKBONE_ONNX, FUSED_ONNX, MANIFEST, head_directory, open_bundle
from ovr.core.files import canonical_json, sha256_bytes
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError
from tests.core.parts import BACKBONE, CLASS_IDS, fuse, graph, heads, parts, write


@pytest.fixture
def bundle(tmp_path):
    return write(tmp_path / "bundle")


def files_of(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def rewrite(bundle, change):
    """Change the manifest and make its digest right again, as a tool with a bug, or a liar, would."""
    manifest = json.loads((bundle.path / MANIFEST).read_bytes())
    derived = manifest.pop("derived")
    del manifest["bundle_sha256"]
    change(manifest)
    digest = sha256_bytes(canonical_json(manifest))
    (bundle.path / MANIFEST).write_bytes(canonical_json({**manifest, "bundle_sha256": digest, "derived": derived}))


def test_an_opened_bundle_is_the_one_that_was_written(bundle):
    opened = open_bundle(bundle.path)
    assert opened == bundle
    assert opened.card == bundle.card
    assert opened.fused_onnx.read_bytes() == fuse(bundle.card)
    assert [opened.head_onnx(head).read_bytes() for head in opened.heads] == [graph(i.encode()) for i in CLASS_IDS]
    assert opened.backbone_onnx.read_bytes() == BACKBONE


def test_equal_content_gives_equal_bytes_wherever_it_lies(bundle, tmp_path):
    other = write(tmp_path / "elsewhere" / "b")
    assert files_of(other.path) == files_of(bundle.path)
    for relative in files_of(bundle.path):
        assert (other.path / relative).read_bytes() == (bundle.path / relative).read_bytes()
    shutil.copytree(bundle.path, tmp_path / "copy")
    assert open_bundle(tmp_path / "copy").bundle_sha256 == bundle.bundle_sha256


def test_the_digest_tells_every_content_apart(bundle, tmp_path):
    other = [dataclasses.replace(head, threshold=0.51) for head in heads()]
    assert write(tmp_path / "other", heads=other).bundle_sha256 != bundle.bundle_sha256
    assert write(tmp_path / "more", parts=parts(heads()) | {"extra.txt": b""}).bundle_sha256 != bundle.bundle_sha256


def test_one_byte_changed_anywhere_in_any_file_is_found(bundle):
    names = files_of(bundle.path)
    assert {MANIFEST, FUSED_ONNX, BACKBONE_ONNX, f"{head_directory(bundle.heads[1])}/head.json"} <= set(names)
    for relative in names:
        file = bundle.path / relative
        good = file.read_bytes()
        for position in range(0, len(good), max(1, len(good) // 150)):
            file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
            with pytest.raises(ArtifactError):
                open_bundle(bundle.path)
        file.write_bytes(good)
    assert open_bundle(bundle.path) == bundle


def test_a_manifest_that_is_only_spelled_otherwise_is_found(bundle):
    manifest = bundle.path / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes()), indent=1))
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        open_bundle(bundle.path)


def test_a_file_cut_short_or_grown_is_found(bundle):
    for change in (lambda data: data[:-1], lambda data: data + b"\n"):
        for relative in files_of(bundle.path):
            good = (bundle.path / relative).read_bytes()
            (bundle.path / relative).write_bytes(change(good))
            with pytest.raises(ArtifactError):
                open_bundle(bundle.path)
            (bundle.path / relative).write_bytes(good)


def test_all_damage_is_named_in_one_error(bundle):
    (bundle.path / BACKBONE_ONNX).unlink()
    (bundle.path / FUSED_ONNX).write_bytes(b"fuzed")
    (bundle.path / "notes.txt").write_bytes(b"")
    with pytest.raises(ArtifactError) as caught:
        open_bundle(bundle.path)
    for problem in (f"{BACKBONE_ONNX} is missing", f"{FUSED_ONNX} was changed", "notes.txt is not named in the manifest"):
        assert problem in str(caught.value)


def test_much_damage_is_counted(bundle):
    for number in range(8):
        (bundle.path / f"extra{number}").write_bytes(b"")
    with pytest.raises(ArtifactError, match="extra4 is not named in the manifest and 3 more"):
        open_bundle(bundle.path)


def test_a_symbolic_link_is_refused_even_to_the_right_bytes(bundle, tmp_path):
    for relative in files_of(bundle.path):
        moved = tmp_path / "moved"
        os.rename(bundle.path / relative, moved)
        (bundle.path / relative).symlink_to(moved)
        with pytest.raises(ArtifactError, match=f"{relative} is a symbolic link"):
            open_bundle(bundle.path)
        os.rename(moved, bundle.path / relative)
    (bundle.path / "more").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ArtifactError, match="more is not named in the manifest"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("version", [4, 0, "1", None])
def test_another_schema_version_is_said_before_anything_else(bundle, version):
    manifest = json.loads((bundle.path / MANIFEST).read_bytes())
    (bundle.path / MANIFEST).write_text(json.dumps({**manifest, "schema_version": version}))
    with pytest.raises(ArtifactError, match=f"schema_version {version!r}; this ovr reads version 1 or 2 or 3"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'"x"', b"\xff\xfe", b"[" * 100_000, b"NaN"])
def test_a_manifest_that_is_no_manifest_is_refused(bundle, content):
    (bundle.path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"cannot be read as JSON|schema_version None"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("key", ["taxonomy", "heads", "input", "policy", "files", "provenance", "derived", "bundle_sha256"])
def test_a_manifest_without_one_of_its_parts_is_refused(bundle, key):
    manifest = json.loads((bundle.path / MANIFEST).read_bytes())
    (bundle.path / MANIFEST).write_bytes(canonical_json({k: v for k, v in manifest.items() if k != key}))
    with pytest.raises(ArtifactError, match=r"cannot be read: KeyError|was changed"):
        open_bundle(bundle.path)
    if key not in ("derived", "bundle_sha256"):
        (bundle.path / MANIFEST).write_bytes(canonical_json(manifest))
        rewrite(bundle, lambda value: value.pop(key))
        with pytest.raises(ArtifactError, match=f"cannot be read: KeyError '{key}'"):
            open_bundle(bundle.path)


def test_a_bundle_with_a_file_a_head_has_its_fused_graph(bundle):
    manifest = json.loads((bundle.path / MANIFEST).read_bytes())
    (bundle.path / "fused/model.onnx").unlink()
    (bundle.path / MANIFEST).write_bytes(canonical_json({**manifest, "derived": {}}))
    with pytest.raises(ArtifactError, match=r"was changed after it was written: only fused/model\.onnx is derived, got \[\]"):
        open_bundle(bundle.path)


def test_not_a_number_in_a_manifest_is_refused(bundle):
    text = (bundle.path / MANIFEST).read_text().replace('"abstain_below":0.25', '"abstain_below":NaN')
    (bundle.path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read as JSON: it holds NaN"):
        open_bundle(bundle.path)


def test_a_head_that_the_manifest_puts_elsewhere_is_refused(bundle, tmp_path):
    def outside(manifest):
        manifest["heads"][0]["path"] = "../elsewhere"

    shutil.copytree(bundle.path / head_directory(bundle.heads[0]), tmp_path / "elsewhere")
    rewrite(bundle, outside)
    with pytest.raises(ArtifactError, match=r"has no digest of \.\./elsewhere/head\.json"):
        open_bundle(bundle.path)


def test_heads_that_the_manifest_swaps_are_refused(bundle):
    rewrite(bundle, lambda manifest: manifest["heads"].reverse())
    with pytest.raises(ArtifactError, match="the heads are of classes"):
        open_bundle(bundle.path)


def test_a_head_in_the_directory_of_another_is_refused(bundle):
    rows = [bundle.path / head_directory(head) / "head.json" for head in bundle.heads[:2]]
    content = rows[1].read_bytes()
    rows[0].write_bytes(content)

    def change(manifest):
        name = f"{head_directory(bundle.heads[0])}/head.json"
        manifest["files"][name] = {"sha256": sha256_bytes(content), "size_bytes": len(content)}

    rewrite(bundle, change)
    with pytest.raises(ArtifactError, match="at heads/cat/1; expected heads/e-"):
        open_bundle(bundle.path)


def test_a_head_of_another_backbone_is_refused_when_writing_and_when_opening(bundle, tmp_path):
    strange = heads(backbone=b"another")
    with pytest.raises(ArtifactError, match=r"head 'cat' v1 was trained on backbone .*, this bundle has"):
        write(tmp_path / "mixed", heads=strange)
    assert not (tmp_path / "mixed").exists()
    name = f"{head_directory(bundle.heads[0])}/head.json"
    content = canonical_json(strange[0].to_json())
    (bundle.path / name).write_bytes(content)
    rewrite(bundle, lambda value: value["files"].update({name: {"sha256": sha256_bytes(content), "size_bytes": len(content)}}))
    with pytest.raises(ArtifactError, match=r"head 'cat' v1 was trained on backbone"):
        open_bundle(bundle.path)


def test_what_is_no_bundle_is_said_so(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ArtifactError, match=r"is not a bundle: it has no manifest\.json"):
            open_bundle(path)


def test_a_bundle_is_never_overwritten(bundle):
    before = {relative: (bundle.path / relative).read_bytes() for relative in files_of(bundle.path)}
    with pytest.raises(ArtifactError, match="exists already and is never overwritten"):
        write(bundle.path, provenance={"seed": 1})
    assert {relative: (bundle.path / relative).read_bytes() for relative in files_of(bundle.path)} == before


def test_files_of_another_bundle_are_shared_and_still_proven(bundle, tmp_path):
    shared = parts(heads()) | {BACKBONE_ONNX: bundle.backbone_onnx}
    other = write(tmp_path / "other", parts=shared)
    assert other.backbone_onnx.stat().st_ino == bundle.backbone_onnx.stat().st_ino
    assert open_bundle(other.path).bundle_sha256 == bundle.bundle_sha256
    shutil.rmtree(bundle.path)
    assert open_bundle(other.path) == other


def test_a_part_that_is_a_symbolic_link_becomes_a_file(bundle, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(bundle.backbone_onnx)
    assert open_bundle(write(tmp_path / "other", parts=parts(heads()) | {BACKBONE_ONNX: link}).path).backbone_onnx.is_file()


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../x", "a//b", "./a", "", ".", "a/"])
def test_parts_have_plain_relative_paths(tmp_path, name):
    with pytest.raises(ArtifactError, match="must be a plain relative path"):
        write(tmp_path / "bundle", parts=parts(heads()) | {name: b""})


@pytest.mark.parametrize("name", [MANIFEST, FUSED_ONNX, "heads/lion/1/head.json", "signatures/bundle.sig"])
def test_what_the_bundle_writes_itself_is_no_part(tmp_path, name):
    with pytest.raises(ArtifactError, match="is written with the bundle; leave it out of the parts"):
        write(tmp_path / "bundle", parts=parts(heads()) | {name: b""})


@pytest.mark.parametrize("name", [BACKBONE_ONNX, "heads/cat/1/model.onnx"])
def test_the_backbone_and_every_head_must_be_there(tmp_path, name):
    with pytest.raises(ArtifactError, match=f"a bundle needs {name}"):
        write(tmp_path / "bundle", parts={k: v for k, v in parts(heads()).items() if k != name})
    assert list(tmp_path.iterdir()) == []


def test_heads_and_taxonomy_must_have_the_same_classes_in_the_same_order(tmp_path):
    with pytest.raises(ArtifactError, match=r"the heads are of classes .*; the taxonomy has"):
        write(tmp_path / "bundle", taxonomy=Taxonomy.from_ids(reversed(CLASS_IDS)))


def test_two_heads_in_one_directory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ovr.core.ledger.slug", lambda class_id: "same")
    with pytest.raises(ArtifactError, match="two heads would lie in one directory"):
        write(tmp_path / "bundle")


def test_nothing_is_written_when_fusing_fails(tmp_path):
    def fail(card):
        raise ArtifactError("no graph")

    with pytest.raises(ArtifactError, match="no graph"):
        write(tmp_path / "bundle", fuse=fail)
    assert list(tmp_path.iterdir()) == []
