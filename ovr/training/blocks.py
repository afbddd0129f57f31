"""Logits of some heads at a time: what is made of them takes little memory however many heads there are. Knows no labels.

N = rows, D = features, K = heads, C = heads of one block
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ovr.core.scale import column_blocks


class LogitBlocks:
    """Logits (N, C) float32 of all heads, block by block in column order; may be gone through several times."""

    def __init__(self, head: Any, z_ND: NDArray[np.float32], *, num_heads: int) -> None:
        """Take the K heads and features; the logits are computed in eval mode on the device that the heads are on."""
        self.head, self.num_heads = head.eval(), num_heads
        self._num_units = max(len(value) for value in head.head_weights(0).values())  # values that a logit is made from
        self.z_ND = torch.from_numpy(z_ND).to(next(iter(head.state_dict().values())).device)

    def __len__(self) -> int:
        return len(self.z_ND)

    def __iter__(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for columns in column_blocks(len(self), self.num_heads):
            parts = column_blocks(len(self) * self._num_units, columns.stop - columns.start)
            logits = [self._logits(slice(columns.start + part.start, columns.start + part.stop)) for part in parts]
            yield columns, logits[0] if len(logits) == 1 else np.concatenate(logits, axis=1)

    def take(self, rows_B: NDArray[np.int64]) -> "LogitBlocks":
        """Return the logits of the given rows."""
        return LogitBlocks(self.head, self.z_ND[torch.from_numpy(rows_B)].cpu().numpy(), num_heads=self.num_heads)

    def _logits(self, columns: slice) -> NDArray[np.float32]:
        with torch.inference_mode():
            logit_NC: NDArray[np.float32] = self.head(self.z_ND, columns).float().cpu().numpy()
        return logit_NC
