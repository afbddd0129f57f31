"""Python models that run inside Triton: numpy and onnxruntime only, in an environment that has no ovr installed."""

from pathlib import Path


def onnxruntime_backend_source() -> bytes:
    """Return the source of the Python-based backend `onnxruntime`, which cannot be imported outside Triton."""
    return (Path(__file__).parent / "onnxruntime_backend.py").read_bytes()
