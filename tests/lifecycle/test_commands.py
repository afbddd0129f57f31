"""`ovr calibrate`, `decide` and `evaluate` as a person uses them, on a run of `ovr train`."""

import csv
import json

import numpy as np
import pytest

from ovr.abstention.promises import SAME_ROWS
from ovr.cli.calibrate import trained_calibrator
from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from ovr.errors import ConfigError
from ovr.lifecycle.rewrite import calibrations_of
from tests.cli.test_main import error_of
from tests.conftest import logging_restored
from tests.lifecycle.conftest import flat

IDS = ("x/y", "..", "train")
NEW = ["data=table", "data.target=label"]


def write(path, num_rows, seed, ids=IDS, **columns):
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "sex", "label"])
        for n in range(num_rows):
            k = rng.integers(len(ids))
            writer.writerow([*rng.normal((np.cos(k), np.sin(k))), "FM"[n % 2], ids[k]])
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the directory of a run, beside whose rows there are others."""
    folder = tmp_path_factory.mktemp("run")
    table = write(folder / "rows.csv", 240, 0)
    write(folder / "new.csv", 150, 1)
    args = [*NEW, f"data.path={table}", "solver=convex", "backbone=identity", f"solver.cache_dir={folder}"]
    with logging_restored():
        assert main(["train", *args, "decision=multilabel", f"hydra.run.dir={folder / 'run'}"]) == 0
    return folder


@pytest.fixture
def args(run, tmp_path):
    return [f"bundle={run / 'run/bundle'}", f"out={tmp_path / 'out'}"]


def test_the_settings_of_training_give_its_test_rows_and_its_report(run, args, tmp_path, capsys):
    assert main(["evaluate", *args, *NEW, f"data.path={run / 'rows.csv'}", "rows=test"]) == 0
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    trained = json.loads((run / "run/bundle/report/metrics.json").read_text())
    del trained["abstention_status"]  # of the rule that chose the limit
    expected = flat(trained)
    assert {name: value for name, value in flat(report).items() if name in expected} == pytest.approx(expected, abs=1e-5)
    assert report["data"]["num_trained_on"] == 0
    assert report["data"]["files"][0]["name"] == "rows.csv"
    assert f"accuracy                 {report['accuracy']:.4f}" in capsys.readouterr().out


def test_new_rows_calibrate_decide_and_measure(run, args, tmp_path, capsys):
    new = [*NEW, f"data.path={run / 'new.csv'}", "data.source.cohorts=[sex]"]
    assert main(["calibrate", *args, *new, "calibrator=temperature", "calibrator.prior_strength=0", 'classes=["x/y"]']) == 0
    assert "1 of 3 heads changed, on 150 rows" in capsys.readouterr().out
    second = [f"bundle={tmp_path / 'out'}", f"out={tmp_path / 'second'}"]
    assert main(["decide", *second, "decision=argmax", "decision.policy.abstain_below=0.3"]) == 0
    bundle, parent = open_bundle(tmp_path / "second"), open_bundle(run / "run/bundle")
    changed = [k for k, (new, old) in enumerate(zip(calibrations_of(bundle), calibrations_of(parent), strict=True)) if new != old]
    assert [bundle.taxonomy[k].id for k in changed] == ["x/y"]
    assert (bundle.policy.mode, bundle.policy.abstain_below) == ("argmax", 0.3)
    first, then = bundle.provenance["history"]
    assert (first["command"], first["data"]["num_rows"], first["calibrator"]["prior_strength"]) == ("calibrate", 150, 0)
    assert (then["command"], then["data"]["rows"]) == ("decide", "the bundle's own calibration rows")
    third = [f"bundle={tmp_path / 'second'}", f"out={tmp_path / 'measured'}"]
    assert main(["evaluate", *third, *new, "max_overlap=1"]) == 0
    assert json.loads((tmp_path / "measured/metrics.json").read_text())["num_rows"] == 150


def test_rows_that_were_trained_on_are_refused_unless_that_is_allowed(run, args, tmp_path, capsys):
    rows = [*NEW, f"data.path={run / 'rows.csv'}"]
    for command, purpose, share in (
        ("calibrate", "calibrated on", 0.6),
        ("decide", "decided by", 0.6),
        ("evaluate", "measured on", 0.75),
    ):
        error = error_of(capsys, command, *args, *rows)
        assert error.startswith("144 of 240 rows (60.00%) of rows.csv are also training rows of the model: row ")
        calibrated_on = "; 36 of 240 rows (15.00%) of rows.csv are also calibration rows of the model: row "
        assert (calibrated_on in error) == (command == "evaluate")
        assert f"so they are not to be {purpose}" in error
        assert f"max_overlap={share} allows them" in error
    assert "max_overlap must be a share" in error_of(capsys, "evaluate", *args, *rows, "max_overlap=2")
    assert list(tmp_path.iterdir()) == []
    assert main(["evaluate", *args, *rows, "max_overlap=0.75"]) == 0
    assert "144 of 240 rows" in capsys.readouterr().err
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    told = report["data"]
    assert (report["num_rows"], told["num_trained_on"], told["num_calibrated_on"]) == (240, 144, 36)
    decide = ["decide", f"bundle={run / 'run/bundle'}", f"out={tmp_path / 'decided'}", *rows, "max_overlap=0.6"]
    assert main([*decide, "abstention=review_rate", "abstention.rate=0.2"]) == 0
    said = open_bundle(tmp_path / "decided").provenance
    assert (said["history"][-1]["data"]["num_calibrated_on"], said["abstention_status"]) == (36, SAME_ROWS)


def test_rows_that_a_bundle_was_calibrated_or_decided_on_are_not_to_measure_it(run, args, tmp_path, capsys):
    new = [*NEW, f"data.path={run / 'new.csv'}"]
    calib = [*NEW, f"data.path={run / 'rows.csv'}", "rows=calib"]
    message = "36 of 36 rows (100.00%) of rows.csv are also calibration rows of the model: row "
    assert message in error_of(capsys, "evaluate", *args, *calib)
    assert message in error_of(capsys, "compare", *args, f"candidate={run / 'run/bundle'}", *calib)
    assert main(["calibrate", *args, *calib]) == 0
    second = [f"bundle={tmp_path / 'out'}", f"out={tmp_path / 'second'}"]
    assert main(["decide", *second, *new, "threshold=max_f_beta"]) == 0
    bundle = open_bundle(tmp_path / "second")
    files = [entry["row_digests"] for entry in bundle.provenance["history"]]
    assert files == ["data/calib_rows_1.npy", "data/calib_rows_2.npy"]
    assert [len(np.load(bundle.path / file)) for file in files] == [36, 150]
    third = [f"bundle={bundle.path}", f"out={tmp_path / 'third'}"]
    assert "150 of 150 rows (100.00%) of new.csv are also calib" in error_of(capsys, "evaluate", *third, *new)
    assert main(["calibrate", *third, *new]) == 0  # again on the same rows: that is no measurement


def test_what_cannot_be_used_is_said_and_nothing_is_written(run, args, tmp_path, capsys):
    new = [*NEW, f"data.path={run / 'new.csv'}"]
    other = write(tmp_path / "other.csv", 20, 2, ids=("x/y", "nobody"))
    taken = [args[0], f"out={run}"]
    for command, more, message in (
        ("evaluate", args, "data is not given: a bundle keeps no test rows. Name labelled rows"),
        ("calibrate", [*args, "rows=test"], "rows=test is of a source of rows; say which"),
        ("calibrate", [*args, *new, "rows=some"], "rows is 'some'; expected one of all, train, val, calib, test"),
        ("calibrate", [*args, "data=features", f"data.path={run / 'new.csv'}"], "is of another kind than .npy, .npz, .parquet"),
        ("calibrate", [*args, "data=digits"], "the model takes columns (data=table), not what data=digits gives"),
        ("calibrate", [*args, "+data.x=1"], "expected a source of rows, such as data=table data.path=FILE"),
        ("evaluate", [*args, *NEW, f"data.path={other}"], "labels outside the taxonomy of 3 classes: 'nobody'"),
        ("evaluate", [*args, *new, "data.source.cohorts=[race]"], "has no column 'race'; its columns are 'a', 'b', 'sex', 'label'"),
        ("calibrate", [*taken, *new], "exists already and is never overwritten"),
        ("decide", [args[0], f"out={run / 'run/bundle/new'}"], "lies within the bundle"),
        ("evaluate", [*taken, *new], "exists already and is never overwritten"),
        ("decide", [*args, "classes=x/y"], "classes is 'x/y'; expected a list of class ids, such as [x/y]"),
        ("calibrate", [*args, "classes=[1.50]"], "'1.50'"),
        ("calibrate", [*args, "classes=[cat]"], "cat"),
        (
            "decide",
            [*args, *NEW, "data.path=/none", "threshold=cost", "threshold.costs={trian: {false_negative: 2}}"],
            "(nearest: train)",
        ),
        ("evaluate", [*args, *NEW, "data.path=/none", "contract=true", "max_ece_of={trian: 0.1}"], "'trian' (nearest: train)"),
        (
            "calibrate",
            [*args, *NEW, "data.path=/none", "calibrator=isotonic", "cohort.column=sex"],
            "cohort.column=sex rescales a head's calibrated logit, and the calibrator may give isotonic",
        ),
        ("calibrate", [*args, "num_threads=-1"], "num_threads is -1; expected a whole number of at least 0"),
    ):
        assert message in error_of(capsys, command, *more)
    assert [path.name for path in tmp_path.iterdir()] == ["other.csv"]


def test_a_split_without_rows_is_named(run, args, capsys, monkeypatch):
    from ovr.data import table

    empty = lambda *_: {"train": np.arange(150), "val": np.arange(0), "calib": np.arange(0), "test": np.arange(0)}  # noqa: E731
    monkeypatch.setattr(table, "_split", empty)
    monkeypatch.setattr("ovr.data.splits._checked", lambda x, *_, **__: x)
    error = error_of(capsys, "evaluate", *args, *NEW, f"data.path={run / 'new.csv'}", "rows=calib")
    assert "the source has no rows of calib" in error


def test_the_calibrator_of_training_is_the_default_and_a_bundle_that_does_not_tell_it_says_so(run, args, tmp_path, capsys):
    assert main(["calibrate", *args]) == 0
    assert "Temperature: 0 of 3 heads changed" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"does not tell how it was calibrated; give calibrator=NAME"):
        trained_calibrator({"config": {}})
