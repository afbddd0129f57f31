"""Run as a script: kill the writer of a checkpoint with SIGKILL at each of its system calls and writes, and check what is left.

python -m tests.training.killed_checkpoints DIRECTORY
"""

import os
import signal
import sys
from pathlib import Path

import torch

from ovr.training import checkpoint
from ovr.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from tests.core.killed_writers import killed

OLD, NEW = ({"epoch": epoch, "w": torch.full((20_000,), float(epoch))} for epoch in (1, 2))


def write_and_die_at(number: int, path: Path) -> None:
    """Write the new checkpoint; as bytes go to the file for the time of that number, end there with half of them written."""
    seen, write = 0, checkpoint._HashedFile.write

    def counted(self: checkpoint._HashedFile, data: bytes) -> int:
        nonlocal seen
        seen += 1
        if seen == number:
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, data)

    checkpoint._HashedFile.write = counted  # type: ignore[method-assign]
    AtomicCheckpointIO().save_checkpoint(NEW, path)


def main(root: Path) -> None:
    """Print at how many points the writer was killed, and after how many of them the new checkpoint was there."""
    path, num_killed, num_new = root / "last.ckpt", 0, 0
    never = 1 << 30
    for at_call in (True, False):
        number = 1
        AtomicCheckpointIO().save_checkpoint(OLD, path)
        while killed(number if at_call else never, root, lambda n=never if at_call else number: write_and_die_at(n, path)):
            left = read_checkpoint(path)
            assert (left["w"] == left["epoch"]).all()
            num_killed, num_new = num_killed + 1, num_new + (left["epoch"] == 2)
            AtomicCheckpointIO().save_checkpoint(OLD, path)
            assert sorted(entry.name for entry in root.iterdir()) == ["last.ckpt", "last.ckpt.sha256"], "leftovers are swept"
            number += 1
    print(num_killed, num_new)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
