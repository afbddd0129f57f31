"""`ovr edge diff`: a patch that makes one edge export another, byte for byte, and is about as large as what changed."""

import shutil
from functools import cache

import numpy as np
import pytest

from ovr.calibrator.isotonic import Isotonic
from ovr.cli.main import main
from ovr.core.artifact import DecisionPolicy
from ovr.core.taxonomy import ClassSpec
from ovr.edge.apply import apply_patch
from ovr.errors import ArtifactError
from ovr.lifecycle.calibrate import calibrate
from ovr.lifecycle.decide import redecide
from ovr.lifecycle.edge_diff import write_patch
from ovr.lifecycle.edge_export import EdgeOptions, export_edge
from ovr.lifecycle.edge_gate import GateRows
from ovr.lifecycle.heads import respecified, retire
from ovr.lifecycle.put import NewHead, model_of, put
from ovr.lifecycle.rows import labelled_logits
from ovr.runtime.predictor import EdgePredictor
from tests.bundles import small_bundle
from tests.cohorts import some_cohorts
from tests.edge.exports import content
from tests.lifecycle.conftest import CLASS_IDS, rows_of
from tests.lifecycle.test_heads import halved, new_head

CAT, CRUDE, SIZE, TRAIN = CLASS_IDS
# In bytes, of patches that are not for some hundreds of bytes of weights and 900 of names, digests and card.json.
LARGEST = {
    "recalibrated": 2500,  # with the nodes of an isotonic calibration
    "all recalibrated": 3000,
    "another kind added": 2500,
    "more than fit the block": 4500,
    "other bits": 7000,
    "ort": 1500,
    "onnx to ort": 16000,  # nothing in common
}
LOOSE = 0.5  # margin of untrained heads in few bits: how good they are is not what is asked here


def with_threshold(bundle, out):
    head = bundle.head(SIZE)
    spec = bundle.taxonomy[bundle.taxonomy.column(SIZE)]
    return put(bundle, out, [NewHead(spec, model_of(bundle, head), head.calibration, 0.123)], entry={"command": "test"})


EDITS = {
    "none": None,
    "retrained": lambda b, out: put(b, out, [new_head(TRAIN, b)], entry={"command": "test"}),
    "recalibrated": lambda b, out: calibrate(b, out, halved(b), calibrator=Isotonic(), class_ids=[CRUDE]),
    "all recalibrated": lambda b, out: calibrate(b, out, labelled_logits(b, None), calibrator=Isotonic()),
    "threshold": with_threshold,
    "policy": lambda b, out: redecide(b, out, labelled_logits(b, None), policy=DecisionPolicy(abstain_below=0.3)),
    "added": lambda b, out: put(b, out, [new_head("new", b)], entry={"command": "test"}),
    "another kind added": lambda b, out: put(b, out, [new_head("new", b, kind="mlp")], entry={"command": "test"}),
    "more than fit the block": lambda b, out: put(
        b, out, [new_head(f"new {k}", b, seed=k) for k in range(40)], entry={"command": "test"}
    ),
    "retired": lambda b, out: retire(b, out, [CAT]),
    "renamed": lambda b, out: respecified(b, out, [ClassSpec(SIZE, name="a much longer name than it had")]),
}
# How the base and the new export are made: edits, and options where they are others than of whole exports in fp32.
CASES = {name: ("none", {}, name, {}) for name in EDITS if name != "none"}
CASES |= {
    "taken back": ("retired", {}, "none", {}),
    "fp16": ("none", {"precision": "fp16", "margin": LOOSE}, "retrained", {"precision": "fp16", "margin": LOOSE}),
    "int8": ("none", {"precision": "int8", "margin": LOOSE}, "retrained", {"precision": "int8", "margin": LOOSE}),
    "other bits": ("none", {}, "none", {"precision": "fp16", "margin": LOOSE}),
    "other classes": ("none", {"class_ids": (CAT, SIZE)}, "retrained", {"class_ids": (CAT, TRAIN)}),
    "another IR version": ("none", {}, "retrained", {"ir_version": 9}),
    "ort": ("none", {"format": "ort"}, "retrained", {"format": "ort"}),
    "onnx to ort": ("none", {}, "retrained", {"format": "ort"}),
}


@pytest.fixture(scope="module")
def export(trained, tmp_path_factory):
    """Return a function of an edit and options that gives the directory of an export."""
    folder = tmp_path_factory.mktemp("exports")
    bundle = trained("linear")[1]
    target_NK, mask_NK = (np.load(bundle.path / "calibration" / f"{name}.npy") for name in ("target", "mask"))
    rows = GateRows(target_NK, mask_NK, {"rows": "some"}, x=rows_of(1))

    @cache
    def edited(edit):
        return bundle if EDITS[edit] is None else EDITS[edit](bundle, folder / f"bundle_{len(list(folder.iterdir()))}").bundle

    @cache
    def exported(edit, options):
        out = folder / f"export_{len(list(folder.iterdir()))}"
        asked = EdgeOptions(**dict(options))
        export_edge(edited(edit), out, asked, None if asked.precision == "fp32" else rows)
        return out

    def make(edit="none", **options):
        return exported(edit, tuple(options.items()))

    return make


@pytest.mark.parametrize("case", CASES)
def test_a_base_with_the_patch_is_the_new_export_byte_for_byte(export, tmp_path, case):
    edit, options, new_edit, new_options = CASES[case]
    old, new = export(edit, **options), export(new_edit, **new_options)
    made = write_patch(old, new, tmp_path / "patch")
    shutil.copytree(old, tmp_path / "device")
    assert apply_patch(tmp_path / "patch", tmp_path / "device").is_new
    assert content(tmp_path / "device") == content(new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "patch"]
    x = rows_of(3, 5)
    assert (EdgePredictor(tmp_path / "device").predict_proba(x) == EdgePredictor(new).predict_proba(x)).all()
    assert made.size_bytes == (tmp_path / "patch").stat().st_size
    apply_patch(tmp_path / "patch", old, out=tmp_path / "beside")
    assert content(tmp_path / "beside") == content(new)
    assert made.size_bytes < LARGEST.get(case, 1200)


def test_the_command_tells_which_classes_change_and_how_large_it_is(export, tmp_path, capsys):
    command = ["edge", "diff", str(export("none")), str(export("retrained")), f"out={tmp_path / 'a'}"]
    assert main(command) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == ["train version 4 5", "train threshold 0.6 0.4"]
    assert lines[3] == "train answers differ"
    size, whole = ((file.stat().st_size) for file in (tmp_path / "a", export("retrained") / "model.onnx"))
    assert lines[4:] == [
        f"{tmp_path / 'a'}: {size} bytes, {100 * size / whole:.2g} % of the {whole} of model.onnx"
    ]  # no other class
    main([*command[:3], str(export("more than fit the block", format="ort")), f"out={tmp_path / 'b'}"])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 + 20 + 2
    assert said[-2] == "... and 20 more"
    assert said[-1].endswith("of model.ort; whole in it: model.ort")
    device = shutil.copytree(export("none"), tmp_path / "device")
    assert main(["edge", "apply", str(tmp_path / "a"), str(device)]) == 0
    assert "bytes by a patch of" in capsys.readouterr().out
    assert content(device) == content(export("retrained"))


@pytest.mark.parametrize(
    ("edit", "changes"),
    [
        ("threshold", [(SIZE, "version", "3", "4"), (SIZE, "threshold", "0.5", "0.123")]),
        ("renamed", [(SIZE, "name", SIZE, "a much longer name than it had")]),
        ("added", [("new", "added", "", "")]),
        ("retired", [(CAT, "retired", "", "")]),
        ("policy", [("(all)", "policy", "", "another")]),
    ],
)
def test_what_differs_is_told_class_by_class(export, tmp_path, edit, changes):
    assert list(write_patch(export(), export(edit), tmp_path / "patch").changes) == changes


def test_models_of_other_inputs_are_told_to_be_that(export, tmp_path):
    bundle = small_bundle(tmp_path / "bundle", CLASS_IDS)
    export_edge(bundle, tmp_path / "new", EdgeOptions())
    made = write_patch(export("none"), tmp_path / "new", tmp_path / "patch")
    assert {change[1] for change in made.changes if change[0] == "(all)"} == {"backbone", "policy", "input"}
    apply_patch(tmp_path / "patch", export("none"), out=tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "new")


@pytest.mark.parametrize("kind", ["mlp", "with cohorts"])
def test_models_of_other_kinds_are_patched_likewise(trained, tmp_path, kind):
    if kind == "mlp":
        old = trained("mlp")[1]
        new = put(old, tmp_path / "b", [new_head(TRAIN, old, kind="mlp")], entry={"command": "test"}).bundle
    else:
        cohorts = [some_cohorts(len(CLASS_IDS), seed=seed) for seed in (0, 1)]
        old, new = (small_bundle(tmp_path / f"{k}", CLASS_IDS, cohorts=cohorts[k]) for k in range(2))
    for name, bundle in (("old", old), ("new", new)):
        export_edge(bundle, tmp_path / f"{name}.edge", EdgeOptions())
    made = write_patch(tmp_path / "old.edge", tmp_path / "new.edge", tmp_path / "patch")
    assert [change[:2] for change in made.changes][-1] == ((TRAIN, "answers") if kind == "mlp" else ("(all)", "cohorts"))
    apply_patch(tmp_path / "patch", tmp_path / "old.edge")
    assert content(tmp_path / "old.edge") == content(tmp_path / "new.edge")


def test_what_cannot_be_diffed_is_refused_and_nothing_is_written(export, trained, tmp_path):
    out = tmp_path / "patch"

    def refused(said, old, new):
        with pytest.raises(ArtifactError, match=said):
            write_patch(old, new, out)

    old, new = export("none"), export("retrained")
    refused("is no directory that `ovr export target=edge` wrote", trained()[1].path, new)
    refused("are the same, byte for byte; there is nothing to patch", old, old)
    broken = shutil.copytree(new, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"short")
    refused("model.onnx was changed or cut short", old, broken)
    refused("model.onnx was changed or cut short", broken, old)
    (broken / "rows.csv").write_text("")
    refused("holds rows.csv, which is no part", old, broken)
    assert not out.exists()
    (tmp_path / "link").symlink_to(new)
    for within in (old / "patch", new / "patch", tmp_path / "link" / "some" / "patch"):
        with pytest.raises(ArtifactError, match=r"is within .*, which would be no edge export with it; choose a place outside"):
            write_patch(old, new, within)
        assert not within.exists()
    out.write_text("mine")
    refused("exists already; choose another file", old, new)
    assert out.read_text() == "mine"
