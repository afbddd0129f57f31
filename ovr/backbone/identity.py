"""No backbone: the normalised values of a row are its features. For tables and for features computed elsewhere.

B = batch, D = features
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn


class Identity(nn.Module):
    """Rows (B, *shape) flattened to (B, D); no parameters, so that the heads are K linear or small models on raw values."""

    def __init__(self, input_shape: Sequence[int]) -> None:
        """Take the shape of one row."""
        super().__init__()
        self.num_features = math.prod(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, D)."""
        return x.flatten(1)
