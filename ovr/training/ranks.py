"""Sums and rows across the ranks of a fit; with one rank nothing is sent. Knows tensors, not what they are of.

W = ranks, B = rows of one rank, D = features
"""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the default process group, which must be there when one of several calls another."""

    rank: int
    world_size: int

    def rows(self, value_BD: Tensor) -> Tensor:
        """Return the rows of all ranks (W * B, D), one rank after the other; every rank has as many."""
        if self.world_size == 1:
            return value_BD
        gathered = value_BD.new_empty(self.world_size * len(value_BD), *value_BD.shape[1:])
        dist.all_gather(list(gathered.chunk(self.world_size)), value_BD.contiguous())
        return gathered

    def own_rows_of_sum(self, value: Tensor) -> Tensor:
        """Return this rank's share (B, D) of the rows (W * B, D) of the sum over ranks."""
        if self.world_size == 1:
            return value
        size = len(value) // self.world_size
        if dist.get_backend() == "nccl":
            own = value.new_empty(size, *value.shape[1:])
            dist.reduce_scatter(own, list(value.contiguous().chunk(self.world_size)))
            return own
        dist.all_reduce(value)
        return value[self.rank * size : (self.rank + 1) * size]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def objects(self, value: Any) -> list[Any]:
        """Return the picklable values of all ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Tensor) -> None:
        """Give every rank the tensor of the first, in place."""
        if self.world_size > 1:
            dist.broadcast(value, src=0)

    def send(self, value: Tensor, to: int) -> None:
        """Send a tensor of bytes to a rank that receives one of this size."""
        dist.send(value, dst=to)

    def receive(self, into: Tensor, source: int) -> None:
        """Receive a tensor of bytes of this size."""
        dist.recv(into, src=source)
