"""Two bundles on the same rows: the tests are `ovr.metric.compare`'s; here it is who is compared with what."""

import json

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.cli.main import main
from ovr.core.artifact import Calibration
from ovr.data.labels import Labels
from ovr.data.splits import TestRows
from ovr.errors import ArtifactError, DataError
from ovr.lifecycle.calibrate import calibrate
from ovr.lifecycle.compare import compare_bundles, write_comparison
from ovr.lifecycle.rows import NewRows, labelled_logits
from ovr.metric.calibration import brier
from tests.cli.test_main import error_of
from tests.export.sample import sample_bundle, sample_model
from tests.lifecycle.conftest import CLASS_IDS, rows_of, sample_labels, torch_logits
from tests.lifecycle.test_calibrate import Fixed

TURNED = (2, 0, 3, 1)


@pytest.fixture(scope="module")
def rows(trained):
    model, _ = trained()
    x = rows_of(2, 1200)
    return NewRows(TestRows(x, Labels.from_dense(*sample_labels(torch_logits(model, x), 2))), {"rows": "all"})


@pytest.fixture(scope="module")
def spoilt(trained, tmp_path_factory):
    """The bundle with one class calibrated much too boldly."""
    _, bundle = trained()
    calibrations = [head.calibration for head in bundle.heads]
    calibrations[2] = Calibration(scale=5.0, bias=4.0, kind="platt", status="ok")
    out = tmp_path_factory.mktemp("spoilt") / "bundle"
    return calibrate(bundle, out, labelled_logits(bundle, None), calibrator=Fixed(*calibrations)).bundle


def of_turned(rows, order=TURNED):
    target_NK, mask_NK = rows.rows.labels.dense()
    return NewRows(TestRows(rows.rows.x, Labels.from_dense(target_NK[:, order], mask_NK[:, order])), rows.record)


def test_a_class_that_got_worse_is_named_and_no_other(trained, spoilt, rows):
    _, bundle = trained()
    found = compare_bundles(bundle, spoilt, rows, rows)
    assert found.report["verdicts"] == {"better": 0, "same": 3, "worse": 1}
    assert [line["verdict"] for line in found.report["classes"]] == ["same", "same", "worse", "same"]
    back = compare_bundles(spoilt, bundle, rows, rows)
    assert [line["verdict"] for line in back.report["classes"]] == ["same", "same", "better", "same"]
    target_NK, mask_NK = rows.rows.labels.dense()
    for side, made in (("first", bundle), ("second", spoilt)):
        assert found.report[side]["bundle_sha256"] == made.bundle_sha256
        expected = brier(EdgePredictor(made.path).predict_proba(rows.rows.x), target_NK, mask_NK)
        np.testing.assert_allclose([line[f"brier_{side}"] for line in found.report["classes"]], expected, atol=1e-6)


def test_classes_are_compared_by_their_ids_whatever_their_order(trained, spoilt, rows, tmp_path):
    model, bundle = trained()
    # The same heads in another order of classes.
    other = sample_model(num_heads=4)
    for k, column in enumerate(TURNED):
        other.head.set_head_weights(k, model.head.head_weights(column))
    turned, _ = sample_bundle(
        tmp_path / "turned",
        other,
        [CLASS_IDS[k] for k in TURNED],
        policy=spoilt.policy,
        calibrations=[spoilt.heads[k].calibration for k in TURNED],
        thresholds=[spoilt.heads[k].threshold for k in TURNED],
    )
    expected = compare_bundles(bundle, spoilt, rows, rows).report
    report = compare_bundles(bundle, turned, rows, of_turned(rows)).report
    assert report["verdicts"] == expected["verdicts"]
    for line, other in zip(report["classes"], expected["classes"], strict=True):
        assert line == pytest.approx(other, abs=1e-5)
    with pytest.raises(DataError, match="has other labels for the second bundle; expected the same rows"):
        compare_bundles(bundle, turned, rows, rows)
    fewer = NewRows(TestRows(rows.rows.x[:9], rows.rows.labels.take(np.arange(9))), {})
    with pytest.raises(DataError, match="the bundles are given 1200 and 9 rows; expected the same rows"):
        compare_bundles(bundle, spoilt, rows, fewer)


def test_bundles_that_cannot_be_compared_are_refused(trained, sharded, rows, tmp_path):
    model, bundle = trained()
    with pytest.raises(ArtifactError, match="keeps its 4 heads in shards; compared are bundles with a file a head"):
        compare_bundles(bundle, sharded[1], rows, rows)
    other, _ = sample_bundle(tmp_path / "other", model, [*CLASS_IDS[:3], "nobody"])
    with pytest.raises(ArtifactError, match=r"of other classes cannot be compared: .* alone has 'train'; .* alone has 'nobody'"):
        compare_bundles(bundle, other, rows, rows)


def test_the_command_prints_a_line_a_class_and_writes_all_of_it(trained, spoilt, rows, tmp_path, capsys):
    _, bundle = trained()
    ids = np.array(["", *CLASS_IDS])
    x, column = rows_of(3, 60), np.arange(60) % 4
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", ids[1:][column])
    data = ["data=features", f"data.path={tmp_path / 'x.npy'}", f"data.labels={tmp_path / 'y.npy'}"]
    args = [f"bundle={bundle.path}", f"candidate={spoilt.path}", *data]
    assert main(["compare", *args, f"out={tmp_path / 'out'}", "max_lines=1"]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out/comparison.json").read_text())
    assert "the second is " + ", ".join(f"{count} {name}" for name, count in report["verdicts"].items()) in printed
    assert "and 3 more; out=DIR writes all of them" in printed
    assert len((tmp_path / "out/classes.csv").read_text().splitlines()) == 5
    assert main(["compare", *args]) == 0
    for more, message in (
        ([f"out={tmp_path}"], "exists already"),
        (["max_lines=-1"], "max_lines is -1; expected a whole number of at least 0"),
        (["confidence=1.5"], "confidence is 1.5"),
    ):
        assert message in error_of(capsys, "compare", *args, *more)
    assert "data is not given: name labelled rows that neither bundle" in error_of(capsys, "compare", *args[:2])


def test_a_comparison_is_not_written_over_another(trained, rows, tmp_path):
    _, bundle = trained()
    found = compare_bundles(bundle, bundle, rows, rows)
    assert found.report["verdicts"] == {"better": 0, "same": 4, "worse": 0}
    write_comparison(tmp_path / "out", found)
    with pytest.raises(ArtifactError, match="exists already"):
        write_comparison(tmp_path / "out", found)
