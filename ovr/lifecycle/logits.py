"""Logits of a bundle's heads for rows, by ONNX Runtime, without torch: some heads at a time, as many as the memory allows.

N = rows, D = features, K = heads, C = heads of one block, S = heads of one shard or kind
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ovr.core.bundle import ModelBundle
from ovr.core.heads import HeadColumns
from ovr.core.scale import column_blocks
from ovr.core.shards import read_weights
from ovr.data.lazy import Inputs, blocks
from ovr.errors import ArtifactError
from ovr.export.graph import FEATURES, IR_VERSION, OPSET
from ovr.export.heads_graph import HeadsGraph, Stack, blank
from ovr.export.stored import stored_weights

F32 = NDArray[np.float32]
BATCH_ROWS = 256


class Logits(Protocol):
    """Logits (N, C) float32 of all heads, block by block in column order; may be gone through several times."""

    @property
    def num_heads(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[slice, F32]]: ...


@dataclass(frozen=True)
class KnownLogits:
    """Logits that are there, as (N, K)."""

    logit_NK: F32

    @property
    def num_heads(self) -> int:
        """K."""
        return int(self.logit_NK.shape[1])

    def __len__(self) -> int:
        return len(self.logit_NK)

    def __iter__(self) -> Iterator[tuple[slice, F32]]:
        for columns in column_blocks(len(self), self.num_heads):
            yield columns, self.logit_NK[:, columns]


class StoredLogits:
    """Logits of a bundle's heads for features (N, D), computed when they are asked for; calibrations have no part in them."""

    def __init__(self, bundle: ModelBundle, z_ND: F32, *, num_threads: int = 1) -> None:
        """Take features as `bundle_features` gives them."""
        self.bundle, self.z_ND, self.num_heads, self.num_threads = bundle, z_ND, len(bundle.heads), num_threads

    def __len__(self) -> int:
        return len(self.z_ND)

    def __iter__(self) -> Iterator[tuple[slice, F32]]:
        for first, num_heads, groups in self._parts():
            for block in column_blocks(len(self), num_heads):
                logit_NC = np.empty((len(self), block.stop - block.start), np.float32)
                for place_S, kind, stack in groups:
                    here_S = np.flatnonzero((place_S >= block.start) & (place_S < block.stop))
                    if len(here_S):
                        some = {name: value[here_S] for name, value in stack.items()}
                        session = open_session(_logit_model(kind, some), num_threads=self.num_threads, what="the heads")
                        logit_NC[:, place_S[here_S] - block.start] = answers(session, self.z_ND)
                yield slice(first + block.start, first + block.stop), logit_NC

    def _parts(self) -> Iterator[tuple[int, int, list[tuple[NDArray[np.int64], str, Stack]]]]:
        """Yield (first column, number of heads, groups) of consecutive heads: a group has their places, their kind and weights."""
        heads = self.bundle.heads
        if isinstance(heads, HeadColumns):
            for shard in self.bundle.shards:
                stack = read_weights(self.bundle.path, shard)
                yield shard.first_column, shard.num_heads, [(np.arange(shard.num_heads), heads.kind, stack)]
            return
        found: dict[tuple[str, tuple[int, ...]], list[tuple[int, Stack]]] = {}
        for column, kind, weights in stored_weights(self.bundle, range(len(heads))):
            found.setdefault((kind, weights["weight"].shape), []).append((column, weights))
        groups = []
        for (kind, _), members in found.items():
            stack = {name: np.stack([weights[name] for _, weights in members]) for name in members[0][1]}
            groups.append((np.array([column for column, _ in members]), kind, stack))
        yield 0, len(heads), groups


def bundle_features(bundle: ModelBundle, x: Inputs, *, num_threads: int = 1) -> F32:
    """Return the features (N, D) float32 that a bundle's backbone gives for rows (N, *shape), read in blocks.

    Raises:
        ArtifactError: ONNX Runtime cannot load or run it.
    """
    session = open_session(bundle.backbone_onnx.read_bytes(), num_threads=num_threads, what="the backbone")
    return np.concatenate([answers(session, np.ascontiguousarray(x[block], np.float32)) for block in blocks(x)])


def open_session(data: bytes, *, num_threads: int, what: str) -> onnxruntime.InferenceSession:
    """Return a session on the CPU; 0 threads are as many as there are cores.

    Raises:
        ArtifactError: ONNX Runtime cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ArtifactError(f"ONNX Runtime refuses {what}: {str(error).strip()}") from None


def answers(session: Any, rows: F32) -> F32:
    """Return the first output of a session for rows, its only input, some rows at a time."""
    name = session.get_inputs()[0].name
    parts: Sequence[F32] = [
        session.run(None, {name: rows[start : start + BATCH_ROWS]})[0] for start in range(0, len(rows), BATCH_ROWS)
    ]
    return np.concatenate(parts)


def _logit_model(kind: str, stack: Stack) -> bytes:
    """Return the ONNX model features (B, D) -> logits (B, S) of heads of one kind."""
    num_heads = len(stack["bias"])
    whole_blocks = blank(stack, num_heads)
    for name, value in stack.items():
        whole_blocks[name][:num_heads] = value
    heads = HeadsGraph(FEATURES)
    heads.first(heads.logits(kind, whole_blocks), num_heads, "logit")
    num_features = stack["weight" if kind == "linear" else "hidden_weight"].shape[-1]
    graph = helper.make_graph(
        heads.nodes,
        "ovr_logits",
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", num_features])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["batch", num_heads])],
        heads.initializers,
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    data: bytes = model.SerializeToString()
    return data
