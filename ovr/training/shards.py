"""Heads spread over ranks: which columns each holds, and what is kept of all K brought together and dealt out again.

What is kept is a tensor for each weight and each state of an optimizer, with as many rows for each head, one head after the other.
All K heads of it lie in a file on the first rank, so that they take no memory.

W = ranks, K = heads, G = heads of one group
"""

import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovr.head.bank import group_columns
from ovr.training.plan import HeadPlan
from ovr.training.ranks import Ranks

PIECE_BYTES = 64 << 20  # sent at a time

Key = tuple[str, str]  # the name of a weight in the state dict of the heads, and of an optimizer's state of it or ""


class HeadShards:
    """Consecutive heads for each rank, as equal in number as can be."""

    def __init__(self, plan: HeadPlan, ranks: Ranks) -> None:
        """Take the plan of all K heads."""
        self.ranks = ranks
        self.bounds = [plan.num_heads * rank // ranks.world_size for rank in range(ranks.world_size + 1)]
        self.columns = slice(self.bounds[ranks.rank], self.bounds[ranks.rank + 1])
        self._groups: dict[str, NDArray[np.int64]] = {"": np.arange(plan.num_heads)}
        if not plan.is_plain:
            groups = group_columns(plan.num_heads, frozen=plan.frozen, to_backbone=plan.to_backbone)
            self._groups = {f"groups.{name}.": column_G for name, column_G in groups.items()}

    def column_array(self) -> NDArray[np.int64]:
        """Return this rank's columns one by one."""
        return np.arange(self.columns.start, self.columns.stop)

    def deal(self, whole: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """Return this rank's rows, as views, of tensors of all heads; without those of which it has none."""
        own = {}
        for key, value in whole.items():
            starts = self._starts(key, len(value))
            rows = slice(starts[self.ranks.rank], starts[self.ranks.rank + 1])
            if rows.start < rows.stop:
                own[key] = value[rows]
        return own

    def gather(self, own: Mapping[Key, Tensor], folder: Path) -> dict[Key, Tensor]:
        """Return on the first rank the tensors of all heads, in nameless files in `folder` that go with them; {} on others."""
        if self.ranks.world_size == 1:
            return dict(own)
        shapes = self.ranks.objects({key: (tuple(value.shape), value.dtype) for key, value in own.items()})
        whole = {}
        for key in sorted({key for one in shapes for key in one}):
            (_, *rest), dtype = next(one[key] for one in shapes if key in one)
            num_rows = [one[key][0][0] if key in one else 0 for one in shapes]
            starts = np.cumsum([0, *num_rows]).tolist()
            if self.ranks.rank == 0:
                whole[key] = file_backed((starts[-1], *rest), dtype, folder)
                whole[key][: num_rows[0]] = own[key].to("cpu") if key in own else whole[key][:0]
            for rank in range(1, self.ranks.world_size):
                step = max(1, PIECE_BYTES // max(1, dtype.itemsize * prod(rest)))
                for start in range(0, num_rows[rank], step):
                    rows = slice(start, min(start + step, num_rows[rank]))
                    if self.ranks.rank == rank:
                        self.ranks.send(own[key][rows].contiguous().view(torch.uint8), 0)
                    elif self.ranks.rank == 0:
                        self._receive(whole[key][starts[rank] + rows.start : starts[rank] + rows.stop], rank)
        return whole

    def _receive(self, into: Tensor, rank: int) -> None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.distributed.get_backend() == "nccl" else None
        piece = torch.empty(into.view(torch.uint8).shape, dtype=torch.uint8, device=device)
        self.ranks.receive(piece, rank)
        into.copy_(piece.cpu().view(into.dtype))

    def _starts(self, key: Key, num_rows: int) -> list[int]:
        """Return where each rank's rows begin in a tensor of all heads, and where they end."""
        column_G = next(column_G for prefix, column_G in self._groups.items() if key[0].startswith(prefix))
        each = num_rows // len(column_G)
        return [int(at) * each for at in np.searchsorted(column_G, self.bounds)]


def file_backed(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
    """Return a tensor whose values lie in a file without a name, which goes when the tensor does, even by SIGKILL."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(max(1, prod(shape) * dtype.itemsize))
        raw = torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+"))
    return raw[: prod(shape) * dtype.itemsize].view(dtype).view(shape)


def flat_state(weights: Mapping[str, Tensor], states: Mapping[str, Any]) -> dict[Key, Tensor]:
    """Return weights and the optimizer's state of them, as `HeadStep.state_dict` has it, by `Key`."""
    flat = {(name, ""): value for name, value in weights.items()}
    for name, state in states.items():
        flat |= {(name, part): value for part, value in state["tensors"].items()}
    return flat
