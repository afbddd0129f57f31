"""The targets of a batch as lists of entries: known positives, and unknowns. All other entries are known negatives.

B = batch, K = heads, P = positives of the batch, U = unknown targets of the batch
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class SparseTargets(NamedTuple):
    """Rows 0 .. B - 1 and columns 0 .. K - 1 as int64, each pair of lists sorted by column; no entry is there twice."""

    row_P: Tensor
    column_P: Tensor
    row_U: Tensor
    column_U: Tensor

    @classmethod
    def from_dense(cls, target_BK: Tensor, mask_BK: Tensor | None = None) -> Self:
        """Return the lists of targets (B, K) that are 0 or 1; where the mask is False the target is unknown."""
        known_BK = torch.ones_like(target_BK, dtype=torch.bool) if mask_BK is None else mask_BK
        column_P, row_P = ((target_BK > 0) & known_BK).T.nonzero(as_tuple=True)
        column_U, row_U = (~known_BK).T.nonzero(as_tuple=True)
        return cls(row_P, column_P, row_U, column_U)

    def within(self, column_G: Tensor) -> "SparseTargets":
        """Return the entries of the heads in the columns `column_G`, ascending, whose places there are their columns then."""
        lists = []
        for row, column in ((self.row_P, self.column_P), (self.row_U, self.column_U)):
            place = torch.searchsorted(column_G, column).clamp_(max=len(column_G) - 1)
            found = column_G[place] == column
            lists += [row[found], place[found]]
        return SparseTargets(*lists)

    def chunks(self, size: int, num_heads: int) -> list["SparseTargets"]:
        """Return the entries of each `size` columns in turn, with columns counted from the chunk's first."""
        bounds = torch.arange(0, num_heads + size, size, device=self.column_P.device).clamp_(max=num_heads)
        bounds_P, bounds_U = (torch.searchsorted(column, bounds).tolist() for column in (self.column_P, self.column_U))
        chunks = []
        for i in range(len(bounds_P) - 1):
            some_P, some_U = slice(*bounds_P[i : i + 2]), slice(*bounds_U[i : i + 2])
            chunks.append(
                SparseTargets(
                    self.row_P[some_P], self.column_P[some_P] - i * size, self.row_U[some_U], self.column_U[some_U] - i * size
                )
            )
        return chunks
