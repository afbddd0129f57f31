"""Run as a script: build artifacts that mean harm, load each as ovr does, and say how each was refused.

    python -m tests.hostile DIRECTORY

Prints a JSON object a line: name, error (type and message), seconds of CPU. Those of the clock depend on who else computes and are
no measure of what an artifact asks for; one that waits instead of computing (for a pipe, a lock, another machine) is stopped after
`MOST_WAIT_S` and counts as not refused. Once everything is imported, the process may take 512 MiB of address space more than it
has. Each entry of `ATTACKS` builds its artifact in a directory of its own and returns what loads it.
"""

import gzip
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from ovr import EdgePredictor
from ovr.cli.instantiate import build
from ovr.cli.overrides import check_yaml_files
from ovr.cli.rundir import resumed
from ovr.cli.train import _import_lightning
from ovr.core.bundle import MANIFEST, head_directory, open_bundle
from ovr.core.files import read_json, sha256_file
from ovr.core.schema import InputSchema
from ovr.data.delimited import Dialect, read_rows
from ovr.data.features import _array
from ovr.data.idx import read_idx
from ovr.data.images import _from_npz
from ovr.errors import OvrError
from ovr.runtime.record_files import read_placed_records
from ovr.runtime.rows import read_rows as read_input
from tests.bundles import forge, small_bundle
from tests.hostile_models import BRANCH, ENDLESS, IN_STEPS, MODELS, STEPS, UNKNOWN, external, model, node, outer, whole
from tests.hostile_patches import EXPORTS, PATCHES

MORE_BYTES = 512 << 20
MOST_WAIT_S = 20
ATTACKS: dict[str, Callable[[Path], Callable[[], Any]]] = {}
MIB = bytes(1 << 20)
Change = Callable[[dict[str, Any]], Any]


def nothing(manifest: dict[str, Any]) -> None:
    """Leave the manifest as it is."""


class RunsCode:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.file),))


def attack(name: str) -> Callable[[Callable[[Path], Callable[[], Any]]], None]:
    def register(make: Callable[[Path], Callable[[], Any]]) -> None:
        ATTACKS[name] = make

    return register


def onnx_attack(name: str, make: Callable[[], onnx.ModelProto | bytes]) -> None:
    """Register a fused file."""

    def write(folder: Path) -> Callable[[], Any]:
        made = make()
        (folder / "fused.onnx").write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
        return lambda: EdgePredictor(folder / "fused.onnx").predict(np.zeros((1, 2)))

    ATTACKS[name] = write


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def tarred(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    return buffer.getvalue()


for _name, _make in MODELS.items():
    onnx_attack(_name, _make)
onnx_attack("tar with ../../escaped", lambda: tarred("../../escaped"))
onnx_attack("zip with ../../escaped", lambda: zipped(**{"..__..__escaped": b"evil"}))


@attack("weights in a hard link")
def _(folder: Path) -> Callable[[], Any]:
    (folder / "secret").write_bytes(bytes(8))
    os.link(folder / "secret", folder / "weights.bin")
    (folder / "fused.onnx").write_bytes(external("weights.bin").SerializeToString())
    return lambda: EdgePredictor(folder / "fused.onnx")


def forged(folder: Path, files: dict[str, bytes], change: Change = nothing) -> Path:
    """Return a copy of a bundle with other files and every digest right, as its maker could write it."""
    path = folder / "bundle"
    shutil.copytree(folder.parent / "good", path)
    forge(path, files, change)
    return path


def bundle_attack(
    name: str, files: Callable[[Path], dict[str, bytes]], change: Callable[[dict[str, Any]], Any] = lambda m: None
) -> None:
    def write(folder: Path) -> Callable[[], Any]:
        path = forged(folder, files(folder), change)
        return lambda: open_bundle(path)

    ATTACKS[name] = write


def changed_bundle(name: str) -> Callable[[Callable[[Path, Path], Any]], None]:
    """Register a bundle that a function changes on the disk."""

    def register(change: Callable[[Path, Path], Any]) -> None:
        def write(folder: Path) -> Callable[[], Any]:
            path = forged(folder, {})
            change(path, folder)
            return lambda: open_bundle(path)

        ATTACKS[name] = write

    return register


def named(file: str) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["files"].update({file: manifest["files"]["backbone/model.onnx"]})


HEADS = [f"heads/{name}/1" for name in ("cat", "dog")]


def head_json(key: str, new: str) -> Callable[[Path], dict[str, bytes]]:
    def files(folder: Path) -> dict[str, bytes]:
        relative = f"{HEADS[0]}/head.json"
        text, count = re.subn(rf'"{key}":[^,}}]+', new, (folder.parent / "good" / relative).read_text())
        assert count == 1
        return {relative: text.encode()}

    return files


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def pickled(folder: Path) -> bytes:
    return npy(np.array([RunsCode(folder / "ran")], dtype=object))


def npz_bomb(name: str, num_mib: int) -> bytes:
    """Return an .npz file of some MiB that unpacks to `num_mib`."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = npy_header((num_mib << 18,))
    data = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    data += (packer.compress(MIB) + packer.flush(zlib.Z_FULL_FLUSH)) * num_mib + packer.flush()
    size = len(head) + (num_mib << 20)
    fields = struct.pack("<HHHIIIHH", 8, 0, 33, 0, len(data), size, len(name), 0)
    local = b"PK\x03\x04" + struct.pack("<HH", 20, 0) + fields + name.encode()
    central = b"PK\x01\x02" + struct.pack("<HHH", 20, 20, 0) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    return local + data + central + end


def overlapping() -> bytes:
    """Return a zip file of 1000 arrays that are all the same 1 MiB."""
    data = npy_header((1 << 18,)) + MIB
    fields = struct.pack("<HHHIIIHH", 0, 0, 33, zlib.crc32(data), len(data), len(data), 8, 0)
    local = b"PK\x03\x04" + struct.pack("<HH", 20, 0) + fields + b"0000.npy"
    central = b"".join(
        b"PK\x01\x02" + struct.pack("<HHH", 20, 20, 0) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + f"{k:04d}.npy".encode()
        for k in range(1000)
    )
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1000, 1000, len(central), len(local) + len(data), 0)
    return local + data + central + end


WEIGHTS = "backbone/weights.npz"
bundle_attack("bundle with Loop in its backbone", lambda f: {"backbone/model.onnx": model(ENDLESS).SerializeToString()})
bundle_attack("bundle with If in its fused graph", lambda f: {"fused/model.onnx": model(BRANCH).SerializeToString()})
bundle_attack(
    "head with ConstantOfShape", lambda f: {f"{HEADS[0]}/model.onnx": model(node("ConstantOfShape", "x")).SerializeToString()}
)
bundle_attack("head with external weights", lambda f: {f"{HEADS[0]}/model.onnx": external("../../../../x").SerializeToString()})
bundle_attack("head that broadcasts to 6.4 GB", lambda f: {f"{HEADS[0]}/model.onnx": outer("Add", 40_000).SerializeToString()})
bundle_attack("head that grows in steps", lambda f: {f"{HEADS[0]}/model.onnx": model(*STEPS, weights=IN_STEPS).SerializeToString()})
bundle_attack(
    "head of a size that it computes",
    lambda f: {f"{HEADS[0]}/model.onnx": model(*UNKNOWN, weights=(whole("size", 1 << 30),)).SerializeToString()},
)
bundle_attack("head with a threshold of NaN", head_json("threshold", '"threshold":NaN'))
bundle_attack("head with a threshold of 1e999", head_json("threshold", '"threshold":1e999'))
bundle_attack("head with a threshold of -1", head_json("threshold", '"threshold":-1'))
bundle_attack("head with two thresholds", head_json("threshold", '"threshold":0.5,"threshold":0.1'))
bundle_attack("head of version -1", head_json("version", '"version":-1'))
bundle_attack("head.json nested deep", lambda f: {f"{HEADS[0]}/head.json": b"[" * 1_000_000})
bundle_attack("pickle as .npy", lambda f: {"reference/x.npy": pickled(f)})
bundle_attack("pickle in .npz", lambda f: {WEIGHTS: zipped(**{"w.npy": pickled(f)})})
bundle_attack("pickle itself as weights", lambda f: {WEIGHTS: pickle.dumps(RunsCode(f / "ran"))})
bundle_attack("npz bomb as weights", lambda f: {WEIGHTS: npz_bomb("w.npy", 4095)})
bundle_attack("npz of 1000 arrays in one place", lambda f: {WEIGHTS: overlapping()})
bundle_attack("npz with ../../escaped", lambda f: {WEIGHTS: zipped(**{"..__..__escaped.npy": npy(np.ones(2))})})
bundle_attack("npz that claims 2**40 values", lambda f: {WEIGHTS: zipped(**{"w.npy": npy_header((1 << 40,)) + b"12"})})
bundle_attack("npz cut short", lambda f: {WEIGHTS: zipped(**{"w.npy": npy(np.ones(99))})[:-40]})
bundle_attack("npy that claims 2**40 values", lambda f: {"calibration/logit.npy": npy_header((1 << 40,))})
bundle_attack("npy header of brackets", lambda f: {"calibration/logit.npy": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000})
bundle_attack(
    "manifest that names ../../secret",
    lambda f: {},
    lambda m: m["files"].update({"../../secret": m["files"]["backbone/model.onnx"]}),
)
bundle_attack(
    "manifest that names /etc/passwd", lambda f: {}, lambda m: m["files"].update({"/etc/passwd": m["files"]["backbone/model.onnx"]})
)
bundle_attack("head in ../elsewhere", lambda f: {}, lambda m: m["heads"][0].update(path="../elsewhere"))
bundle_attack("input of shape -1", lambda f: {}, lambda m: m["input"].update(shape=[-1]))


@changed_bundle("manifest with one key twice")
def _(path: Path, folder: Path) -> None:
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text('{"policy":{},' + text[1:])


@changed_bundle("manifest nested deep")
def _(path: Path, folder: Path) -> None:
    (path / MANIFEST).write_text('{"schema_version":1,"files":' + '{"a":' * 500_000)


@changed_bundle("manifest of more than 1 GiB")
def _(path: Path, folder: Path) -> None:
    os.truncate(path / MANIFEST, (1 << 30) + 1)


@changed_bundle("manifest of 900 MiB beside a hole of 4 GiB")
def _(path: Path, folder: Path) -> None:
    os.truncate(path / MANIFEST, 900 << 20)
    (path / "hole").touch()
    os.truncate(path / "hole", 4 << 30)


@changed_bundle("manifest of four million lists")
def _(path: Path, folder: Path) -> None:
    (path / MANIFEST).write_bytes(b"[" + b"[]," * (4 << 20) + b"[]]")


@changed_bundle("manifest of as many objects as are read")
def _(path: Path, folder: Path) -> None:
    (path / MANIFEST).write_bytes(b'{"schema_version":1,"files":[' + b"{}," * ((1 << 19) - 9) + b"{}]}")


@changed_bundle("manifest of one text as large as is read")
def _(path: Path, folder: Path) -> None:
    (path / MANIFEST).write_bytes('{"schema_version":1,"files":"🐈'.encode() + b"a" * ((1 << 25) - 99) + b'"}')


@changed_bundle("pipe in place of the manifest")
def _(path: Path, folder: Path) -> None:
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)


@changed_bundle("digests of two heads swapped")
def _(path: Path, folder: Path) -> None:
    first, second = (path / head / "model.onnx" for head in HEADS)
    shutil.move(first, folder / "first")
    shutil.move(second, first)
    shutil.move(folder / "first", second)


@changed_bundle("symbolic link to a file")
def _(path: Path, folder: Path) -> None:
    shutil.move(path / "fused/model.onnx", folder / "fused.onnx")
    (path / "fused/model.onnx").symlink_to(folder / "fused.onnx")


@changed_bundle("symbolic link to a folder")
def _(path: Path, folder: Path) -> None:
    shutil.move(path / "heads", folder / "heads")
    (path / "heads").symlink_to(folder / "heads", target_is_directory=True)


@changed_bundle("symbolic link to /etc/passwd")
def _(path: Path, folder: Path) -> None:
    (path / "notes").symlink_to("/etc/passwd")


@changed_bundle("hard link to a foreign file")
def _(path: Path, folder: Path) -> None:
    (folder / "secret").write_bytes(b"secret")
    os.link(folder / "secret", path / "reference.txt")


@changed_bundle("hard link that another wrote through")
def _(path: Path, folder: Path) -> None:
    os.link(path / "fused/model.onnx", folder / "outside.onnx")
    with (folder / "outside.onnx").open("r+b") as file:
        file.seek(40)
        file.write(b"evil")


@changed_bundle("pipe in place of a file")
def _(path: Path, folder: Path) -> None:
    (path / "fused/model.onnx").unlink()
    os.mkfifo(path / "fused/model.onnx")


def checkpoint_attack(name: str, data: Callable[[Path], bytes]) -> None:
    """Register a checkpoint whose digest is right."""

    def write(folder: Path) -> Callable[[], Any]:
        from ovr.training.checkpoint import read_checkpoint

        (folder / "last.ckpt").write_bytes(data(folder))
        (folder / "last.ckpt.sha256").write_text(sha256_file(folder / "last.ckpt"))
        return lambda: read_checkpoint(folder / "last.ckpt")

    ATTACKS[name] = write


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


checkpoint_attack("checkpoint that runs code", lambda f: saved({"state_dict": RunsCode(f / "ran")}))
checkpoint_attack("pickle as checkpoint", lambda f: pickle.dumps(RunsCode(f / "ran")))
checkpoint_attack("checkpoint cut short", lambda f: saved({"w": torch.ones(9999)})[:-5000])
checkpoint_attack("tar as checkpoint", lambda f: tarred("../../escaped"))
checkpoint_attack("zip with ../../escaped as checkpoint", lambda f: zipped(**{"..__..__data.pkl": b"evil"}))


def data_attack(name: str, file: str, data: Callable[[Path], bytes], load: Callable[[Path], Any]) -> None:
    def write(folder: Path) -> Callable[[], Any]:
        (folder / file).write_bytes(data(folder))
        return lambda: load(folder / file)

    ATTACKS[name] = write


def gzip_bomb(folder: Path) -> bytes:
    return gzip.compress(MIB) * 2048


NO_RULE: Any = None  # nothing gets so far


def all_of(rows: Any) -> list[Any]:
    return list(rows)


data_attack("npz bomb as features", "x.npz", lambda f: npz_bomb("x.npy", 4095), lambda p: _array(p, "x"))
data_attack("pickle as features", "x.npz", lambda f: zipped(**{"x.npy": pickled(f)}), lambda p: _array(p, "x"))
data_attack("pickle as rows to predict", "x.npy", pickled, lambda p: read_input(p, InputSchema((2,))))
data_attack("npy of 2**40 rows to predict", "x.npy", lambda f: npy_header((1 << 40, 2)), lambda p: read_input(p, InputSchema((2,))))
data_attack("npz bomb as images", "x.npz", lambda f: npz_bomb("x.npy", 4095), lambda p: _from_npz(p, None, NO_RULE, ()))
data_attack("gzip bomb as a table", "x.csv.gz", gzip_bomb, lambda p: all_of(read_rows(p, Dialect(delimiter=","))))
data_attack("gzip bomb as IDX", "x.gz", gzip_bomb, lambda p: read_idx(p.with_suffix("")))
data_attack("gzip bomb as texts", "x.jsonl.gz", gzip_bomb, lambda p: all_of(read_placed_records(p, "text")))


def yaml_attack(name: str, text: Callable[[Path], str]) -> None:
    """Register the configuration of a run that is to be resumed."""

    def write(folder: Path) -> Callable[[], Any]:
        (folder / "run/.hydra").mkdir(parents=True)
        (folder / "run/.hydra/config.yaml").write_text(text(folder))
        return lambda: resumed([f"resume={folder / 'run'}"])

    ATTACKS[name] = write


BILLION = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{k + 1}: &a{k + 1} [{','.join([f'*a{k}'] * 10)}]\n" for k in range(9))


@attack("pipe as JSON")
def _(folder: Path) -> Callable[[], Any]:
    os.mkfifo(folder / "x.json")
    return lambda: read_json(folder / "x.json")


@attack("pipe as YAML")
def _(folder: Path) -> Callable[[], Any]:
    os.mkfifo(folder / "x.yaml")
    return lambda: check_yaml_files(folder)


yaml_attack("YAML of a billion aliases", lambda f: BILLION)
yaml_attack("YAML that contains itself", lambda f: "a: &a [*a]\n")
yaml_attack("YAML nested deep", lambda f: "[" * 100_000)
yaml_attack("YAML with an object of Python", lambda f: f"a: !!python/object/apply:os.mkdir ['{f / 'ran'}']\n")
yaml_attack("YAML of 2 MiB", lambda f: "a: " + "x" * (2 << 20))


@attack("target that removes files")
def _(folder: Path) -> Callable[[], Any]:
    (folder / "kept").touch()
    return lambda: build({"_target_": "pathlib.Path.unlink", "_args_": [str(folder / "kept")]})


@attack("target by way of a module of ovr")
def _(folder: Path) -> Callable[[], Any]:
    return lambda: build({"_target_": "ovr.core.files.os.mkdir", "path": str(folder / "ran")})


ATTACKS.update(EXPORTS | PATCHES)


def stop_waiting(*_: Any) -> None:
    raise TimeoutError(f"it was waited for, more than {MOST_WAIT_S} s")


def main(root: Path) -> None:
    """Build every artifact under `root` and load it."""
    _import_lightning()  # the quick way
    small_bundle(root / "good", ("cat", "dog", "owl"), shape=(2,))
    assert [head_directory(head) for head in open_bundle(root / "good").heads[:2]] == HEADS
    EdgePredictor(root / "good").predict(np.zeros((1, 2)))
    loads = {}
    for number, (name, make) in enumerate(ATTACKS.items()):
        folder = root / f"{number:02d}"
        folder.mkdir()
        loads[name] = (folder, make(folder))
    taken_kib = int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize")).split()[1]
    )
    limit = (taken_kib << 10) + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, stop_waiting)
    for name, (folder, load) in loads.items():
        start = time.process_time()
        signal.alarm(MOST_WAIT_S)
        try:
            load()
            error = "none: it was loaded"
        except OvrError as refused:
            error = f"{type(refused).__name__}: {refused}"
        except BaseException as other:
            error = f"not an error of ovr: {type(other).__name__}: {other}"
        signal.alarm(0)
        seconds = time.process_time() - start
        if (folder / "ran").exists():
            error = f"it ran code; {error}"
        print(json.dumps({"name": name, "error": error[:400], "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
