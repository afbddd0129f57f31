"""`ovr export` and `ovr publish` on a bundle."""

import json

from ovr.cli.main import main
from ovr.core.faults import PLAN, Faults, HeadPlan
from ovr.core.files import sha256_file
from ovr.core.taxonomy import slug
from ovr.input.image import ImageEncoder
from ovr.serving.contents import read_config
from tests.bundles import small_bundle
from tests.cli.test_main import error_of


def test_export_writes_every_file_once(bundle, tmp_path, capsys):
    args = ["export", f"bundle={bundle.path}", f"out={tmp_path / 'onnx'}"]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert f"backbone, {len(bundle.heads)} heads and fused graph in {tmp_path / 'onnx'}" in out
    names = {path.relative_to(tmp_path / "onnx").as_posix() for path in (tmp_path / "onnx").rglob("*") if path.is_file()}
    assert names == {"card.json", "backbone.onnx", "fused.onnx", *(f"heads/{slug(i)}.onnx" for i in bundle.taxonomy.ids)}
    assert json.loads((tmp_path / "onnx" / "card.json").read_text(encoding="utf-8")) == bundle.card.to_json()
    before = {name: sha256_file(tmp_path / "onnx" / name) for name in names}
    assert "exists already" in error_of(capsys, *args)
    assert {name: sha256_file(tmp_path / "onnx" / name) for name in names} == before


def test_publish_tells_the_versions_and_refuses_the_same_bundle_again(bundle, tmp_path, capsys):
    args = ["publish", f"bundle={bundle.path}", f"repository={tmp_path / 'repository'}"]
    assert main(args) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == ["ovr_scores version 1", "ovr version 1"]
    assert "serves this bundle" in error_of(capsys, *args)
    assert main([*args, "exist_ok=true"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == ["ovr_scores version 1", "ovr version 1"]


def test_publish_takes_the_settings_of_serving(bundle, tmp_path, capsys):
    args = ["publish", f"bundle={bundle.path}", f"repository={tmp_path / 'repository'}"]
    assert main([*args, "serving=gpu", "serving.layout=per_head", "serving.max_queue_delay_us=500"]) == 0
    config = (tmp_path / "repository" / "ovr_scores" / "config.pbtxt").read_text()
    assert "KIND_GPU" in config
    assert "max_queue_delay_microseconds: 500" in config
    heads = {path.name for path in (tmp_path / "repository").glob("head_*")}
    assert heads == {f"head_{slug(class_id)}" for class_id in bundle.taxonomy.ids}


def test_publish_takes_what_is_to_be_done_about_faults(bundle, tmp_path, capsys):
    args = ["publish", f"bundle={bundle.path}", f"repository={tmp_path / 'repository'}"]
    class_id = bundle.taxonomy.ids[0]
    assert main([*args, "serving.faults.breaker_pause_s=9", f"serving.faults.fallback_of={{{class_id}: fail}}"]) == 0
    plan = read_config(tmp_path / "repository", "ovr").parameters[PLAN].string_value
    assert HeadPlan.from_json(json.loads(plan)).faults == Faults(breaker_pause_s=9, fallback_of={class_id: "fail"})
    assert main([*args, "serving.faults.breaker_pause_s=5"]) == 0
    plan = read_config(tmp_path / "repository", "ovr").parameters[PLAN].string_value
    assert HeadPlan.from_json(json.loads(plan)).faults == Faults()  # conf and the functions have the same defaults
    capsys.readouterr()
    assert "fallback is 'zero'; expected one of" in error_of(capsys, *args, "serving.faults.fallback=zero")
    assert "no class of this bundle: 'zzz'" in error_of(capsys, *args, "serving.faults.fallback_of={zzz: fail}")


def test_what_cannot_be_published_is_refused_and_nothing_is_written(bundle, tmp_path, capsys):
    args = ["publish", f"bundle={bundle.path}", f"repository={tmp_path / 'repository'}"]
    assert "layout is 'fussed'; expected 'fused' or 'per_head'" in error_of(capsys, *args, "serving.layout=fussed")
    assert "max_batch_size is 0; expected" in error_of(capsys, *args, "serving.max_batch_size=0")
    assert "http://127.0.0.1:1" in error_of(capsys, *args, "server=http://127.0.0.1:1")
    assert "nearest: serving.layout" in error_of(capsys, *args, "layout=fused")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_repository(bundle, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    error = error_of(capsys, "publish", f"bundle={bundle.path}", f"repository={tmp_path / 'file'}")
    assert "is a file; expected a directory" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_export_of_some_heads_writes_them_and_the_backbone(bundle, tmp_path, capsys):
    wanted = bundle.taxonomy.ids[2]
    args = ["export", f"bundle={bundle.path}", f"out={tmp_path / 'onnx'}", f'heads=["{wanted}"]']
    assert main(args) == 0
    assert f"backbone, 1 heads in {tmp_path / 'onnx'}" in capsys.readouterr().out
    names = {path.relative_to(tmp_path / "onnx").as_posix() for path in (tmp_path / "onnx").rglob("*") if path.is_file()}
    assert names == {"backbone.onnx", f"heads/{slug(wanted)}.onnx"}
    args[2:] = [f"out={tmp_path / 'other'}", "heads=[nobody]"]
    assert "class 'nobody' is not in the taxonomy" in error_of(capsys, *args)
    assert not (tmp_path / "other").exists()
    assert "heads is 'cat'; expected a list" in error_of(capsys, *args[:-1], "heads=cat")
    for value, written in (("[1.50]", "1.50"), ("[true]", "true"), ("[null]", "null")):
        assert f"class {written!r} is not in the taxonomy" in error_of(capsys, *args[:-1], f"heads={value}")
    assert "heads holds ['1'], which is no text; quote class ids" in error_of(capsys, *args[:-1], "heads=[[1]]")
    assert "heads is an empty list" in error_of(capsys, *args[:-1], "heads=[]")
    assert not (tmp_path / "other").exists()


def test_what_a_device_needs_to_encode_its_rows_is_told(tmp_path, capsys):
    encoder = ImageEncoder(3, 2, mode="grey")
    images = small_bundle(tmp_path / "images", shape=encoder.tensor.shape, encoder=encoder.to_json())
    plain, told = small_bundle(tmp_path / "plain"), "more than 'ovr[edge]': pip install 'pillow>=11.3,<14'"
    for bundle, said in ((images, told), (plain, None)):
        assert main(["export", f"bundle={bundle.path}", f"out={bundle.path}.edge", "target=edge"]) == 0
        out = capsys.readouterr().out
        assert "pip install" not in out if said is None else said in out
