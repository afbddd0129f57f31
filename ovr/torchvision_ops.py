"""Makes `import torchvision` work where its compiled part does not, as its CUDA wheel beside a CPU build of torch.

lightning, torchmetrics, timm and transformers import torchvision wherever it is installed, and fail then with `operator
torchvision::nms does not exist`, though none of them needs that operator.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_declared: list[torch.library.Library] = []  # an operator is there as long as its library


def declare_missing_ops() -> None:
    """Declare torchvision's operators where torchvision is installed and cannot load them; they raise when they are called.

    To be called before lightning is imported.
    """
    spec = None if _declared else find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations or hasattr(torch.ops.torchvision, "nms"):
        return
    for compiled in Path(next(iter(spec.submodule_search_locations))).glob("_C*.so"):
        try:
            torch.ops.load_library(compiled)  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _declared.append(library)
