"""Directories that look like edge exports to what patches them: models are any bytes there."""

from pathlib import Path

import numpy as np

from ovr.core.files import canonical_json, sha256_bytes
from ovr.edge.matches import copies
from ovr.edge.patch_file import patch_bytes
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
        (path / "signatures" / "bundle.sig").write_text(f"{note} by model-signing")
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
