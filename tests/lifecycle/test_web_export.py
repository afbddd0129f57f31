"""`ovr export target=web`: a directory with all that a page needs, and nothing that it cannot show."""

import json
import re
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from ovr import EdgePredictor
from ovr.cli.main import main
from ovr.core.files import sha256_bytes
from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError, ConfigError
from ovr.input.columns import DateColumn
from ovr.input.image import ImageEncoder
from ovr.input.sparse import SparseRows
from ovr.input.table import TableEncoder
from ovr.lifecycle.edge_export import EdgeOptions
from ovr.lifecycle.web_export import check_page, export_web, ink_of
from ovr.web import runtime
from tests.bundles import small_bundle
from tests.cli.test_main import error_of
from tests.web.pages import digits_bundle, table_bundle, text_bundle

RUNTIME = {"ort.wasm.bundle.min.js": b"export {}"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digits_bundle(tmp_path_factory.mktemp("digits") / "bundle")


def page_of(bundle, out, **options):
    export_web(bundle, out, EdgeOptions(), RUNTIME, **options)
    return json.loads((out / "page.json").read_bytes())


def test_a_page_is_an_edge_export_with_all_that_its_modules_ask_for(digits, tmp_path):
    out = tmp_path / "out"
    card = export_web(digits, out, EdgeOptions(class_ids=["3", "8"]), RUNTIME)
    x = np.load(digits.path / "reference" / "x.npy")
    assert (EdgePredictor(out).predict_proba(x) == EdgePredictor(digits.path).predict_proba(x)[:, [3, 8]]).all()
    assert json.loads((out / "card.json").read_bytes()) == card
    props = {entry.key: entry.value for entry in onnx.load(out / "model.onnx").metadata_props}
    assert (out / "model_card.json").read_text(encoding="utf-8") == props["ovr.card"]
    assert (out / "ort" / "ort.wasm.bundle.min.js").read_bytes() == b"export {}"
    scripts = [path for path in out.rglob("*.js") if path.parent.name != "ort"]
    asked = {(path, name) for path in scripts for name in re.findall(r'from "([^"]+)"', path.read_text(encoding="utf-8"))}
    assert len(asked) > 20
    assert [(path, name) for path, name in asked if not (path.parent / name).is_file()] == []
    linked = re.findall(r'(?:src|href)="([^"#:]+)"', (out / "index.html").read_text(encoding="utf-8"))
    assert linked
    assert all((out / name).is_file() for name in linked)
    with pytest.raises(ArtifactError, match="exists already"):
        export_web(digits, out, EdgeOptions(), RUNTIME)


def test_pictures_tell_their_size_ink_and_box_and_examples_are_of_each_class(digits, tmp_path):
    page = page_of(digits, tmp_path / "out")
    x, prob = (np.load(digits.path / "reference" / f"{name}.npy") for name in ("x", "prob"))
    covered = float(np.median(x.sum(axis=1) / 16))
    expected = {"kind": "picture", "height": 8, "width": 8, "channels": 1, "low": 0, "high": 16, "background": 0, "ink": 16}
    assert page["input"] == {**expected, "box": [8, 6], "covered": covered}
    assert all(row in x.tolist() for row in page["examples"])
    best = prob[[x.tolist().index(row) for row in page["examples"]]].argmax(axis=1)
    assert best.tolist() == list(range(10))
    assert page_of(digits, tmp_path / "few", num_examples=2)["examples"] == page["examples"][:2]
    assert page_of(digits, tmp_path / "none", num_examples=0)["examples"] == []


def test_white_paper_is_told_from_black_by_its_edges():
    x = np.full((3, 1, 6, 5), 255, np.float32)
    x[:, :, 1:4, 2] = 0  # a line of three dark pixels
    white = {
        "channels": 1,
        "height": 6,
        "width": 5,
        "low": 0,
        "high": 255,
        "background": 255,
        "ink": 0,
        "box": [3, 1],
        "covered": 3,
    }
    assert ink_of(x, levels=None) == white
    assert ink_of(255 - x, levels=(0.0, 255.0)) == {**white, "background": 0, "ink": 255}
    empty = ink_of(np.zeros((1, 3, 4, 4), np.float32), levels=None)
    assert (empty["box"], empty["covered"], empty["channels"]) == ([4, 4], 0, 3)


@pytest.mark.parametrize("mode", ["grey", "rgb"])
def test_images_keep_their_channels_and_levels(mode, tmp_path):
    encoder = ImageEncoder(6, 5, mode=mode)
    bundle = small_bundle(tmp_path / "bundle", shape=encoder.tensor.shape, encoder=encoder.to_json())
    x = np.load(bundle.path / "reference" / "x.npy")
    page = page_of(bundle, tmp_path / "out")
    found = page["input"]
    assert (found["channels"], found["height"], found["width"]) == encoder.tensor.shape
    assert (found["low"], found["high"]) == (0, 255)
    assert np.array_equal(
        np.float32(page["examples"]),
        x.reshape(4, -1)[[x.reshape(4, -1).tolist().index(list(np.float32(row))) for row in page["examples"]]],
    )


def test_other_rows_have_a_form_a_box_or_numbers(tmp_path):
    assert page_of(table_bundle(tmp_path / "a"), tmp_path / "table") == {
        "schema_version": 1,
        "input": {"kind": "table"},
        "examples": [],
    }
    assert page_of(text_bundle(tmp_path / "b"), tmp_path / "text")["input"] == {"kind": "text"}
    page = page_of(small_bundle(tmp_path / "c"), tmp_path / "numbers")
    assert page["input"] == {"kind": "numbers"}
    assert len(page["examples"]) == 4
    assert page_of(small_bundle(tmp_path / "d", shape=(2, 3)), tmp_path / "array")["input"] == {"kind": "numbers"}


def test_what_a_page_cannot_show_is_refused(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="format=ort is of target=edge"):
        check_page(bundle, tmp_path / "out", EdgeOptions(format="ort"), 10)
    for examples in (-1, 51, 2.5, True):
        with pytest.raises(ConfigError, match=f"examples is {examples}; expected a whole number from 0 to 50"):
            check_page(bundle, tmp_path / "out", EdgeOptions(), examples)
    dates = [DateColumn(f"d{n}", ("year",), 0.0, 0.0, 1.0, 0.0, 1.0, True, ("%d", "%Y %U")) for n in range(5)]
    weeks = TableEncoder(tuple(dates)).to_json()
    tokens, words = {"kind": "tokens", "tokenizer": json.dumps({"model": {"type": "Unigram"}})}, {"kind": "text"}
    for encoder, said in (
        (SparseRows(9, 3).to_json(), "values by feature number"),
        (tokens, "cannot run this model: the tokenizer's model is of type 'Unigram', .*; it has WordPiece, BPE; use target=edge"),
        ({"kind": "joined", "parts": [["words", words], ["tokens", tokens]]}, "the tokenizer's model is of type 'Unigram'"),
        (weeks, "column 'd0' has times of the form '%Y %U', .*; column 'd2' has .*; and 2 more; use target=edge"),
    ):
        refused = SimpleNamespace(input=InputSchema((3, 2), encoder=encoder))
        with pytest.raises(ConfigError, match=said):
            check_page(refused, tmp_path / "out", EdgeOptions(), 10)


def test_the_command_writes_the_page_and_says_how_to_look_at_it(tmp_path, capsys, monkeypatch):
    bundle, package = small_bundle(tmp_path / "bundle"), tmp_path / "package"
    known = {name: (source, sha256_bytes(b"export {}")) for name, (source, _) in runtime.FILES.items()}
    monkeypatch.setattr(runtime, "FILES", known)
    for source, _ in known.values():
        (package / source).parent.mkdir(parents=True, exist_ok=True)
        (package / source).write_bytes(b"export {}")
    args = ["export", f"bundle={bundle.path}", f"out={tmp_path / 'out'}"]
    assert main([*args, "target=web", f"runtime={package}", "classes=[dog]", "examples=1"]) == 0
    said = capsys.readouterr().out
    assert "1 heads fp32" in said
    assert f"python -m http.server 8000 --bind 127.0.0.1 --directory {tmp_path / 'out'}" in said
    assert {path.name for path in (tmp_path / "out" / "ort").iterdir()} == {*known, "LICENSE", "ThirdPartyNotices.txt"}
    args[2] = f"out={tmp_path / 'other'}"
    assert "runtime, examples is of target=web" in error_of(capsys, *args, "target=edge", f"runtime={package}", "examples=0")
    assert "runtime is of target=web" in error_of(capsys, *args, f"runtime={package}")
    assert "examples is 99; expected" in error_of(capsys, *args, "target=web", "examples=99")
    assert "heads is of target=onnx; name the heads of target=web" in error_of(capsys, *args, "target=web", "heads=[dog]")
    assert not (tmp_path / "other").exists()
