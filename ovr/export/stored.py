"""The heads that a bundle holds, as weights and as ONNX models of their own, whether it has a file a head or shards.

S = heads of one shard
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from ovr.core.bundle import ModelBundle
from ovr.core.heads import HeadColumns
from ovr.core.shards import read_weights
from ovr.errors import ArtifactError
from ovr.export.calibrated import weights_of
from ovr.export.head import head_constants, head_metadata, head_model

Weights = dict[str, NDArray[np.float32]]


def stored_weights(bundle: ModelBundle, columns: Sequence[int]) -> Iterator[tuple[int, str, Weights]]:
    """Yield (column, kind, weights) of the heads in `columns`, in ascending order, one shard in memory at a time.

    Raises:
        ArtifactError: a file holds no such head.
    """
    wanted = np.unique(np.asarray(columns, dtype=np.int64))
    if not isinstance(bundle.heads, HeadColumns):
        for column in wanted.tolist():
            head = bundle.heads[column]
            kind, constants = head_constants(parsed(bundle.head_onnx(head).read_bytes(), what=f"head {head.class_id!r}"))
            yield column, kind, weights_of(constants)
        return
    for shard in bundle.shards:
        here = wanted[slice(*np.searchsorted(wanted, (shard.columns.start, shard.columns.stop)))]
        stack = read_weights(bundle.path, shard) if len(here) else {}
        for column in here.tolist():
            yield column, bundle.heads.kind, {name: value[column - shard.first_column] for name, value in stack.items()}


def stored_models(bundle: ModelBundle, columns: Sequence[int]) -> Iterator[onnx.ModelProto]:
    """Yield the ONNX models of the heads in `columns`, in ascending order: features (B, D) -> calibrated probability (B, 1).

    Out of a shard they are built as `head_model` builds them for a bundle with a file a head.

    Raises:
        ArtifactError: a file holds no such head.
    """
    if not bundle.shards:
        for column in sorted(set(columns)):
            head = bundle.heads[column]
            yield parsed(bundle.head_onnx(head).read_bytes(), what=f"head {head.class_id!r}")
        return
    for column, kind, weights in stored_weights(bundle, columns):
        head = bundle.heads[column]
        yield head_model(kind, weights, head.calibration, head_metadata(head))


def parsed(data: bytes, *, what: str) -> onnx.ModelProto:
    """Return the ONNX model in `data`, whose digest has been checked.

    Raises:
        ArtifactError: it is none.
    """
    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ArtifactError(f"{what} is not an ONNX file: {error}") from None
