"""The model of a bundle in torch again: built by the configuration that the bundle keeps, with the bundle's weights.

Knows what makes backbone and heads by their constructors, not where these come from.

D = features, K = heads
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from ovr.core.bundle import BACKBONE_WEIGHTS, ModelBundle
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError, ConfigError
from ovr.model import Normalizer, OvrModel
from ovr.training.initial import start_from_bundle

CHECKED_ROWS = 4  # of the bundle's reference rows
TOLERANCE = 1e-4  # of features, relative to the largest


def rebuilt_model(
    bundle: ModelBundle,
    class_ids: Sequence[str],
    *,
    backbone: Callable[[tuple[int, ...]], nn.Module],
    head: Callable[..., nn.Module],
) -> OvrModel:
    """Return normaliser, backbone and the heads of some classes, in this order, in eval mode on the CPU.

    Its features are compared with those of the bundle's ONNX file: code that has changed since may make another network.

    Raises:
        ArtifactError: the bundle keeps no weights for torch, what the configuration makes has other weights, or other features.
    """
    file = bundle.path / BACKBONE_WEIGHTS
    if not file.is_file():
        raise ArtifactError(f"{bundle.path} has no {BACKBONE_WEIGHTS}, so its backbone cannot be built in torch")
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        shape = arrays["normalizer.shift"].shape
    try:
        trunk: Any = backbone(bundle.input.shape)
        model = OvrModel(
            Normalizer(torch.zeros(shape), torch.ones(shape)), trunk, head(trunk.num_features, num_heads=len(class_ids))
        )
        start_from_bundle(model, bundle.path, taxonomy=Taxonomy.from_ids(class_ids), input=bundle.input, needed=tuple(class_ids))
    except (ConfigError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{bundle.path} cannot be built again from the configuration that it keeps: {error}") from error
    model.eval().requires_grad_(False)
    _check(model, bundle)
    return model


def _check(model: OvrModel, bundle: ModelBundle) -> None:
    x = np.load(bundle.path / "reference" / "x.npy", allow_pickle=False)[:CHECKED_ROWS]
    session = ort.InferenceSession(bundle.backbone_onnx, providers=["CPUExecutionProvider"])
    expected_ND = session.run(None, {bundle.input.name: x})[0]
    with torch.inference_mode():
        found_ND = model.features(torch.from_numpy(x)).numpy()
    worst = float(np.abs(found_ND - expected_ND).max())
    if not worst <= TOLERANCE * max(1.0, float(np.abs(expected_ND).max())):
        raise ArtifactError(
            f"{bundle.path}: the backbone that its configuration makes gives other features than its {bundle.backbone_onnx.name} "
            f"(by {worst:.2g}); is it of another version of the code?"
        )
