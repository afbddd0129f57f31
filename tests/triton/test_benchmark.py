import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def test_the_serving_benchmark_runs_and_shows_the_fused_graph_ahead(tmp_path, installed):
    command = [sys.executable, "-m", "benchmarks.serving", "--quick", "--json", str(tmp_path / "rows.json")]
    subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert all(row["ratio"] > 1 for row in rows if row["against"] == "per-head ensemble")
    assert {row["k"] for row in rows} == {10, 1000}
