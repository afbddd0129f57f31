"""The fused graph as `ovr_scores` has it. Knows nothing of repositories."""

import onnx

from ovr.core.cohorts import COHORT


def with_required_cohort(data: bytes) -> bytes:
    """Return a serialised fused graph with cohorts, whose input `cohort` must now be given.

    Triton's ONNX Runtime backend takes an input that may be left out of models without batches only; the router always sends it.
    """
    model = onnx.load_model_from_string(data)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != COHORT]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    served: bytes = model.SerializeToString(deterministic=True)
    return served
