"""Patches of edge exports that mean harm, for `tests.hostile`: each has its own digest right."""

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovr.edge.apply import apply_patch
from ovr.edge.delta import MAX_OPS
from tests.edge.exports import forged, pair, patch

ZEROS = zlib.compress(bytes(1 << 28), 9)


def _with_ops(ops: bytes, said_bytes: int, size_bytes: int) -> Callable[[Path], Path]:
    """Return what gives all files of a patch other ops, packed, that are said to be so many bytes and to make so many."""

    def change(said: dict[str, Any]) -> None:
        row = {"ops": [len(ops), said_bytes], "literals": [0, 0], "size_bytes": size_bytes}
        said["new"] = {name: {**said["new"][name], **row} for name in ("card.json", "model.onnx")}

    return lambda file: forged(file, change, bodies=ops * 2)


def _escaping(file: Path) -> Path:
    return forged(file, lambda said: said["new"].update({"../../escaped": said["new"]["card.json"]}))


def _pipe(file: Path) -> Path:
    file.unlink()
    os.mkfifo(file)
    return file


_CHANGES: dict[str, Callable[[Path], Path]] = {
    "patch to ../../escaped": _escaping,
    "patch whose ops unpack to 256 MiB": _with_ops(ZEROS, 30, 1000),
    "patch that makes 2 GiB of 20 kB": _with_ops(zlib.compress(b"\x00\x80\x80\x80\x80\x08\x00"), 7, 1 << 31),
    "patch of ops without end": _with_ops(zlib.compress(bytes(3 * MAX_OPS + 3), 9), 3 * MAX_OPS + 3, 1000),
    "pipe as a patch": _pipe,
}


def _maker(change: Callable[[Path], Path]) -> Callable[[Path], Callable[[], Any]]:
    def make(folder: Path) -> Callable[[], Any]:
        old, new = pair(folder)
        file = change(patch(old, new, folder / "patch"))
        shutil.rmtree(new)
        return lambda: apply_patch(file, old)

    return make


PATCHES = {name: _maker(change) for name, change in _CHANGES.items()}
