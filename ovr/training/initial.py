"""Starting weights from an existing bundle: normaliser, backbone, and each head that the bundle has, by class id."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ovr.core.bundle import BACKBONE_WEIGHTS, ModelBundle, open_bundle
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError, ConfigError
from ovr.export.backbone import trunk_state
from ovr.export.stored import stored_weights
from ovr.model import OvrModel

log = logging.getLogger(__name__)


def start_from_bundle(model: OvrModel, path: Path, *, taxonomy: Taxonomy, input: InputSchema, needed: tuple[str, ...]) -> None:
    """Give `model` the weights of the bundle at `path`, bit for bit.

    The normaliser comes with the backbone, since heads fit no other features. Classes that the bundle lacks keep the weights
    that were drawn, classes that only the bundle has are left out.

    Args:
        taxonomy: the classes of `model`, in column order.
        needed: class ids that the bundle must have.

    Raises:
        ArtifactError: the bundle is damaged, or holds no weights for torch.
        ConfigError: it lacks a needed class, takes other rows, or has a backbone or heads of another kind or size.
    """
    bundle = open_bundle(path)
    known = set(bundle.taxonomy.ids)
    if missing := [class_id for class_id in needed if class_id not in known]:
        raise ConfigError(f"init_from={path} has no head for the frozen classes {missing}; a frozen head needs weights to keep")
    if bundle.input.shape != input.shape:
        raise ConfigError(f"init_from={path} takes rows of shape {bundle.input.shape}; the data has {input.shape}")
    if _rows_alike(bundle.input.encoder) != _rows_alike(input.encoder):
        raise ConfigError(
            f"init_from={path} makes its rows by another encoder ({bundle.input.raw_kind or 'none'}) than the data "
            f"({input.raw_kind or 'none'}), or by one with other settings: its heads fit no other rows"
        )
    backbone = _backbone_weights(model, bundle)
    head: Any = model.head
    expected = {name: value.shape for name, value in head.head_weights(0).items()}
    column_of = {
        bundle.taxonomy.column(class_id): taxonomy.column(class_id) for class_id in filter(known.__contains__, taxonomy.ids)
    }
    for stored, kind, weights in stored_weights(bundle, list(column_of)):
        found = {name: value.shape for name, value in weights.items()}
        if (kind, found) != (head.kind, expected):
            raise ConfigError(
                f"init_from={path}: head {bundle.taxonomy[stored].id!r} is {kind} with weights of shapes {found}; "
                f"the configuration has {head.kind} with {expected}"
            )
        head.set_head_weights(column_of[stored], weights)
    model.load_state_dict(backbone, strict=False)  # the heads are not among them
    log.info("weights of the backbone and of %d of %d heads from %s", len(column_of), len(taxonomy), path)


def _backbone_weights(model: OvrModel, bundle: ModelBundle) -> dict[str, torch.Tensor]:
    """Return the entries of the bundle's state dict that are not heads, checked against the model's."""
    file = bundle.path / BACKBONE_WEIGHTS
    if not file.is_file():
        raise ArtifactError(f"{bundle.path} has no {BACKBONE_WEIGHTS}, so training cannot start from it")
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    expected = {name: tuple(value.shape) for name, value in trunk_state(model).items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = [
        f"{name} {found.get(name, 'missing')} instead of {expected.get(name, 'nothing')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise ConfigError(f"init_from={bundle.path} has another backbone than the configuration: {'; '.join(wrong[:3])}")
    return weights


def _rows_alike(encoder: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return an encoder's values without the columns of a file that texts stood in, which make no other rows of the same texts."""
    return encoder and {name: value for name, value in encoder.items() if name not in ("columns", "joiner")}
