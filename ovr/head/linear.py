"""K linear heads as one matrix. Knows nothing of the backbone, the loss or calibration.

B = batch, D = features, K = heads
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from ovr.errors import ConfigError
from ovr.head import EVERY, rows_of


class Linear(nn.Module):
    """Logit k is weight_KD[k] . z + bias_K[k]: one matrix product for all heads, and no term that joins two of them."""

    kind = "linear"

    def __init__(self, num_features: int, *, num_heads: int) -> None:
        """Take D and K. A head is drawn as if it were alone: uniform within 1 / sqrt(D), as torch draws a linear layer.

        Raises:
            ConfigError: no feature or no head.
        """
        super().__init__()
        if num_features < 1 or num_heads < 1:
            raise ConfigError(f"heads need at least one feature and one head, got {num_features} and {num_heads}")
        bound = num_features**-0.5
        self.weight_KD = nn.Parameter(torch.empty(num_heads, num_features).uniform_(-bound, bound))
        self.bias_K = nn.Parameter(torch.empty(num_heads).uniform_(-bound, bound))

    def forward(self, z_BD: Tensor, columns: slice = EVERY) -> Tensor:
        """Return logits (B, C) of features (B, D), of the heads in `columns` (start and stop only); all K by default."""
        weight_CD, bias_C = rows_of(self.weight_KD, columns), rows_of(self.bias_K, columns)
        if weight_CD.dtype != z_BD.dtype and not torch.is_autocast_enabled(z_BD.device.type):  # kept in bfloat16, say
            weight_CD, bias_C = weight_CD.to(z_BD.dtype), bias_C.to(z_BD.dtype)
        return linear(z_BD, weight_CD, bias_C)

    def head_weights(self, column: int) -> dict[str, NDArray[np.float32]]:
        """Return the weights of one head: weight (1, D), bias (1,)."""
        rows = slice(column, column + 1)
        return {"weight": _array(self.weight_KD[rows]), "bias": _array(self.bias_K[rows])}

    @torch.no_grad()
    def set_head_weights(self, column: int, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Give one head the weights that `head_weights` gave of another."""
        self.weight_KD[column].copy_(torch.tensor(weights["weight"][0]))
        self.bias_K[column] = float(weights["bias"][0])


def _array(value: Tensor) -> NDArray[np.float32]:
    return value.detach().to("cpu", torch.float32).numpy().copy()
