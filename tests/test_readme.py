"""The README's commands, run as they stand, in the order in which they stand."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"<!-- run: (\w+) -->\n```(bash|python)\n(.*?)```", re.DOTALL)


def blocks(name: str) -> list[tuple[str, str]]:
    found = [(language, code) for kind, language, code in BLOCK.findall(README.read_text(encoding="utf-8")) if kind == name]
    assert found, f"the README has no block marked {name!r}"
    return found


def run(directory: Path, language: str, code: str) -> str:
    command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=directory, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_readme_do_what_it_says(tmp_path):
    for port in (8000, 8001, 8002, 8003):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"the README's port {port} is taken on this machine")
    for language, code in blocks("train"):
        run(tmp_path, language, code)
    assert (tmp_path / "outputs" / "digits" / "bundle" / "manifest.json").is_file()
    (serve_language, serve), (client_language, client) = blocks("serve")[0], blocks("client")[0]
    asked = f"cat > client.py <<'END'\n{client}END\npython client.py\n"
    assert client_language == "python"
    printed = run(tmp_path, serve_language, serve.replace("kill %1", f"{asked}kill %1"))
    assert '"name":"ovr_scores"' in printed
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 200
    for language, code in blocks("edge"):
        run(tmp_path, language, code)
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 201
    assert (tmp_path / "outputs" / "onnx" / "fused.onnx").is_file()


def test_the_tree_of_the_readme_is_the_tree():
    root = README.parent
    named = set(re.findall(r"`([\w/]+)/`", README.read_text(encoding="utf-8").partition("## The tree")[2]))
    folders = {p.name for p in (root / "ovr").iterdir() if p.is_dir() and p.name not in ("conf", "__pycache__")}
    assert folders <= {name.removeprefix("ovr/") for name in named}
    assert all(
        (root / name).is_dir() or (root / "ovr" / name).is_dir() or (root / "tests" / name).is_dir() or name == "results"
        for name in named
    )
