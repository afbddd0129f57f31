"""`ovr data check` on a small table with faults of every kind."""

import csv

import numpy as np
import pytest

from ovr.cli.main import main


@pytest.fixture
def table(tmp_path, rng):
    x = rng.normal(size=(200, 4))
    ids = [f"class {int(value > 0)}" for value in x[:, 0]]
    x[50] = x[20]
    ids[20], ids[50] = "class 0", "class 1"
    far = int(np.argmax(x[:, 0]))
    ids[far] = "class 0"
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c", "d", "label"], *([*row, name] for row, name in zip(x, ids, strict=True))])
    return tmp_path / "rows.csv"


def test_the_tables_are_printed_and_written(tmp_path, capsys, monkeypatch, table):
    monkeypatch.chdir(tmp_path)
    args = ["data", "check", "data=table", f"data.path={table}", "data.target=label", "out=found", "max_lines=1"]
    assert main(args) == 0
    printed = capsys.readouterr().out
    assert "200 rows, 2 classes, 0 below min_positives" in printed
    assert "equal rows with other labels: 2" in printed
    assert "and 1 more; out=DIR writes all of them" in printed
    with (tmp_path / "found" / "classes.csv").open(newline="") as file:
        classes = list(csv.DictReader(file))
    assert [row["class_id"] for row in classes] == ["class 0", "class 1"]
    assert sum(int(row[name]) for row in classes for name in ("train", "val", "calib", "test")) == 200
    with (tmp_path / "found" / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} >= {"label_error", "conflict"}
    assert all(row["split"] in ("train", "val", "calib", "test") and row["row"].isdigit() for row in rows)
    conflicts = [row for row in rows if row["kind"] == "conflict"]
    assert {(row["given"], row["suggested"]) for row in conflicts} == {("class 0", "class 1"), ("class 1", "class 0")}
    assert main(args) == 1
    assert "error: out=found exists; expected a directory that does not" in capsys.readouterr().err


def test_a_source_that_cannot_be_read_is_an_error(capsys):
    assert main(["data", "check", "data=table", "data.path=gone.csv", "data.target=label"]) == 1
    assert "gone.csv" in capsys.readouterr().err
