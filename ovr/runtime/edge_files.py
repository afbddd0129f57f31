"""The directory that `ovr export target=edge` writes, found again on a device. Needs numpy and the standard library alone.

model.onnx or model.ort    the model, with the card in it
card.json                  what it was made of, and the digest of its file
signatures/                bundle.sig, of a signed bundle whose fused graph the model is; export.json (see `edge_signatures`)

Of `ovr export target=web` the same, but for bundle.sig, among the files of a page.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ovr.core.bundle import BUNDLE_SIGNATURE, MANIFEST, SIGNATURES
from ovr.core.files import bytes_on_disk, read_json, sha256_file
from ovr.errors import ArtifactError
from ovr.runtime.edge_signatures import EXPORT_SIGNATURE, add_export_signature, check_export_signature

EXPORT_CARD = "card.json"
MODELS = ("model.onnx", "model.ort")
FILES = (*MODELS, EXPORT_CARD, BUNDLE_SIGNATURE, EXPORT_SIGNATURE)  # that such a directory may hold
PAGE = "page.json"  # that a page alone has
COPY_AGAIN = "copy all that `ovr export target=edge` wrote"
MAX_SWAPS = 100  # of the directory while it is read: each reading that one spoils is made again


def is_edge_export(path: Path) -> bool:
    """Return whether it is a directory of an edge export, or what was copied of one; a bundle has a manifest."""
    return path.is_dir() and not (path / MANIFEST).exists() and any((path / name).is_file() for name in (EXPORT_CARD, *MODELS))


def is_page(path: Path) -> bool:
    """Return whether it is a directory with a model of an edge export among the files of a page."""
    return is_edge_export(path) and (path / PAGE).is_file()


def export_files(directory: Path) -> dict[str, Path]:
    """Return the files of an edge export by their names in it.

    Raises:
        ArtifactError: it is none, or not all of one; it is a page; something else lies there too.
    """
    if is_page(directory):
        raise ArtifactError(
            f"{directory} is a page that `ovr export target=web` wrote, and patches are of directories of target=edge alone; "
            "export the page again and put it in the old one's place"
        )
    if not is_edge_export(directory):
        raise ArtifactError(f"{directory} is no directory that `ovr export target=edge` wrote; expected {EXPORT_CARD} and a model")
    _check_has_card(directory)
    files = {name: directory / name for name in FILES if (directory / name).is_file()}
    if not files.keys() & set(MODELS):
        raise ArtifactError(f"{directory} has no {' or '.join(MODELS)} beside its {EXPORT_CARD}; {COPY_AGAIN}")
    there = {entry.name for entry in os.scandir(directory)}
    if (directory / SIGNATURES).is_dir():
        there = (there - {SIGNATURES}) | {f"{SIGNATURES}/{entry.name}" for entry in os.scandir(directory / SIGNATURES)}
    if more := sorted(there - files.keys()):
        raise ArtifactError(f"{directory} holds {', '.join(more[:5])}, which is no part of an edge export; move it elsewhere")
    return files


def checked_model(directory: Path, trusted_keys: Sequence[Path] = ()) -> Path:
    """Return the model of an edge export once its digest is the one that its card.json has.

    Args:
        trusted_keys: public keys, one of which must have signed the export; without any, nobody needs to have.

    Raises:
        ArtifactError: card.json is missing or none of an edge export, the model's file is missing or was changed, or no trusted key
            signed it.
        ConfigError: a key cannot be used, or cryptography is not installed.
    """
    _check_has_card(directory)
    card = _card(directory)
    for _ in range(MAX_SWAPS):
        try:
            return _checked(directory, card, trusted_keys)
        except ArtifactError:
            before, card = card, _card(directory)
            if card == before:  # else a patch was applied meanwhile, which is no fault of the directory
                raise
    return _checked(directory, card, trusted_keys)


def check_whole(directory: Path) -> None:
    """Raise unless it is an edge export and nothing else, or a page, whose own files are no part of that; and its model is whole.

    Raises:
        ArtifactError: it is no edge export, something else lies there, or its model was changed.
    """
    if not is_page(directory):
        export_files(directory)
    checked_model(directory)


def sign_export(directory: Path, key: Path, password: bytes | None) -> Path:
    """Sign an edge export, or that in a page, with a private EC key and return the file with the signature, beside those of others.

    Raises:
        ArtifactError: what `check_whole` refuses.
        ConfigError: the key cannot be used, or cryptography is not installed.
    """
    check_whole(directory)
    return add_export_signature(directory, directory / EXPORT_CARD, key, password)


def _check_has_card(directory: Path) -> None:
    if not (directory / EXPORT_CARD).is_file():
        raise ArtifactError(f"{directory} has no {EXPORT_CARD}, as every edge export has beside its model; {COPY_AGAIN}")


def _card(directory: Path) -> Any:
    """Return what card.json holds, a model among it; whoever it is from, it is as large as what lies beside it lets it be."""
    beside_bytes = 0
    for name in MODELS:
        with suppress(FileNotFoundError):
            beside_bytes += bytes_on_disk(directory / name)
    card = read_json(directory / EXPORT_CARD, beside_bytes=beside_bytes)
    found = card.get("model") if isinstance(card, dict) and card.get("target") == "edge" else None
    if not isinstance(found, dict) or found.get("file") not in MODELS:
        raise ArtifactError(f"{directory / EXPORT_CARD} is not that of `ovr export target=edge`; expected target and model in it")
    return card


def _checked(directory: Path, card: Any, trusted_keys: Sequence[Path]) -> Path:
    found = card["model"]
    file: Path = directory / found["file"]
    if not file.is_file():
        raise ArtifactError(f"{directory} has no {found['file']}, which its {EXPORT_CARD} names; {COPY_AGAIN}")
    if file.stat().st_size != found.get("size_bytes") or sha256_file(file) != found.get("sha256"):
        raise ArtifactError(f"{file} was changed or cut short: its digest is not the one in {EXPORT_CARD}; export it again")
    if trusted_keys:
        check_export_signature(directory, directory / EXPORT_CARD, trusted_keys)
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
