import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def run_quick(name, tmp_path):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "rows.json").read_text())["rows"]


@pytest.mark.exhaustive
def test_the_serving_benchmark_runs_and_shows_the_fused_graph_ahead(tmp_path, installed):
    rows = run_quick("serving", tmp_path)
    assert all(row["ratio"] > 1 for row in rows if row["against"] == "per-head ensemble")
    assert {row["k"] for row in rows} == {10, 1000}
    under_load = {(row["what"], row["against"]): row for row in rows if row["what"].startswith("digits, 4 clients")}
    assert under_load["digits, 4 clients, scores, rate", "K separate models"]["ratio"] > 1
    assert ("digits, 4 clients, router, batching", "no batching: >= 3 times") in under_load


@pytest.mark.exhaustive
def test_a_soak_tells_of_errors_memory_and_heads_that_were_killed(tmp_path, installed):
    rows = {row["what"].partition("minutes, ")[2]: row for row in run_quick("soak", tmp_path)}
    assert rows["requests failed"]["ours"] == 0
    assert abs(rows["resident memory, growth"]["ours"]) < 50
    assert rows["answered"]["ours"] > 90
    assert 0 < rows["with a class unavailable"]["ours"] < 100


@pytest.mark.exhaustive
def test_writers_that_are_killed_at_random_times_leave_nothing_bad_to_read(tmp_path, installed):
    rows = {row["what"]: row["ours"] for row in run_quick("kills", tmp_path)}
    assert rows["bad reads"] == 0
    assert rows["kills"] >= 12
    assert all(count > 0 for what, count in rows.items() if what.startswith(("reads: ", "kills: "))), rows


@pytest.mark.exhaustive
def test_the_benchmark_of_clients_compares_both_with_tritonclient(tmp_path, installed):
    rows = run_quick("client", tmp_path)
    assert {row["against"] for row in rows} == {
        "tritonclient",
        "tritonclient, a loop",
        "Client",
        "batches of 256",
        "a limited queue",
    }
    assert all(row["ours"] > 0 < row["peer"] for row in rows if row["unit"] != "requests")
