"""The gate that every exported ONNX model passes: valid, of known operators, of bounded size, and run by ONNX Runtime.

An exporter's own verdict is not trusted. Knows nothing of torch or of what the right answers are.
"""

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ovr.core.cohorts import COHORT
from ovr.core.onnx_file import check_onnx
from ovr.errors import ArtifactError

MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own limit


def check_structure(model: onnx.ModelProto, *, allowed_ops: frozenset[str], what: str) -> bytes:
    """Return the serialised model if it is one that may be written and served.

    Args:
        what: how errors call the model.

    Raises:
        ArtifactError: too large; not valid by onnx.checker (value names that collide among it); operators outside `allowed_ops`
            or the default domain; functions, subgraphs, external data, or more than 2000 nodes (see `check_onnx`).
    """
    size_bytes = model.ByteSize()
    if size_bytes > MAX_MODEL_BYTES:
        raise ArtifactError(f"{what} takes {size_bytes} bytes; one ONNX file holds at most {MAX_MODEL_BYTES}")
    data: bytes = model.SerializeToString(deterministic=True)
    check_onnx(data, allowed_ops=allowed_ops, what=what)
    try:
        onnx.checker.check_model(data)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ArtifactError(f"{what} is not a valid ONNX model: {str(error).strip()}") from None
    return data


def run(data: bytes, rows: NDArray[np.float32], *, batch_size: int = 256, cohort: int | None = None) -> NDArray[np.float32]:
    """Return the first output of the serialised model for `rows`, its only input, on one CPU thread.

    Args:
        cohort: given as the second input `cohort`, of all rows.

    Raises:
        ArtifactError: ONNX Runtime cannot load or run it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        parts = []
        for start in range(0, len(rows), batch_size):
            feed = {name: rows[start : start + batch_size]}
            if cohort is not None:
                feed[COHORT] = np.full((len(feed[name]), 1), cohort, np.int64)
            parts.append(session.run(None, feed)[0])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ArtifactError(f"ONNX Runtime refuses the exported model: {str(error).strip()}") from None
    return np.concatenate(parts)
