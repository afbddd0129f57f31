import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ovr.errors import ArtifactError
from ovr.training.checkpoint import AtomicCheckpointIO, read_checkpoint


def test_what_was_saved_is_loaded_and_removed_with_its_digest(tmp_path):
    plugin, path = AtomicCheckpointIO(), tmp_path / "folder" / "last.ckpt"
    for step in (1, 2):
        plugin.save_checkpoint({"step": step, "w": torch.full((3,), float(step))}, path)
        assert plugin.load_checkpoint(path)["step"] == step
    plugin.remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


def test_a_missing_or_changed_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises(ArtifactError, match=r"last\.ckpt does not exist"):
        read_checkpoint(path)
    AtomicCheckpointIO().save_checkpoint({"w": torch.arange(5.0)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"is damaged: its digest is not one of those in last\.ckpt\.sha256"):
        read_checkpoint(path)
    path.with_name("last.ckpt.sha256").unlink()
    with pytest.raises(ArtifactError, match="is damaged"):
        read_checkpoint(path)


WRITER = """
import sys, torch
from pathlib import Path
from ovr.training.checkpoint import AtomicCheckpointIO
path, step = Path(sys.argv[1]), 0
while True:
    step += 1
    AtomicCheckpointIO().save_checkpoint({"step": step, "w": torch.full((500_000,), float(step))}, path)
    print(step, flush=True)
"""


@pytest.mark.exhaustive
def test_a_killed_writer_leaves_a_checkpoint_that_loads(tmp_path, rng):
    path = tmp_path / "last.ckpt"
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": "/dev/shm"}
        )
        assert writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        checkpoint = read_checkpoint(path)
        assert (checkpoint["w"] == checkpoint["step"]).all()
    AtomicCheckpointIO().save_checkpoint({"step": 0}, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"], "leftovers are swept"


@pytest.mark.exhaustive
def test_saving_and_loading_take_no_copy_in_memory(tmp_path):
    """In a process of its own, whose peak is its own: 200 MB of weights are saved, and loaded without being read."""
    script = f"""
import resource, torch
from pathlib import Path
from ovr.training.checkpoint import AtomicCheckpointIO, read_checkpoint
path, w = Path({str(tmp_path)!r}) / "last.ckpt", torch.ones(50_000_000)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
AtomicCheckpointIO().save_checkpoint({{"w": w}}, path)
loaded = read_checkpoint(path)["w"]
print(peak() - before, loaded.shape[0], float(loaded[-1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown_mib, num, last = done.stdout.split()
    assert (int(num), float(last)) == (50_000_000, 1.0)
    assert int(grown_mib) < 60


def test_a_loaded_checkpoint_stays_what_it_is_when_its_file_is_replaced(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.full((100_000,), 1.0)}, path)
    loaded = read_checkpoint(path)["w"]
    AtomicCheckpointIO().save_checkpoint({"w": torch.full((100_000,), 2.0)}, path)
    assert (loaded == 1).all()
    loaded += 5
    assert (read_checkpoint(path)["w"] == 2).all()


def test_a_writer_killed_at_any_of_its_writes_leaves_a_checkpoint_that_loads(tmp_path):
    """At every open, rename and removal, and every time that some bytes go to the file, the process kills itself there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_checkpoints", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    num_killed, num_new = map(int, done.stdout.split())
    assert num_killed > num_new > 0
