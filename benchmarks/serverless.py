"""The handler of deploy/serverless as a function: size of its zip, cold start, warm requests, memory. Wall-clock time.

A cold start is a process that is started, imports, opens the model and answers one request; the files are in the system's cache.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.export import export
from benchmarks.report import Row, main

ROOT = Path(__file__).resolve().parent.parent
CALL = r"""
import json, re, sys, time
began = float(sys.argv[1])
import handler
event = {"body": json.dumps({"rows": [[0.5] * int(sys.argv[2])]})}
assert handler.lambda_handler(event, None)["statusCode"] == 200
cold = time.time() - began
warm = []
for _ in range(int(sys.argv[3])):
    at = time.perf_counter()
    handler.lambda_handler(event, None)
    warm.append(time.perf_counter() - at)
memory = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"cold": cold, "warm": sorted(warm), "memory": memory, "torch": "torch" in sys.modules}))
"""


def measure(quick: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(Path(folder) / "bundle", 10)
        function = Path(folder) / "function"
        install(function)
        shutil.copy(ROOT / "deploy" / "serverless" / "handler.py", function)
        shutil.copy(bundle.fused_onnx, function / "model.onnx")
        packed = zipped(function, Path(folder) / "function.zip")
        size = sum(file.stat().st_size for file in function.rglob("*") if file.is_file())
        yield Row(
            "zip", "-", 10, packed.stat().st_size / 1e6, None, "MB", None, f"unpacked {size / 1e6:.0f} MB; Lambda takes 250 MB"
        )
        calls = [call(function, bundle.input.size, 50 if quick else 2000) for _ in range(3 if quick else 20)][1:]
        cold_s, warm_s = [said["cold"] for said in calls], sorted(sum((said["warm"] for said in calls), []))
        yield Row("cold start, median", "-", 10, statistics.median(cold_s), None, "s", None, f"longest {max(cold_s):.3f} s")
        yield Row("warm request of one row, p50", "-", 10, warm_s[len(warm_s) // 2] * 1e3, None, "ms", None)
        yield Row("warm request of one row, p99", "-", 10, warm_s[int(len(warm_s) * 0.99)] * 1e3, None, "ms", None)
        yield Row("peak memory", "-", 10, max(said["memory"] for said in calls), None, "MiB", None)


def install(folder: Path) -> None:
    """Install what the handler needs into an empty folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--target", str(folder)]
    subprocess.run([*pip, f"{ROOT}[edge]"], check=True, cwd=ROOT.parent)


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return file


def call(function: Path, num_values: int, times: int) -> dict:
    """Return what a new process tells that has the function's folder and nothing else."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(function), "OVR_MODEL": str(function / "model.onnx")}
    shell = f'exec {sys.executable} -S -c "$0" "$(date +%s.%N)" {num_values} {times}'
    done = subprocess.run(["sh", "-c", shell, CALL], env=env, cwd=function, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert not said["torch"]
    return said


if __name__ == "__main__":
    main(measure, __doc__)
