"""What the fused step's kernels and their twins are told beside tensors. Knows neither of them.

S = blocks of rows of a batch
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut: heads and rows (for `update`: features) of a tile, what is multiplied at a time, warps and stages.

    Two tiles of 128 x 128 fit a multiprocessor, so that one's epilogue runs while the other multiplies. Not measured yet.
    """

    heads: int = 128
    rows: int = 128
    depth: int = 64
    warps: int = 4
    stages: int = 3


class Optimizer(Enum):
    """The updates that `update` knows."""

    SGD = 0
    ADAMW = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What is fixed when a graph is captured; the rest is `scalars`."""

    optimizer: Optimizer
    nesterov: bool = False
    state: tuple[str, ...] = field(default=())  # torch's names, in the order of the moments


def scalars(settings: Settings, group: dict[str, Any], *, num_rows: int, step: int) -> list[float]:
    """Return the eight numbers that a step reads on the device: 1 / rows, the learning rate and what the optimizer adds.

    Args:
        group: torch's `param_groups[0]` of SGD or AdamW.
        step: of Adam's corrections, from 1.
    """
    common = [1.0 / num_rows, float(group["lr"]), float(group["weight_decay"])]
    if settings.optimizer is Optimizer.SGD:
        return [*common, float(group["momentum"]), 0.0, 0.0, 0.0, 0.0]
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return [*common, beta1, beta2, float(group["eps"]), 1.0 - beta1**step, (1.0 - beta2**step) ** 0.5]
