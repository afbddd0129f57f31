"""Run as a script: kill a step of a head's life with SIGKILL at each of its system calls from the rename of its bundle on.

    python -m tests.lifecycle.killed_heads DIRECTORY

A bundle that is there then has the signatures of its heads. (`tests.core.killed_writers` has the kills before the rename.)
"""

import shutil
import sys
from pathlib import Path

from ovr.core.bundle import HEAD_SIGNATURES, open_bundle
from ovr.core.files import canonical_json
from ovr.lifecycle.heads import retire
from ovr.serving.head_signatures import read_signatures
from tests.bundles import small_bundle
from tests.core.killed_writers import killed

SIGNATURES = {class_id: {"digest of a key": f"signature of {class_id}"} for class_id in ("cat", "owl")}


def main(root: Path) -> None:
    """Print at how many points the step was killed, and after how many the bundle was there."""
    path = small_bundle(root / "bundle", ("cat", "dog", "owl")).path
    (path / HEAD_SIGNATURES).parent.mkdir()
    (path / HEAD_SIGNATURES).write_bytes(canonical_json({"schema_version": 1, "heads": SIGNATURES}))
    bundle = open_bundle(path)
    out, number, there = root / "out" / "bundle", 1, 0
    while killed(number, out.parent, lambda: retire(bundle, out, ["dog"]), first="os.rename"):
        if out.exists():
            there += 1
            assert read_signatures(open_bundle(out)) == SIGNATURES
        shutil.rmtree(out.parent)
        number += 1
    print(number - 1, there)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
