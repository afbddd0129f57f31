"""A bundle whose parts are some bytes: what core promises does not depend on what the files mean."""

from pathlib import Path
from typing import Any

from ovr.core.artifact import Calibration, DecisionPolicy, HeadArtifact, ModelCard
from ovr.core.bundle import BACKBONE_ONNX, ModelBundle, head_directory
from ovr.core.bundle_writer import write_bundle
from ovr.core.files import canonical_json, sha256_bytes
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy

CLASS_IDS = ("cat", "../é/\n", "train")


def graph(name: bytes) -> bytes:
    """Return an ONNX file of an empty graph; `name` stands in it as its producer."""
    size, head = len(name), b"\x3a\x00\x12"
    while size >= 0x80:
        head, size = head + bytes([size & 0x7F | 0x80]), size >> 7
    return head + bytes([size]) + name


BACKBONE = graph(b"the backbone")


def heads(class_ids: tuple[str, ...] = CLASS_IDS, *, backbone: bytes = BACKBONE, version: int = 1) -> list[HeadArtifact]:
    """Return one head a class, each with a calibration of its own."""
    return [
        HeadArtifact(i, version, sha256_bytes(backbone), "linear", Calibration(scale=1.0 + k), 0.5, {"test": {"f1": None}})
        for k, i in enumerate(class_ids)
    ]


def parts(of: list[HeadArtifact]) -> dict[str, bytes | Path]:
    """Return the files that `write_bundle` wants."""
    return {BACKBONE_ONNX: BACKBONE, "report/metrics.json": b"{}"} | {
        f"{head_directory(head)}/model.onnx": graph(head.class_id.encode()) for head in of
    }


def fuse(card: ModelCard) -> bytes:
    """Return a fused file that holds the card, as the real one does."""
    return graph(canonical_json(card.to_json()))


def write(final: Path, **changes: Any) -> ModelBundle:
    """Write a small bundle; `changes` replace arguments of `write_bundle`."""
    of = heads()
    arguments: dict[str, Any] = {
        "taxonomy": Taxonomy.from_ids(CLASS_IDS),
        "heads": of,
        "input": InputSchema((2, 3)),
        "policy": DecisionPolicy("multilabel", 0.25, 2),
        "provenance": {"seed": 0},
        "parts": parts(of),
        "fuse": fuse,
    }
    return write_bundle(final, **(arguments | changes))
