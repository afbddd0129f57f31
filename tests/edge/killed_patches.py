"""Run as a script: kill what applies a patch with SIGKILL at each of its system calls in turn, and check what is left after each.

    python -m tests.edge.killed_patches DIRECTORY

The audit hook sees what Python opens, makes, links, renames and removes. The one call that it does not see, by which old and new
change places, is atomic; the calls before and after it are seen.
"""

import shutil
import sys
from pathlib import Path

from ovr.edge.apply import apply_patch
from ovr.runtime.edge_files import checked_model
from tests.core.killed_writers import killed
from tests.edge.exports import content, pair, patch


def main(root: Path) -> None:
    """Print at how many points it was killed, after how many the directory was the new one, and how many left something beside."""
    old, new = pair(root)
    before, after = content(old), content(new)
    file = patch(old, new, root / "patch")
    number, made, left = 1, 0, 0
    device = root / "devices" / "device"
    device.parent.mkdir()
    shutil.copytree(old, device)
    while killed(number, device.parent, lambda: apply_patch(file, device)):
        found = content(device)
        assert found in (before, after), "old or new, whole"
        checked_model(device)
        made += found == after
        left += len(list(device.parent.iterdir())) > 1
        apply_patch(file, device)
        assert content(device) == after
        assert [entry.name for entry in device.parent.iterdir()] == ["device"], "who applies it next sweeps what is left"
        shutil.rmtree(device.parent)
        shutil.copytree(old, device)
        number += 1
    print(number - 1, made, left)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
