"""Checkpoints that a crash cannot spoil, that are proven before they are parsed, and that may be moved.

Lightning stages a checkpoint in $TMPDIR and moves it, which is no atomic step between file systems. Here it is staged beside its
final place. A sidecar `<name>.sha256` lists the digests that the file may have; while a checkpoint is replaced it lists the old and
the new one, so there is no moment at which the file and the sidecar disagree. Nothing is copied in memory: what is saved is hashed
as it goes to the disk, and what is loaded stays there until it is read.
"""

import hashlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from ovr.core.files import sha256_file, staged_file, write_file
from ovr.errors import ArtifactError


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoint plug-in: atomic writes, digests checked before loading, weights_only always."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`: a crash at any point leaves the old file or the new one, and either is loadable."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as file:
            hashed: Any = _HashedFile(file)
            torch.save(checkpoint, hashed)
            write_file(_sidecar(path), "\n".join([*_accepted(path), hashed.hexdigest()]).encode())
        write_file(_sidecar(path), hashed.hexdigest().encode())

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | str | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the checkpoint at `path` as `read_checkpoint` does.

        Raises:
            ArtifactError: the file or its sidecar is missing, or the file is not one that was written.
        """
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the checkpoint and its sidecar, if they are there."""
        Path(path).unlink(missing_ok=True)
        _sidecar(Path(path)).unlink(missing_ok=True)


class MovedCheckpoints(Callback):
    """Lets a run go on from another place: `ModelCheckpoint` forgets its best score where its directory has another path."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Rename the directory in the saved states of all `ModelCheckpoint` callbacks to their present one."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if state is not None and isinstance(callback, ModelCheckpoint):
                checkpoint["callbacks"][callback.state_key] = _moved(state, str(state["dirpath"]), str(callback.dirpath))


def _moved(value: Any, before: str, after: str) -> Any:
    if isinstance(value, dict):
        return {_moved(key, before, after): _moved(item, before, after) for key, item in value.items()}
    if isinstance(value, str) and (value == before or value.startswith(before + "/")):
        return after + value[len(before) :]
    return value


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the checkpoint at `path` after checking its digest; its tensors are mapped from the file, and read when they are used.

    They stay what they are when the file is replaced or removed.

    Raises:
        ArtifactError: the file or its sidecar is missing, the file is not one that was written, or holds what only running code
            could read.
    """
    if not path.is_file():
        raise ArtifactError(f"checkpoint {path} does not exist")
    if sha256_file(path) not in _accepted(path):
        raise ArtifactError(f"checkpoint {path} is damaged: its digest is not one of those in {_sidecar(path).name}")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # torch's text goes on to say how to run the code
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{found[1]}, which could run code" if found else "no tensors"
        raise ArtifactError(f"checkpoint {path} is not read: it holds {what}; expected tensors and plain values alone") from None
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise ArtifactError(f"checkpoint {path} is no file of tensors: {str(error).splitlines()[0]}") from None
    return checkpoint


class _HashedFile:
    """A file to write to from front to back, with the digest of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def hexdigest(self) -> str:
        return self.digest.hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _accepted(path: Path) -> list[str]:
    sidecar = _sidecar(path)
    return sidecar.read_text().split() if sidecar.is_file() else []
