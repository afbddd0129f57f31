"""Normaliser and backbone out of torch: an ONNX model, raw rows (B, *shape) -> features (B, D), and the weights as arrays.

Knows nothing of heads or bundles.
"""

import copy
import io
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError
from ovr.export.graph import FEATURES, IR_VERSION, OPSET, renamed
from ovr.model import OvrModel

PREFIX = "backbone/"
# Names that no operator or parameter has: a name given to the exporter that meets another makes an invalid file without a word.
_INPUT, _OUTPUT = "ovr_exported_input", "ovr_exported_output"


def backbone_model(model: OvrModel, input: InputSchema) -> onnx.ModelProto:
    """Return the ONNX model of normaliser and backbone in eval mode, with any number of rows a batch.

    Its input is `input.name`, its output `features`; every other name begins with `backbone/`.

    Raises:
        ArtifactError: torch cannot export this backbone, or what it gives is not (B, num_features).
    """
    trunk = _trunk(model)
    rows = torch.zeros(2, *input.shape)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                trunk,
                (rows,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever its passes raise
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ArtifactError(
            f"backbone {type(model.backbone).__name__} cannot be exported to ONNX for rows of shape {input.shape} "
            f"in batches of any size: {reason[0]}"
        ) from error
    assert program is not None
    names = {_INPUT: input.name, _OUTPUT: FEATURES}
    proto = renamed(program.model_proto, lambda name: names.get(name, PREFIX + name))
    proto.producer_name, proto.producer_version, proto.ir_version = "ovr", "", IR_VERSION
    shape = [dim.dim_param or dim.dim_value for dim in proto.graph.output[0].type.tensor_type.shape.dim]
    if shape != ["batch", model.backbone.num_features]:
        raise ArtifactError(
            f"backbone {type(model.backbone).__name__} gives features of shape {shape}; "
            f"expected ['batch', {model.backbone.num_features}]"
        )
    return proto


def backbone_weights(model: OvrModel) -> bytes:
    """Return the .npz file of normaliser and backbone: the entries of `model.state_dict()` that do not begin with `head.`.

    Floats are float32, whatever the precision in training. The same weights give the same bytes.
    """
    arrays: dict[str, Any] = {}
    for name, value in trunk_state(model).items():
        arrays[name] = value.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def trunk_state(model: OvrModel) -> dict[str, torch.Tensor]:
    """Return normaliser and backbone as `backbone_weights` keeps them, by the names of `model.state_dict()`."""
    return _trunk(model).state_dict()


def _trunk(model: OvrModel) -> nn.Sequential:
    """A copy on the CPU, in float32 and eval mode: the model that is being trained stays as it is.

    A backbone whose training adds something to its weights has a method `merged` that returns it, in place, without.
    """
    backbone = copy.deepcopy(model.backbone)
    if callable(merged := getattr(backbone, "merged", None)):
        backbone = merged()
    parts = OrderedDict(normalizer=copy.deepcopy(model.normalizer), backbone=backbone)
    return nn.Sequential(parts).to("cpu").float().eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and log lines, which are about its own insides, off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
