"""What a step goes over: groups of heads that are treated alike, and chunks of a group. Knows nothing of what a step does.

B = batch, K = heads, G = heads of one group, C = heads of a chunk
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ovr.head.bank import HeadBank, check_heads_first, count_heads
from ovr.head_step.chunkable import StateTable
from ovr.head_step.targets import SparseTargets

CHUNK_BYTES = {"cpu": 1 << 22, "cuda": 1 << 26}  # of a chunk's arrays: on a CPU they stay in the cache
FEW_HEADS, WIDER = 2048, 4  # products of fewer heads lose more than the cache gives: chunks of them may take so many times as much
CHUNK_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class Group:
    """G heads that are treated alike, and where among all K they are."""

    heads: nn.Module
    size: int
    prefix: str  # of their weights' names
    column_G: Tensor | None  # None: all K in order
    trained: bool
    sends: bool  # passes a gradient on to the features
    shells: dict[str, nn.Parameter]  # what a chunk's weights are to the optimizer: data, gradient and state are lent to them
    tables: dict[str, StateTable] = field(default_factory=dict)

    def fitting_heads(self, num_rows: int) -> int:
        """Return the size of a chunk where none is set."""
        num_weights: int = sum(value.numel() for value in self.heads.state_dict().values()) // self.size
        return fitting_heads(num_weights, num_rows, next(iter(self.shells.values())).device.type)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Heads start .. stop - 1 of a group, their columns among all K, their loss and their targets."""

    start: int
    stop: int
    columns: slice | Tensor
    loss: nn.Module
    shift_C: Tensor | None  # added to their logits
    targets: SparseTargets

    def rows(self, value: Tensor, num_heads: int) -> slice:
        """Return where these heads lie in `value`, which has as many rows for each of `num_heads`."""
        each = len(value) // num_heads
        return slice(self.start * each, self.stop * each)

    def column_list(self) -> list[int]:
        """Return the columns one by one."""
        return list(range(self.columns.start, self.columns.stop)) if isinstance(self.columns, slice) else self.columns.tolist()


def groups_of(heads: nn.Module) -> Iterator[Group]:
    if not isinstance(heads, HeadBank):
        num_heads = count_heads(heads)
        check_heads_first(heads, num_heads=num_heads)
        yield Group(heads, num_heads, "", None, True, True, _shells(heads, num_heads))
        return
    for name, column_G in heads.columns.items():
        group, size = heads.groups[name], len(column_G)
        columns = torch.from_numpy(column_G).to(next(iter(group.state_dict().values())).device)
        trained, sends = name.startswith("trained"), not name.endswith("_stopped")
        yield Group(group, size, f"groups.{name}.", columns, trained, sends, _shells(group, size))


def _shells(heads: nn.Module, num_heads: int) -> dict[str, nn.Parameter]:
    """Return a parameter for each weight, holding the first head's rows: some optimizers make their state at once."""
    shells = {}
    for name, value in heads.state_dict().items():
        first = value[: len(value) // num_heads]
        shells[name] = nn.Parameter(first.to(torch.float32 if first.dtype == torch.bfloat16 else first.dtype, copy=True))
    return shells


def fitting_heads(num_weights: int, num_rows: int, device: str) -> int:
    """Return how many heads' logits, gradients and weights fill `CHUNK_BYTES`, or more where those are few.

    It is an odd multiple of `CHUNK_MULTIPLE`: rows of logits that lie a power of two apart compete for the same places of a
    processor's cache, which costs a tenth of a step.

    Args:
        num_weights: of one head.
        num_rows: of a batch.
        device: its type, such as "cpu".
    """
    fitting = CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * (2 * num_rows + 2 * num_weights))
    multiples = max(1, max(fitting, min(FEW_HEADS, WIDER * fitting)) // CHUNK_MULTIPLE)
    return CHUNK_MULTIPLE * (multiples - 1 + multiples % 2)
