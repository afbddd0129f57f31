"""Servers that others make, started beside ours: in a virtual environment of their own, of which ovr knows nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.load import Target
from benchmarks.serving_models import post
from ovr.serving import embedded

SCRIPTS = Path(__file__).parent / "peers"
READY_S = 60.0
CORES = len(os.sched_getaffinity(0))


def environment() -> Path:
    """Return the Python of the peers' environment in the user's cache, made by pip where it is missing: a minute or two, 480 MB."""
    folder = embedded.default_home().parent / f"peers-python{embedded.PYTHON}"
    done = folder / "requirements.txt"
    wanted = (SCRIPTS / "requirements.txt").read_text()
    if not done.exists() or done.read_text() != wanted:
        print(f"the peers are installed into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--requirement", str(SCRIPTS / "requirements.txt")], check=True)
        done.write_text(wanted)
    return folder / "bin" / "python"


def versions(python: Path) -> str:
    """Return what the peers' environment holds of what is compared."""
    names = ("fastapi", "uvicorn", "bentoml", "scikit-learn", "onnxruntime")
    code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {names!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def sklearn_behind_fastapi(python: Path, folder: Path, x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> Iterator[Target]:
    """Fit on rows (N, D) and labels (N,), serve with a process a processor, and yield what asks for the rows `asked`."""
    script, model = SCRIPTS / "sklearn_fastapi.py", folder / "model.joblib"
    np.savez(folder / "rows.npz", x=x, y=y)
    subprocess.run([python, script, "fit", folder / "rows.npz", model], check=True)
    port = _free_port()
    command = [str(python), str(script), "serve", str(port), str(CORES)]
    url = f"http://127.0.0.1:{port}"
    requests = [post(url, "/predict", row.astype(np.float32).tobytes()) for row in asked]
    with _running(command, {"MODEL": str(model)}, port, folder / "fastapi.log"):
        yield Target(url, requests)


@contextmanager
def bentoml_scores(python: Path, folder: Path, graph: Path, asked: np.ndarray) -> Iterator[Target]:
    """Serve a fused graph with a process a processor, and yield what asks for the rows `asked`."""
    port = _free_port()
    command = [str(python), "-m", "bentoml", "serve", "bento_scores:Scores", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    kind = "Content-Type: application/json\r\n"
    requests = [post(url, "/predict", json.dumps({"x": [row.tolist()]}).encode(), kind) for row in asked]
    own = {"MODEL": str(graph), "WORKERS": str(CORES), "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml")}
    with _running(command, own, port, folder / "bentoml.log"):
        yield Target(url, requests)


@contextmanager
def _running(command: list[str], own: dict[str, str], port: int, told: Path) -> Iterator[None]:
    """Run a server in the scripts' folder until the block ends; it is ready when something listens on its port."""
    with told.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=SCRIPTS, env={**os.environ, **own}, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + READY_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(command)} does not listen on port {port}:\n{told.read_text()[-2000:]}")
            time.sleep(0.1)
        time.sleep(1.0)  # other processes of it may not listen yet
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
