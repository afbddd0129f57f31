"""The directory that `ovr export target=edge` writes, found again on a device. Needs numpy and the standard library alone.

model.onnx or model.ort    the model, with the card in it
card.json                  what it was made of, and the digest of its file
"""

from pathlib import Path

from ovr.core.files import read_json, sha256_file
from ovr.errors import ArtifactError

EXPORT_CARD = "card.json"
MODELS = ("model.onnx", "model.ort")


def is_edge_export(path: Path) -> bool:
    """Return whether it is a directory with a model of an edge export in it."""
    return path.is_dir() and (path / EXPORT_CARD).is_file() and any((path / name).is_file() for name in MODELS)


def checked_model(directory: Path) -> Path:
    """Return the model of an edge export once its digest is the one that its card.json has.

    Raises:
        ArtifactError: card.json is none of an edge export, or the model's file is missing or was changed.
    """
    card = read_json(directory / EXPORT_CARD)
    found = card.get("model") if isinstance(card, dict) and card.get("target") == "edge" else None
    if not isinstance(found, dict) or found.get("file") not in MODELS:
        raise ArtifactError(f"{directory / EXPORT_CARD} is not that of `ovr export target=edge`; expected target and model in it")
    file: Path = directory / found["file"]
    if not file.is_file():
        raise ArtifactError(f"{directory} has no {found['file']}, which its {EXPORT_CARD} names; export it again")
    if file.stat().st_size != found.get("size_bytes") or sha256_file(file) != found.get("sha256"):
        raise ArtifactError(f"{file} was changed or cut short: its digest is not the one in {EXPORT_CARD}; export it again")
    return file


def checked_ort(file: Path) -> None:
    """Raise ArtifactError unless the card.json beside a file in ONNX Runtime's own format has its digest.

    What such a file is made of cannot be read off its bytes before the runtime parses it, as it is for ONNX.
    """
    if not (file.parent / EXPORT_CARD).is_file():
        raise ArtifactError(
            f"{file} has no {EXPORT_CARD} beside it; a file in ONNX Runtime's format is opened with its digest alone, so keep the "
            "two that `ovr export target=edge format=ort` wrote together"
        )
    if checked_model(file.parent).name != file.name:
        raise ArtifactError(f"{file} is not the model that the {EXPORT_CARD} beside it names")
