"""`ovr train cohort.column=...`: fitted on calibration rows, used wherever the bundle is, and refused where it cannot be."""

import csv
import json

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.cli.main import main
from ovr.core import scale
from ovr.core.bundle import open_bundle
from ovr.metric.calibration import ece_equal_mass
from tests.cli.test_main import error_of
from tests.conftest import logging_restored
from tests.training.conftest import compose_recipe

IDS = ("yes", "no")


def write(path, num_rows, seed):
    """Write rows whose odds differ by sex, which is no feature."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "sex", "label"])
        for n in range(num_rows):
            a, sex = rng.normal(), "FM"[n % 2] if n % 9 else ""
            odds = 1.5 * a + {"F": 1.2, "M": -1.2, "": 0.0}[sex]
            writer.writerow([a, sex, "yes" if rng.random() < 1 / (1 + np.exp(-odds)) else "no"])
    return path


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts")
    table = write(folder / "rows.csv", 2400, 0)
    data = ["data=table", f"data.path={table}", "data.target=label", "data.source.cohorts=[sex]", "data.source.drop=[sex]"]
    return [*data, "solver=convex", "backbone=identity", f"solver.cache_dir={folder}"]


@pytest.fixture(scope="module")
def bundle(args, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    with logging_restored():
        assert main(["train", *args, "cohort.column=sex", f"hydra.run.dir={run / 'run'}"]) == 0
    return open_bundle(run / "run/bundle")


def test_rows_of_a_file_get_the_calibration_of_their_sex(bundle, tmp_path, capsys):
    assert bundle.cohorts.names == ("F", "M")
    assert set(np.load(bundle.path / "calibration/cohort.npy")) == {"F", "M", ""}
    yes = bundle.taxonomy.column("yes")
    assert bundle.cohorts.bias[0][yes] > 0.7 > -0.7 > bundle.cohorts.bias[1][yes]
    rows = read(write(tmp_path / "new.csv", 4000, 1))
    label_N, sex_N = (np.array([row.pop(name) if name == "label" else row[name] for row in rows]) for name in ("label", "sex"))
    predictor = EdgePredictor(bundle.path)
    own_NK = predictor.predict_proba(rows)
    assert predictor.num_cohort_rows["missing"] == (sex_N == "").sum()
    pooled_NK = predictor.predict_proba(rows, cohort="")
    for sex in ("F", "M"):
        here = sex_N == sex
        target_N1, known_N1 = (label_N[here] == "yes")[:, None], np.ones((here.sum(), 1), bool)
        ece = [ece_equal_mass(prob_NK[here][:, [yes]], target_N1, known_N1)[0] for prob_NK in (own_NK, pooled_NK)]
        assert ece[0] < 0.08 < 0.15 < ece[1]
    assert (own_NK[sex_N == ""] == pooled_NK[sex_N == ""]).all()
    output = tmp_path / "out.csv"
    assert main(["predict", f"bundle={bundle.path}", f"input={tmp_path / 'new.csv'}", f"output={output}", "drop=[label]"]) == 0
    known = int((sex_N != "").sum())
    assert f"cohorts of column sex: {known} rows known; with the pooled calibration 0 of unknown" in capsys.readouterr().out
    written = [[float(row[f"prob:{class_id}"]) for class_id in bundle.taxonomy.ids] for row in read(output)]
    np.testing.assert_array_equal(np.array(written, np.float32), own_NK)


def test_the_report_is_of_each_row_s_own_calibration(bundle, args, tmp_path):
    assert main(["evaluate", *args[:-3], f"bundle={bundle.path}", f"out={tmp_path / 'out'}", "rows=test"]) == 0
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    trained = json.loads((bundle.path / "report/metrics.json").read_text())
    assert report["nll_after"] == pytest.approx(trained["nll_after"], abs=1e-5)
    assert report["nll_after"] < report["nll_before"] - 0.03
    assert report["max_abs_diff"] < 1e-5


def test_cohorts_are_taken_off_and_left_out_by_null(bundle, args, tmp_path, capsys):
    off = [f"bundle={bundle.path}", f"out={tmp_path / 'off'}", "cohort=null"]
    assert main(["calibrate", *off]) == 0
    assert "2 thresholds no longer take the rows that they took" in capsys.readouterr().err
    made = open_bundle(tmp_path / "off")
    assert made.cohorts is None
    assert made.provenance["history"][0]["cohort"] is None
    assert "cohort=null takes the calibrations of cohorts off all heads" in error_of(
        capsys, "calibrate", off[0], f"out={tmp_path / 'some'}", "cohort=null", 'classes=["yes"]'
    )
    message = "lower cohort.min_positives, or do with one calibration for all rows: cohort=null"
    assert message in error_of(capsys, "calibrate", off[0], f"out={tmp_path / 'few'}", "cohort.min_positives=10000")
    recipe, _ = compose_recipe(tmp_path / "run", *args, "cohort=null")
    assert recipe.cohort.column is None


def test_what_cannot_have_cohorts_is_told_before_work_starts(args, tmp_path, capsys, monkeypatch):
    run = f"hydra.run.dir={tmp_path / 'run'}"
    message = "the rows carry no cohorts of column 'shop', but of 'sex'; add data.source.cohorts=[shop]"
    assert message in error_of(capsys, "train", *args, "cohort.column=shop", run)
    message = "cohort.column=sex rescales a head's calibrated logit, and the calibrator may give isotonic: choose calibrator=temp"
    assert message in error_of(capsys, "train", *args, "cohort.column=sex", "calibrator=isotonic", run)
    monkeypatch.setattr(scale, "LARGE_K", 2)
    message = "cohort.column=sex asks for a calibration a cohort, and bundles of 2 classes or more hold none"
    assert message in error_of(capsys, "train", *args, "cohort.column=sex", run)
