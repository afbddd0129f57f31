"""The fused graph behind BentoML, with its adaptive batching. Runs in an environment of its own, without ovr.

MODEL=fused.onnx WORKERS=N bentoml serve bento_scores:Scores --port PORT
"""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=int(os.environ["WORKERS"]), logging={"access": {"enabled": False}})
class Scores:
    """Probabilities of rows, one thread a session as everywhere in the comparison."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api(batchable=True, max_batch_size=256, max_latency_ms=1000)
    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the probabilities of the rows."""
        return self.session.run(["prob"], {"x": x.astype(np.float32)})[0]
