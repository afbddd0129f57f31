"""Directories that look like edge exports to what patches them: models are any bytes there."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ovr.core.files import canonical_json, sha256_bytes
from ovr.edge.matches import copies
from ovr.edge.patch_file import MAGIC, patch_bytes
from ovr.runtime.edge_signatures import signatures_json


def export(path: Path, model: bytes, *, signed: bool = False, note: str = "", file: str = "model.onnx") -> Path:
    """Write an export of a model of these bytes."""
    path.mkdir()
    (path / file).write_bytes(model)
    said = {"file": file, "sha256": sha256_bytes(model), "size_bytes": len(model)}
    (path / "card.json").write_bytes(canonical_json({"schema_version": 1, "target": "edge", "model": said, "note": note}))
    if signed:
        (path / "signatures").mkdir()
        (path / "signatures" / "export.json").write_bytes(signatures_json({"a key": note}))
        payload = base64.b64encode("".join(f"{note}{k:x}" for k in range(99)).encode()).decode()
        (path / "signatures" / "bundle.sig").write_text(f'{{"payload":"{payload}","signature":"{note}"}}')
    return path


def pair(folder: Path, num_values: int = 5000) -> tuple[Path, Path]:
    """Write two exports of which the second has some other weights, and signatures more."""
    weights = np.random.default_rng(0).normal(size=num_values).astype(np.float32)
    old = export(folder / "old", weights.tobytes())
    weights[100:196] += 1
    return old, export(folder / "new", weights.tobytes() + b"more", signed=True, note="new")


def content(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory."""
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def patch(old: Path, new: Path, file: Path) -> Path:
    """Write the patch that makes one export the other."""
    file.write_bytes(patch_bytes(content(old), content(new), copies))
    return file


def forged(
    file: Path,
    change: Callable[[dict[str, Any]], Any] = lambda said: None,
    *,
    bodies: bytes | None = None,
    header: bytes | None = None,
    more: bytes = b"",
) -> Path:
    """Write a patch with another header, or other bodies, whose own digest is right, as anybody can."""
    data = file.read_bytes()
    size = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
    start = len(MAGIC) + 4 + size
    said = json.loads(data[start - size : start])
    length = sum(row[key][0] for row in said["new"].values() for key in ("ops", "literals"))
    change(said)
    text = canonical_json(said) if header is None else header
    kept = data[start : start + length] if bodies is None else bodies
    made = MAGIC + len(text).to_bytes(4, "little") + text + kept + data[start + length : -32] + more
    file.write_bytes(made + hashlib.sha256(made).digest())
    return file
