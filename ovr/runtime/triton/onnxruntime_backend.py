"""Triton's `onnxruntime` backend written in Python, for servers that have only the Python backend. Knows nothing of ovr.

It serves the same configuration and `model.onnx` as the native backend: one session an instance on the CPU, honouring the
parameters `intra_op_thread_count` and `inter_op_thread_count`. Placed as `<backend directory>/onnxruntime/model.py`.

B = batch
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of one model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's `model.onnx`."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 1))
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 1))
        options.log_severity_level = 3
        filename = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / filename
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input_names = [value.name for value in self.session.get_inputs()]
        self.output_names = [value.name for value in self.session.get_outputs()]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run the requests that Triton batched together as one batch; if that fails, each by itself."""
        feeds = [[_array(request, name) for request in requests] for name in self.input_names]
        try:
            together = [arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for arrays in feeds]
            outputs = self.session.run(self.output_names, dict(zip(self.input_names, together, strict=True)))
        except Exception as error:
            if len(requests) > 1:
                return [self.execute([request])[0] for request in requests]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))]
        responses, start = [], 0
        for request, array in zip(requests, feeds[0], strict=True):
            rows = slice(start, start + len(array))
            start = rows.stop
            responses.append(self._response(request, [output[rows] for output in outputs]))
        return responses

    def _response(self, request: Any, arrays: Sequence[np.ndarray[Any, Any]]) -> Any:
        # A model of one output is asked for that one.
        wanted = self.output_names if len(arrays) == 1 else request.requested_output_names()
        tensors = [pb_utils.Tensor(name, array) for name, array in zip(self.output_names, arrays, strict=True) if name in wanted]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _array(request: Any, name: str) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return array
