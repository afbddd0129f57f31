"""A disk that is full and one that cannot be written, for real: file systems mounted in a namespace of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundles import small_bundle


@pytest.fixture
def own_mounts(tmp_path):
    """What runs a command so that it may mount."""
    try:
        command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
        allowed = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("namespaces with mounts of their own are not allowed here")
    return ["unshare", "-rm"]


def test_full_and_read_only_disks_are_told_and_keep_what_they_hold(tmp_path, own_mounts):
    small_bundle(tmp_path / "first", ("/", ".."))
    small_bundle(tmp_path / "second", ("/", "A"), seed=1, version=2, head_seeds=[7, 8])
    small_bundle(tmp_path / "third", ("/", "A"), seed=1, version=3, head_seeds=[7, 9])
    command = [*own_mounts, sys.executable, "-m", "tests.serving.small_disks", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = dict(line.split() for line in done.stdout.splitlines())
    assert (refused["read-only"], refused["mounted"]) == ("3", "True")
    assert all(int(refused[name]) > 3 for name in ("fused", "per_head", "heads"))
