"""`ovr serve` as a process: it tells its addresses, answers, and stops with nothing left behind."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.cli.main import main
from tests.cli.test_main import error_of, importable
from tests.export.sample import sample_rows


@pytest.fixture
def repository(bundle, tmp_path):
    main(["publish", f"bundle={bundle.path}", f"repository={tmp_path / 'repository'}", "serving.request_log.share=1"])
    return tmp_path / "repository"


def shared_memory(pid):
    """Return what servers started by process `pid` have in /dev/shm."""
    return [path.name for path in Path("/dev/shm").glob(f"ovr-{pid}-*")]


@pytest.mark.triton
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_served_bundle_answers_like_the_predictor_and_stops_in_order(bundle, repository, tmp_path, name):
    x = sample_rows(11)
    np.save(tmp_path / "x.npy", x)
    ports = ["http_port=0", "grpc_port=0", "metrics_port=0", "health_port=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ovr", "serve", f"repository={repository}", *ports],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=importable(),
        cwd=tmp_path,
    )
    try:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(6)]
        assert told[-1] == "ready; stop with Ctrl-C\n", process.communicate(timeout=10)[1]
        urls = re.findall(r"^(?:HTTP|gRPC) +(\w+://127\.0\.0\.1:\d+)$", "".join(told), re.MULTILINE)
        assert len(urls) == 2
        expected = EdgePredictor(bundle.path).predict(x)
        for number, url in enumerate(urls):
            output = tmp_path / f"{number}.csv"
            assert main(["predict", f"server={url}", f"input={tmp_path / 'x.npy'}", f"output={output}", "batch_size=4"]) == 0
            prob_BK = np.genfromtxt(output, delimiter=",", skip_header=1, usecols=range(-len(bundle.taxonomy), 0))
            np.testing.assert_allclose(prob_BK, expected.prob_BK, rtol=0, atol=1e-6)
        assert shared_memory(process.pid)
        process.send_signal(getattr(signal, name))
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert sum(line["rows"] for line in lines if line["request_id"] != "ovr-serve") == 2 * len(x)
    assert "Traceback" not in stderr
    assert shared_memory(process.pid) == []
    assert {path.name for path in tmp_path.iterdir()} == {"repository", "x.npy", "0.csv", "1.csv"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["repository=/nonexistent"], "the repository /nonexistent does not exist"),
        (["repository=."], "holds no model"),
        (["repository=.", "http_prt=3"], "config key 'http_prt' does not exist; nearest: http_port"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, "serve", *args)


def test_a_port_that_is_taken_is_refused(repository, capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = error_of(capsys, "serve", f"repository={repository}", f"http_port={port}")
    assert f"http_port {port} on 127.0.0.1 cannot be used" in message
