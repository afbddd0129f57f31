"""Every training row once an epoch. Knows neither ranks nor batches.

N = rows, K = heads
"""

import numpy as np
from numpy.typing import NDArray

from ovr.data.labels import Labels


class Shuffled:
    """The rows of an epoch in random order. Leaves the odds as they are."""

    def __init__(self, labels: Labels) -> None:
        """Take the labels of the training rows."""
        self.num_rows = len(labels)
        self.log_odds_shift_K = np.zeros(labels.num_heads)

    def epoch_rows(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return row numbers (N,)."""
        return rng.permutation(self.num_rows)
