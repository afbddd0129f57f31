"""Thousands of classes, most of them with a handful of positive rows, from a sparse file to a bundle and its answers."""

import json
import math

import numpy as np
import pytest

from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from ovr.data.xmc import read_xmc
from ovr.runtime.predictor import EdgePredictor
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe

QUICK = ["data=xmc", "backbone=bag", "backbone.width=16", "decision=multilabel", "batch_size=64", "~callback.progress"]
QUICK += ["allow_small_classes=true", "report=false"]


def write_long_tail(path, *, num_rows, num_labels, seed):
    """Write rows whose labels follow a power law, each a feature of its own among noise; most labels are in less than ten rows."""
    rng = np.random.default_rng(seed)
    share_K = 1 / np.arange(1, num_labels + 1)
    lines = [f"{num_rows} {num_labels + 50} {num_labels}"]
    for _ in range(num_rows):
        label = np.unique(rng.choice(num_labels, size=3, p=share_K / share_K.sum()))
        noise = num_labels + rng.choice(50, size=4, replace=False)
        lines.append(",".join(map(str, label)) + " " + " ".join(f"{feature}:1" for feature in [*label, *noise]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xmc")
    return [
        write_long_tail(folder / f"{name}.txt", num_rows=n, num_labels=2500, seed=n) for name, n in (("train", 2500), ("test", 300))
    ]


@pytest.mark.slow
def test_thousands_of_classes_of_which_most_have_less_than_ten_rows(tmp_path, files):
    where = [f"data.train={files[0]}", f"data.test={files[1]}", "data.num_tokens=2550"]
    recipe, splits = compose_recipe(tmp_path, *QUICK, *where, "trainer.max_epochs=3", "optimizer.lr=0.02")
    num_positives_K = splits.train.labels.num_positives_K()
    assert 1000 < len(splits.taxonomy) < 2500  # those without a positive row in the training file are left out
    assert (num_positives_K < 10).mean() > 0.9
    result = run_training(recipe, splits, tmp_path)
    report, rows = result.report, result.report["classes"]
    statuses = {row["calibration_status"] for row in rows}
    assert "one_class" in statuses  # no positive row to calibrate with: T = 1
    assert all(row["temperature"] == 1 for row in rows if row["calibration_status"] == "one_class")
    assert all(math.isfinite(row["temperature"]) and 0 <= row["threshold"] <= 1 for row in rows)
    no_test_row = [row for row in rows if row["positives"] == 0]
    assert no_test_row
    assert all(row["average_precision"] is None and row["recall"] is None for row in no_test_row)
    for name in ("macro_f1", "macro_average_precision", "ece_after", "nll_after", "top_label_ece_after"):
        assert report[name] is not None
    for kind in ("precision_at", "ps_precision_at"):
        assert all(0 < report[f"{kind}_{k}"] <= 1 for k in (1, 3, 5))
    assert report["precision_at_1"] > 0.3  # the head classes are easy

    # The bundle takes what the file says, and answers as torch does.
    test = read_xmc(files[1])
    start = test.rows.start_N1
    mappings = [dict.fromkeys(test.rows.index_P[start[n] : start[n + 1]].tolist(), 1.0) for n in range(20)]
    answer = EdgePredictor(tmp_path / "bundle").predict(mappings)
    np.testing.assert_allclose(answer.prob_BK, result.test_prob_NK[:20], atol=1e-6)


def test_sparse_rows_are_predicted_from_a_file_of_objects(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, n in (("train", 150), ("test", 30)):
        write_long_tail(tmp_path / f"{name}.txt", num_rows=n, num_labels=5, seed=n)
    where = ["data.train=train.txt", "data.test=test.txt", "data.num_tokens=55"]
    assert main(["train", *QUICK, *where, "trainer.max_epochs=2", "hydra.run.dir=run"]) == 0
    records = [{"0": 1.0, "51": 1.0}, {}, {"1": 2}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["predict", "bundle=run/bundle", "input=rows.jsonl", "output=answers.jsonl"]) == 0
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    expected = EdgePredictor(open_bundle(tmp_path / "run" / "bundle").path).predict(records)
    assert [answer["labels"] for answer in answers] == [list(labels) for labels in expected.labels()]
    (tmp_path / "rows.jsonl").write_text('{"0": 1.0}\n{"99": 1.0}\n')
    assert main(["predict", "bundle=run/bundle", "input=rows.jsonl", "output=other.jsonl"]) != 0
    assert "rows.jsonl, line 2: has feature '99'; expected a whole number from 0 to 54" in capsys.readouterr().err
