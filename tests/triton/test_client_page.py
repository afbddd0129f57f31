"""The examples of docs/client.md, run as they stand but for the server's ports."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from ovr.serving.repository import publish
from tests.bundles import small_bundle

pytestmark = pytest.mark.triton
PAGE = Path(__file__).parents[2] / "docs" / "client.md"


def test_the_examples_of_the_page_about_clients_run(tmp_path, started, rng):
    publish(small_bundle(tmp_path / "bundle", shape=(64,)), tmp_path / "repo")
    server = started(tmp_path / "repo")
    np.save(tmp_path / "rows.npy", rng.normal(size=(200, 64)).astype(np.float32))
    blocks = re.findall(r"<!-- run: client -->\n```(bash|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    printed = []
    for language, code in blocks:
        for port, url in ((8000, server.http_url), (8001, server.grpc_url)):
            code = code.replace(f"127.0.0.1:{port}", urlsplit(url).netloc)
        command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-W", "error", "-c", code]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    ours, plain, curl = printed
    assert "(200, 3)" in ours
    assert plain.count("(5, 3)") == 2
    assert len(re.findall(r"b'0\.\d+:\d:(?:cat|dog|owl)'", plain)) == 4
    assert '"id":"r-1"' in curl
    assert '"top_class"' in curl
