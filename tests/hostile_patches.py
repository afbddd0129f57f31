"""Edge exports and patches of them that mean harm, for `tests.hostile`: each has its own digest right."""

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovr.core.files import sha256_bytes
from ovr.edge.apply import apply_patch
from ovr.edge.delta import MAX_OPS, encoded
from ovr.runtime.predictor import EdgePredictor
from tests.edge.exports import export, forged, pair, patch

ZEROS = zlib.compress(bytes(1 << 28), 9)


def _with_ops(ops: bytes, said_bytes: int, size_bytes: int) -> Callable[[Path], Path]:
    """Return what gives all files of a patch other ops, packed, that are said to be so many bytes and to make so many."""

    def change(said: dict[str, Any]) -> None:
        row = {"ops": [len(ops), said_bytes], "literals": [0, 0], "size_bytes": size_bytes}
        said["new"] = {name: {**said["new"][name], **row} for name in ("card.json", "model.onnx")}

    return lambda file: forged(file, change, bodies=ops * 2)


def _of_a_base_said_to_be_large(file: Path) -> Path:
    """Write a patch that makes 200 MB, the model 10,000 times, which a base of the size that it claims would allow."""
    copies = {"card.json": [(0, 0, 100)], "model.onnx": [(0, 20_000 * k, 20_000) for k in range(10_000)]}
    sizes = {name: sum(size for _, _, size in found) for name, found in copies.items()}
    ops = {name: encoded(found, bytes(sizes[name]))[0] for name, found in copies.items()}
    none = zlib.compress(b"")
    packed = {name: zlib.compress(data, 9) for name, data in ops.items()}

    def change(said: dict[str, Any]) -> None:
        for name in copies:
            said["base"][name]["size_bytes"] = 1 << 30
        said["new"]["card.json"]["sha256"] = sha256_bytes((file.parent / "old" / "card.json").read_bytes()[:100])
        said["new"] = {
            name: {
                **said["new"][name],
                "ops": [len(packed[name]), len(ops[name])],
                "literals": [len(none), 0],
                "size_bytes": sizes[name],
            }
            for name in copies
        }

    return forged(file, change, bodies=b"".join(data + none for data in packed.values()))


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
    "patch that makes 200 MB of 20 kB said to be 2 GiB": _of_a_base_said_to_be_large,
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


def _with_card(write: Callable[[Path], Any], *, model_bytes: int = 9) -> Callable[[Path], Callable[[], Any]]:
    """Return what makes an export with another card.json beside a model of a hole."""

    def make(folder: Path) -> Callable[[], Any]:
        path = export(folder / "export", b"123456789")
        os.truncate(path / "model.onnx", model_bytes)
        write(path / "card.json")
        return lambda: EdgePredictor(path)

    return make


EXPORTS = {
    "card.json of 900 MiB beside a hole of 4 GiB": _with_card(lambda card: os.truncate(card, 900 << 20), model_bytes=4 << 30),
    "card.json of four million lists": _with_card(lambda card: card.write_bytes(b"[" + b"[]," * (4 << 20) + b"[]]")),
    "card.json of as many objects as are read": _with_card(
        lambda card: card.write_bytes(b'{"target":"edge","model":[' + b"{}," * ((1 << 19) - 9) + b"{}]}")
    ),
}
PATCHES = {name: _maker(change) for name, change in _CHANGES.items()}
