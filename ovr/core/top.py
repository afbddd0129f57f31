"""The highest score of each row and its column, found block by block of columns. Knows nothing of what a score means.

N = rows, C = columns of a block
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class RunningTop:
    """The highest score so far (N,) and its column; of equal ones that with the lower column."""

    def __init__(self, num_rows: int) -> None:
        self.score_N: NDArray[np.floating[Any]] = np.full(num_rows, -np.inf)
        self.column_N = np.zeros(num_rows, dtype=np.int64)

    def update(self, score_NC: NDArray[np.floating[Any]], *, first_column: int) -> NDArray[np.bool_]:
        """Take the next block, of higher columns than those before, and return the rows (N,) whose highest score lies in it."""
        column_N1 = np.argmax(score_NC, axis=1, keepdims=True)
        score_N = np.take_along_axis(score_NC, column_N1, axis=1)[:, 0]
        higher_N: NDArray[np.bool_] = score_N > self.score_N
        self.score_N = np.where(higher_N, score_N, self.score_N).astype(score_NC.dtype, copy=False)
        self.column_N = np.where(higher_N, first_column + column_N1[:, 0], self.column_N)
        return higher_N
