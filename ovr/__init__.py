"""One-vs-Rest deep learning: one shared backbone, K independent sigmoid heads, one calibrated probability a class."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovr.runtime.async_client import AsyncClient
    from ovr.runtime.client import Client
    from ovr.runtime.predictor import EdgePredictor
    from ovr.runtime.remote.retry import Retry

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "EdgePredictor", "Retry", "__version__"]

# onnxruntime 1.31's wheel reports usage to its maker unless told otherwise, and reads this when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "AsyncClient": "ovr.runtime.async_client",
    "Client": "ovr.runtime.client",
    "EdgePredictor": "ovr.runtime.predictor",
    "Retry": "ovr.runtime.remote.retry",
}


def __getattr__(name: str) -> Any:
    """Import the public classes when they are first asked for: `import ovr` itself costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ovr' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ImportError(f"ovr.{name} needs onnxruntime, which is not installed: pip install 'ovr[edge]'") from None
