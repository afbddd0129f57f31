"""The gate that every exported ONNX model passes: valid, of known operators, of bounded size, and run by ONNX Runtime.

An exporter's own verdict is not trusted. Knows nothing of torch or of what the right answers are.
"""

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ovr.core.cohorts import COHORT
from ovr.errors import ArtifactError

MAX_NODES = 2000
MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own limit
AFFINE_HEAD_OPS = frozenset({"Gemm", "Relu", "Mul", "Add", "Sigmoid"})
# With those of beta and isotonic calibrations.
HEAD_OPS = AFFINE_HEAD_OPS | {"Softplus", "Neg", "Sub", "Gather", "GreaterOrEqual", "Where", "Max", "Min", "Clip", "Div"}
# No control flow (a few bytes of Loop hang a session), nothing that reads files, nothing random.
_BACKBONE_OPS = """
Abs And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos
CumSum DepthToSpace Div Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu GlobalAveragePool
GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsNaN
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LRN MatMul Max MaxPool Mean Min Mish Mod Neg Not OneHot Or PRelu
Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Reshape Resize Round ScatterElements ScatterND Selu Shape Sign Sin Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where
"""
GRAPH_OPS = HEAD_OPS | frozenset(_BACKBONE_OPS.split())


def check_structure(model: onnx.ModelProto, *, allowed_ops: frozenset[str], what: str) -> bytes:
    """Return the serialised model if it is one that may be written and served.

    Args:
        what: how errors call the model.

    Raises:
        ArtifactError: too large; not valid by onnx.checker (value names that collide among it); operators outside `allowed_ops`
            or the default domain; functions, subgraphs, external data, or more than 2000 nodes.
    """
    size_bytes = model.ByteSize()
    if size_bytes > MAX_MODEL_BYTES:
        raise ArtifactError(f"{what} takes {size_bytes} bytes; one ONNX file holds at most {MAX_MODEL_BYTES}")
    problems = []
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        problems.append(f"{len(graph.node)} nodes, at most {MAX_NODES}")
    foreign = {f"{node.domain}:{node.op_type}" for node in graph.node if node.domain} | {f.name for f in model.functions}
    foreign |= {node.op_type for node in graph.node if node.op_type not in allowed_ops}
    if foreign:
        problems.append(f"operators {', '.join(sorted(foreign))} are not among those that ovr serves")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in graph.initializer):
        problems.append("weights in external files")
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        problems.append("subgraphs")
    if problems:
        raise ArtifactError(f"{what} cannot be served: {'; '.join(problems)}")
    data: bytes = model.SerializeToString(deterministic=True)
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
