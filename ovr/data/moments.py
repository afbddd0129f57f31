"""Mean and spread of rows that are gone through in blocks. Knows values, not what they are.

N = rows
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Moments:
    """The number of rows, and of each of their values the mean and the sum of squared differences from it, both (*shape)."""

    num_rows: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[Any]) -> "Moments":
        """Return those of at least one row (N, *shape)."""
        mean = x.mean(axis=0, dtype=np.float64)
        return cls(len(x), mean, np.square(x - mean).sum(axis=0))

    @classmethod
    def of_blocks(cls, blocks: Iterable[NDArray[Any]]) -> "Moments":
        """Return those of the rows of all blocks, of which there is at least one."""
        total: Moments | None = None
        for x in blocks:
            total = cls.of(x) if total is None else total.joined(cls.of(x))
        assert total is not None
        return total

    def joined(self, other: "Moments") -> "Moments":
        """Return those of the rows of both (Chan et al. 1983, equation 1.5: no difference of large numbers)."""
        num_rows = self.num_rows + other.num_rows
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.num_rows / num_rows)
        squares = self.squares + other.squares + np.square(apart) * (self.num_rows * other.num_rows / num_rows)
        return Moments(num_rows, mean, squares)

    def over(self, axes: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (mean, deviation) of the values along these axes of a row and of all rows, each with its axes of size 1 kept."""
        mean = self.mean.mean(axis=axes, keepdims=True)
        variance = (self.squares / self.num_rows + np.square(self.mean - mean)).mean(axis=axes, keepdims=True)
        return mean, np.sqrt(variance)
