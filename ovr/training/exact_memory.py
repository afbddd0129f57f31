"""Whether the exact heads of very many classes fit the memory, from the parts of their fit. Knows sizes, no data and no fit.

N = rows, E = features and intercept, K = heads, C = heads that are solved together
"""

from collections.abc import Callable

import torch

from ovr.training import memory
from ovr.training.lbfgs import MEMORY
from ovr.training.logistic import block_heads

# Of (C, N) in float64 that are alive at a time. With 64 features a fit took 766 MiB where 808 are counted (15,000 heads, 500 rows),
# and 436 where 636 are (400 heads, 20,000 rows).
BLOCK_ARRAYS = 10
WEIGHT_BYTES = 12  # the model's in float32 and the optimum in float64
HEAD_BYTES = 64  # counts, intercept, status, steps and gradient
ROW_BYTES = 16  # a value of a training row: as it came, centred in float64, and that in float32 for the steps
# Of (E, E), the rows' second moment and its inverse: while it is inverted, when no head is there yet, and as the steps take it, in
# float64 and in float32. With 4,000 features a fit of 3 heads took 16.6 bytes a value, of 200 heads 318 MiB where 390 are counted.
# A GPU's inverse is made from a copy.
INVERTING_BYTES = {"cpu": 16, "cuda": 24}
INVERSE_BYTES = 12


def exact_parts(*, num_heads: int, num_rows: int, num_features: int, device: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes, by part, of what is in this machine's memory, and of what is where the heads are solved."""
    width, together = num_features + 1, min(num_heads, block_heads(num_rows))
    block_bytes = 8 * together * (BLOCK_ARRAYS * num_rows + 2 * MEMORY * width)
    return {"weights of the heads": (WEIGHT_BYTES * width + HEAD_BYTES) * num_heads}, {
        "features of the training rows": ROW_BYTES * num_rows * width,
        "their second moment": max(INVERTING_BYTES[device] * width**2 - block_bytes, INVERSE_BYTES * width**2),
        "a block of heads": block_bytes,
    }


def check_exact_memory(*, num_heads: int, num_rows: int, num_features: int, device: str) -> None:
    """Raise ConfigError if the heads take more memory than there is, with the figures and how many would fit.

    Where the system does not tell how much there is, nothing is checked. `device` is "cpu" or "cuda".
    """

    def here(num: int) -> dict[str, int]:
        heads, solved = exact_parts(num_heads=num, num_rows=num_rows, num_features=num_features, device=device)
        return heads if device == "cuda" else heads | solved

    def on_gpu(num: int) -> dict[str, int]:
        return exact_parts(num_heads=num, num_rows=num_rows, num_features=num_features, device=device)[1]

    if (found := memory.available_memory()) is not None:
        _check(here, num_heads, *found)
    if device == "cuda":
        _check(on_gpu, num_heads, torch.cuda.mem_get_info()[0], "on the GPU")


def _check(parts_of: Callable[[int], dict[str, int]], num_heads: int, available: int, source: str) -> None:
    free = memory.usable(available)
    memory.refuse_unless(lambda num: sum(parts_of(num).values()) <= free, num_heads, parts_of(num_heads), available, source)
