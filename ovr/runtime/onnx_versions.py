"""Which release of ONNX Runtime opens a file of an opset and an IR version, for the error of one that is too old.

From https://onnxruntime.ai/docs/reference/compatibility.html, which tells of releases to 1.20. Runtimes open what earlier ones do.
"""

import mmap
import re
from pathlib import Path

from ovr.core.protobuf_fields import VARINT, Fields

# The first release, and the latest opset and IR version that it takes.
RELEASES = (
    ((1, 0), 11, 6),
    ((1, 3), 12, 7),
    ((1, 6), 13, 7),
    ((1, 8), 14, 7),
    ((1, 9), 15, 8),
    ((1, 11), 16, 8),
    ((1, 12), 17, 8),
    ((1, 14), 18, 8),
    ((1, 15), 19, 8),
    ((1, 16), 19, 9),
    ((1, 17), 20, 9),
    ((1, 18), 21, 10),
)
MADE = (18, 10)  # the latest opset and IR version that ovr gives a file


def release_for(opset: int, ir_version: int) -> str | None:
    """Return the first release of ONNX Runtime that opens such a file, or None where the table ends before it."""
    found = (release for release, most, most_ir in RELEASES if opset <= most and ir_version <= most_ir)
    return next((".".join(map(str, release)) for release in found), None)


def versions_of(path: Path) -> tuple[int, int]:
    """Return (opset, IR version) of an ONNX file that `check_onnx_file` has passed; its weights are not read."""
    opset, ir_version = 1, 0
    with path.open("rb") as file:
        fields = Fields(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    for number, wire, start, end in fields.of(0, len(fields.data)):
        if number == 1 and wire == VARINT:
            ir_version = start
        elif number == 8:
            entry = {inner: (kind, first, last) for inner, kind, first, last in fields.message(wire, start, end)}
            if 2 in entry and (1 not in entry or fields.bytes_of(*entry[1]) in (b"", b"ai.onnx")):
                opset = entry[2][1]
    return opset, ir_version


def of_another_runtime(runtime: str) -> str:
    """Return why a file in ONNX Runtime's own format, whose digest is right, may not be opened by this runtime."""
    return (
        f"a file in ONNX Runtime's own format is for the release that made it and later ones, and this is {runtime}: run "
        "`ovr export target=edge format=ort` where that release is, or leave format out"
    )


def too_old(opset: int, ir_version: int, *, runtime: str, error: str) -> str | None:
    """Return which runtime the file needs and how to get a file for the one that is here; None where that is no reason.

    Args:
        runtime: the version of ONNX Runtime that refused the file.
        error: what it said.
    """
    running = tuple(int(part) for part in re.findall(r"\d+", runtime)[:2])
    needed = release_for(opset, ir_version)
    is_known_older = needed is not None and running < tuple(map(int, needed.split(".")))
    if not is_known_older and "opset" not in error and "IR version" not in error:
        return None
    most, most_ir = next(((m, ir) for release, m, ir in reversed(RELEASES) if release <= running), (0, 0))
    if running > (1, 20):  # beyond the table: what it says of itself
        most = int(said[1]) if (said := re.search(r"till opset (\d+)", error)) else most
        most_ir = int(said[1]) if (said := re.search(r"max supported IR version: (\d+)", error)) else most_ir
    takes = [f"opset {most}"] * (opset > most) + [f"IR version {most_ir}"] * (ir_version > most_ir)
    need = f"onnxruntime {needed} or a later one" if needed is not None else "a later release"
    here = f"onnxruntime {runtime} takes {' and '.join(takes)} at most" if takes else f"this is onnxruntime {runtime}"
    fits = f"opset={min(most, MADE[0])} ir_version={min(most_ir, MADE[1])}"
    hint = f"; `ovr export target=edge {fits}` makes a file for this one, where all its operators are that old" if most else ""
    return f"it has opset {opset} and IR version {ir_version}, and needs {need}: {here}{hint}"
