"""A runtime that is too old for a file: which one is needed, and what this one takes."""

from itertools import pairwise

import onnx
import pytest
from onnx import helper

from ovr.runtime.onnx_versions import MADE, RELEASES, release_for, too_old, versions_of
from tests.bundles import small_bundle


def test_later_releases_take_no_less():
    for before, after in pairwise(RELEASES):
        assert before[0] < after[0]
        assert before[1] <= after[1]
        assert before[2] <= after[2]
        assert before[1:] != after[1:]


@pytest.mark.parametrize(
    ("opset", "ir_version", "release"),
    [
        (7, 4, "1.0"),
        (12, 7, "1.3"),
        (13, 7, "1.6"),
        (15, 8, "1.9"),
        (17, 8, "1.12"),
        (18, 8, "1.14"),
        (18, 9, "1.16"),
        (*MADE, "1.18"),
    ],
)
def test_the_first_release_that_takes_opset_and_ir_version(opset, ir_version, release):
    assert release_for(opset, ir_version) == release


def test_what_is_later_than_the_table_has_no_release():
    assert release_for(99, 10) is release_for(18, 99) is None


def test_versions_are_read_off_the_file(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    model = onnx.load(bundle.fused_onnx)
    model.opset_import.insert(0, helper.make_opsetid("pkg.other", 3))
    model.ir_version, model.opset_import[1].version = 8, 17
    onnx.save(model, tmp_path / "old.onnx")
    assert versions_of(tmp_path / "old.onnx") == (17, 8)
    assert versions_of(bundle.fused_onnx) == MADE


def test_an_old_runtime_is_told_which_is_needed_and_what_it_takes_itself():
    said = too_old(18, 10, runtime="1.12.1", error="No Op registered for LayerNormalization with domain_version of 17")
    assert said == (
        "it has opset 18 and IR version 10, and needs onnxruntime 1.18 or a later one: onnxruntime 1.12.1 takes opset 17 and IR "
        "version 8 at most; `ovr export target=edge opset=17 ir_version=8` makes a file for this one, where all its operators are "
        "that old"
    )
    assert too_old(18, 10, runtime="1.18.0", error="the weights do not fit") is None
    assert "opset=18 ir_version=9`" in too_old(18, 10, runtime="1.17.3", error="Unsupported model IR version: 10")
