"""The main job as `make demo` runs it, against the real server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.triton
@pytest.mark.slow
def test_the_demo_trains_serves_and_agrees_everywhere():
    demo = subprocess.Popen(
        [sys.executable, "scripts/demo.py"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stdout, stderr = demo.communicate(timeout=240)
    assert demo.returncode == 0, stderr
    summary = json.loads((ROOT / "outputs" / "demo" / "summary.json").read_text())
    assert summary["accuracy"] >= 0.975
    assert summary["ece_after"] <= summary["ece_before"] + 0.005
    assert sum(row["nll_after"] for row in summary["classes"]) <= sum(row["nll_before"] for row in summary["classes"])
    assert summary["max_abs_diff"]["torch_onnx"] <= 1e-5
    assert all(summary["max_abs_diff"][name] <= 1e-6 for name in ("onnx_edge", "onnx_http", "onnx_grpc"))
    assert [row["class_id"] for row in summary["classes"]] == [str(digit) for digit in range(10)]
    assert {"fit", "calibrate", "evaluate", "export", "publish", "serve"} <= set(summary["seconds"])
    assert f"accuracy {summary['accuracy']:.4f}" in stdout
    assert list(Path("/dev/shm").glob(f"ovr-{demo.pid}-*")) == []
