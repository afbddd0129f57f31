"""Features of a frozen backbone: computed once, kept on disk, proven before they are used. Knows rows and models, not labels.

A file is a line of JSON (schema version, key, shape, digest of what follows) and then the values, float32 little-endian. Its name
is the key, a digest of all that the features depend on, so that no file is ever out of date; any may be deleted at any time.

N = rows, B = batch, D = features
"""

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import ovr
from ovr.backbone.identity import Identity
from ovr.core.files import canonical_json, sha256_bytes, staged_file
from ovr.core.schema import InputSchema
from ovr.data.lazy import Inputs, blocks
from ovr.data.splits import Splits, TrainRows, ValRows
from ovr.model import Normalizer, OvrModel

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
BATCH_ROWS = 1024  # not a setting: torch's bits change with the size of a batch
MAX_HEADER_BYTES = 4096


def frozen_features(model: OvrModel, x: Inputs, *, cache_dir: Path | None, device: str = "cpu") -> NDArray[np.float32]:
    """Return features (N, D) of raw rows (N, *shape) in eval mode, from `cache_dir` if it has them; `model` comes back on the CPU.

    A damaged file is reported and computed again; a cache that cannot be written is reported and done without.
    """
    if cache_dir is None:
        return _computed(model, x, device)
    key = features_key(model, x, device=device)
    file = cache_dir / f"{key}.features"
    shape = (len(x), int(model.backbone.num_features))  # type: ignore[arg-type]  # every backbone has it
    z_ND = _read(file, key, shape)
    if z_ND is None:
        z_ND = _computed(model, x, device)
        _write(file, key, z_ND)
    return z_ND


def heads_on_features(model: OvrModel, splits: Splits, *, cache_dir: Path | None, device: str) -> tuple[OvrModel, Splits]:
    """Return a model of the heads of `model` alone, and splits whose training and validation rows are its features (N, D)."""
    z_train_ND, z_val_ND = (
        frozen_features(model, rows.x, cache_dir=cache_dir, device=device) for rows in (splits.train, splits.val)
    )
    shape = (z_train_ND.shape[1],)
    train, val = TrainRows(z_train_ND, splits.train.labels), ValRows(z_val_ND, splits.val.labels)
    alone = OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), Identity(shape), model.head)
    return alone, replace(splits, input=InputSchema(shape), train=train, val=val)


def features_key(model: OvrModel, x: Inputs, *, device: str) -> str:
    """Return a digest of the rows, of normaliser and backbone with every weight, and of the software that computes."""
    rows = hashlib.sha256()
    for block in blocks(x):
        rows.update(np.ascontiguousarray(x[block]).data)
    parts = {
        "schema_version": SCHEMA_VERSION,
        "rows": [list(x.shape), rows.hexdigest()],
        "backbone": backbone_digest(model),
        "software": [ovr.__version__, torch.__version__, torch.device(device).type],
    }
    return sha256_bytes(canonical_json(parts))


def backbone_digest(model: OvrModel) -> str:
    """Return a digest of the normaliser and the backbone: their structure, and every weight and buffer."""
    digest = hashlib.sha256()
    for part in (model.normalizer, model.backbone):
        digest.update(f"{type(part).__module__}.{type(part).__qualname__} {part!r}\n".encode())
        for name, value in part.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


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
