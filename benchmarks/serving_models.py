"""What `benchmarks.serving` has served beside what ovr publishes: a full model a class, and repositories without batching.

B = batch, D = values of a row, K = heads
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import tritonclient.http as http_api
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.grpc import service_pb2

from benchmarks.load import Target
from ovr.core.bundle import ModelBundle
from ovr.export.fused import fused_model
from ovr.serving.contents import model_names, read_config
from ovr.serving.pbtxt import Scheduling, scores_config, to_text

SEPARATE = "separate"  # the ensemble of the full models


def add_separate_models(bundle: ModelBundle, repository: Path, *, max_batch_size: int = 256) -> None:
    """Add a model of its own for each class, backbone and head, and an ensemble: one request, which Triton hands to all of them."""
    scheduling = Scheduling("KIND_CPU", 1, max_batch_size, 0, 0, 1)
    backbone = onnx.load(bundle.backbone_onnx)
    config = pb.ModelConfig(name=SEPARATE, platform="ensemble", max_batch_size=max_batch_size)
    config.input.add(name=bundle.input.name, data_type=pb.TYPE_FP32, dims=bundle.input.shape)
    for k, head in enumerate(bundle.heads):
        card = bundle.card.of_classes([head.class_id])
        name = f"{SEPARATE}_{k}"
        model = repository / name
        (model / "1").mkdir(parents=True)
        onnx.save(fused_model(backbone, [onnx.load(bundle.head_onnx(head))], card), model / "1" / "model.onnx")
        own = scores_config(card, scheduling, version=1, labels_version=1)
        own.name = name
        own.output[0].ClearField("label_filename")
        (model / "config.pbtxt").write_text(to_text(own))
        config.output.add(name=f"prob_{k}", data_type=pb.TYPE_FP32, dims=[1])
        step = config.ensemble_scheduling.step.add(model_name=name, model_version=1)
        step.input_map[bundle.input.name] = bundle.input.name
        step.output_map["prob"] = f"prob_{k}"
    (repository / SEPARATE / "1").mkdir(parents=True)
    (repository / SEPARATE / "config.pbtxt").write_text(to_text(config))


def without_batching(repository: Path, copy: Path) -> None:
    """Make a copy of a repository whose models take each request by itself, of as many rows as before."""
    shutil.copytree(repository, copy)
    for name in model_names(copy):
        config = read_config(copy, name)
        assert config is not None
        config.ClearField("dynamic_batching")
        (copy / name / "config.pbtxt").write_text(to_text(config))


def asked_of(url: str, model: str, name: str, x: np.ndarray, outputs: Sequence[str] = (), *, watched: str = "") -> Target:
    """Return requests for a model of a Triton server, one a row of `x`, for these outputs or all; tensors are binary."""
    rows = [x[n : n + 1] for n in range(len(x))]
    if url.startswith("http:"):
        return Target(url, [_http(url, model, name, row, outputs) for row in rows], watched)
    return Target(url, [_grpc(model, name, row, outputs) for row in rows], watched)


def post(url: str, path: str, body: bytes, fields: str = "") -> bytes:
    """Return a whole HTTP request."""
    host = url.partition("://")[2]
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode() + body


def _http(url: str, model: str, name: str, row: np.ndarray, outputs: Sequence[str]) -> bytes:
    tensor = http_api.InferInput(name, list(row.shape), "FP32").set_data_from_numpy(row, binary_data=True)
    wanted = [http_api.InferRequestedOutput(output, binary_data=True) for output in outputs]
    body, json_size = http_api.InferenceServerClient.generate_request_body([tensor], outputs=wanted or None)
    return post(url, f"/v2/models/{model}/infer", body, f"Inference-Header-Content-Length: {json_size}\r\n")


def _grpc(model: str, name: str, row: np.ndarray, outputs: Sequence[str]) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[row.tobytes()])
    request.inputs.add(name=name, datatype="FP32", shape=row.shape)
    for output in outputs:
        request.outputs.add(name=output)
    return bytes(request.SerializeToString())
