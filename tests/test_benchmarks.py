"""Benchmarks run, and store rows that say what was compared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import Row, cpu_seconds, timed

ROOT = Path(__file__).parents[1]
KEYS = {"what", "against", "k", "ours", "peer", "unit", "ratio", "note"}


def check(report):
    assert {"date", "machine", "rows"} <= set(report)
    assert report["machine"]["cpu"]
    assert report["rows"]
    for row in report["rows"]:
        assert set(row) == KEYS


def test_the_calibration_benchmark_runs_and_stores_its_rows(tmp_path):
    command = [sys.executable, "-m", "benchmarks.calibration", "--quick", "--json", str(tmp_path / "rows.json")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "rows.json").read_text())
    check(report)
    assert report["quick"] is True
    assert {"LBFGS loop", "scikit-learn"} <= {row["against"] for row in report["rows"]}
    (error,) = (row["ours"] for row in report["rows"] if "relative error" in row["what"])
    assert error <= 1e-6


def test_the_benchmark_of_convex_heads_runs_and_compares_equally_good_optima(tmp_path):
    command = [sys.executable, "-m", "benchmarks.convex", "--quick", "--json", str(tmp_path / "rows.json")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "rows.json").read_text())
    check(report)
    assert {row["what"] for row in report["rows"]} >= {"exact heads on frozen features", "excess of the objective"}
    assert all(max(row["ours"], row["peer"]) <= 1e-3 for row in report["rows"] if row["what"] == "excess of the objective")


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda file: file.stem)
def test_committed_results_say_when_and_on_what_they_were_measured(file):
    check(json.loads(file.read_text()))


def test_a_ratio_above_one_says_that_ours_is_faster():
    row = timed("sum", "twice", None, lambda: sum(range(200_000)), lambda: sum(range(2_000_000)), repeats=3)
    assert isinstance(row, Row)
    assert row.ratio == row.peer / row.ours
    assert row.ratio > 2
    assert cpu_seconds(lambda: None) >= 0.0
