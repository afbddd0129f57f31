"""Features of a frozen backbone: computed once, kept on disk, proven before they are used. Knows rows and models, not labels.

A file is a line of JSON (schema version, key, shape, digest of what follows) and then the values, float32 little-endian. Its name
is the key, a digest of all that the features depend on (as `module_digest` tells it), so that no file is ever out of date; any may
be deleted at any time.

N = rows, B = batch, D = features, L = places of a row, S = shape of a place
"""

import hashlib
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import ovr
from ovr.backbone.identity import Identity
from ovr.backbone.joined import Joined
from ovr.core.files import canonical_json, sha256_bytes, staged_file
from ovr.core.schema import InputSchema
from ovr.data.lazy import Inputs, RowNumbers, blocks
from ovr.model import Normalizer, OvrModel
from ovr.training.module_digest import module_digest
from ovr.training.recipe import is_frozen

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
BATCH_ROWS = 1024  # not a setting: torch's bits change with the size of a batch
MAX_HEADER_BYTES = 4096


def frozen_features(model: OvrModel, x: Inputs, *, cache_dir: Path | None, device: str = "cpu") -> NDArray[np.float32]:
    """Return features (N, D) of raw rows (N, *shape) in eval mode, from `cache_dir` if it has them; `model` comes back on the CPU.

    A damaged file is reported and computed again; a cache that cannot be written, or a backbone that cannot be told from others,
    is reported and done without.
    """
    if cache_dir is None:
        return _computed(model, x, device)
    try:
        key = features_key(model, x, device=device)
    except TypeError as error:
        log.warning("features are not kept for the next run: %s", error)
        return _computed(model, x, device)
    file = cache_dir / f"{key}.features"
    shape = (len(x), int(model.backbone.num_features))  # type: ignore[arg-type]  # every backbone has it
    z_ND = _read(file, key, shape)
    if z_ND is None:
        z_ND = _computed(model, x, device)
        _write(file, key, z_ND)
    return z_ND


def has_frozen_part(backbone: nn.Module) -> bool:
    """Return whether the backbone, or a part of it, is frozen by its own settings."""
    return is_frozen(backbone) or (isinstance(backbone, Joined) and bool(backbone.frozen_parts()))


def without_frozen_part(model: OvrModel, input: InputSchema) -> OvrModel:
    """Return a model of the trained parts of `model` itself, which takes what `rows_on_features` returns."""
    backbone = model.backbone
    rest: nn.Module = Identity((int(backbone.num_features),))  # type: ignore[arg-type]  # every backbone has it
    if not is_frozen(backbone) and isinstance(backbone, Joined):
        rest = backbone.on_features(math.prod(input.shape[1:]))
    return OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), rest, model.head, fixed_backbone=model.fixed_backbone)


def rows_on_features(model: OvrModel, x: Inputs, *, cache_dir: Path | None, device: str) -> Inputs:
    """Return raw rows with the features of the frozen part in place of its rows: of a frozen backbone, these alone (N, D)."""
    backbone = model.backbone
    if is_frozen(backbone) or not isinstance(backbone, Joined):
        return frozen_features(model, x, cache_dir=cache_dir, device=device)
    frozen, parts = backbone.frozen_parts(), []
    for name in backbone.parts:
        rows: Any = backbone.rows_of(name, x)
        if name in frozen:
            part = OvrModel(model.normalizer, frozen[name], model.head)
            z_ND = frozen_features(part, rows, cache_dir=cache_dir, device=device)
            size = math.prod(x.shape[2:])
            rows = np.pad(z_ND, ((0, 0), (0, -z_ND.shape[1] % size))).reshape(len(z_ND), -1, *x.shape[2:])
        parts.append(rows)
    return JoinedRows(tuple(parts))


@dataclass(frozen=True, slots=True)
class JoinedRows:
    """Parts of rows, (N, length, *S) each, joined when they are asked for."""

    parts: tuple[Inputs, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, L, *S)."""
        return (len(self), sum(part.shape[1] for part in self.parts), *self.parts[0].shape[2:])

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """That of what is read."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: RowNumbers) -> NDArray[np.float32]:
        return np.concatenate([part[rows] for part in self.parts], axis=1)


def features_key(model: OvrModel, x: Inputs, *, device: str) -> str:
    """Return a digest of the rows, of normaliser and backbone with every weight and setting, and of the software that computes.

    Raises:
        TypeError: a backbone with a part that cannot be told from others.
    """
    rows = hashlib.sha256()
    for block in blocks(x):
        rows.update(np.ascontiguousarray(x[block]).data)
    parts = {
        "schema_version": SCHEMA_VERSION,
        "rows": [list(x.shape), rows.hexdigest()],
        "backbone": module_digest(model.normalizer, model.backbone),
        "software": [ovr.__version__, torch.__version__, torch.device(device).type],
    }
    return sha256_bytes(canonical_json(parts))


def _computed(model: OvrModel, x: Inputs, device: str) -> NDArray[np.float32]:
    z_ND = np.empty((len(x), int(model.backbone.num_features)), np.float32)  # type: ignore[arg-type]  # every backbone has it
    log.info("computing features of %d rows", len(x))
    model.to(device).eval()
    with torch.inference_mode():
        for start in range(0, len(x), BATCH_ROWS):
            here = slice(start, start + BATCH_ROWS)
            z_ND[here] = model.features(torch.from_numpy(x[here]).to(device)).float().cpu().numpy()
    model.to("cpu")
    return z_ND


def _write(file: Path, key: str, z_ND: NDArray[np.float32]) -> None:
    values = np.ascontiguousarray(z_ND, dtype="<f4")
    header = {
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "shape": list(z_ND.shape),
        "sha256": hashlib.sha256(values.data).hexdigest(),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(file) as out:
            out.write(canonical_json(header) + b"\n")
            out.write(values.data)
    except OSError as error:
        log.warning("features are not kept for the next run: %s: %s", error.strerror, file)
        return
    log.info("features %s kept in %s", z_ND.shape, file)


def _read(file: Path, key: str, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    if not file.is_file():
        return None
    try:
        with file.open("rb") as content:
            header: Any = json.loads(content.readline(MAX_HEADER_BYTES))
            if not isinstance(header, dict) or (header.get("key"), header.get("shape")) != (key, list(shape)):
                raise ValueError("its header does not belong to it")
            z_ND = np.empty(shape, dtype="<f4")
            if content.readinto(z_ND.data.cast("B")) != z_ND.nbytes or content.read(1):
                raise ValueError("it is too short or too long")
        if hashlib.sha256(z_ND.data).hexdigest() != header.get("sha256"):
            raise ValueError("its digest is another")
    except (OSError, ValueError, RecursionError) as error:
        log.warning("features in %s are damaged and are computed again: %s", file, error)
        return None
    log.info("features %s from %s", shape, file)
    return z_ND
