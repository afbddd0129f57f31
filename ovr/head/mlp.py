"""K heads of one hidden layer each, computed as one grouped product. Knows nothing of the backbone, the loss or calibration.

B = batch, D = features, K = heads, H = hidden units of one head, J = K * H
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from ovr.errors import ConfigError
from ovr.head import EVERY, rows_of


class Mlp(nn.Module):
    """Logit k is weight_KH[k] . relu(hidden_weight[k] z + hidden_bias[k]) + bias_K[k].

    The hidden layers of all heads are one matrix product; the output layers are one product by entries and a sum over H.
    """

    kind = "mlp"

    def __init__(self, num_features: int, *, num_heads: int, hidden: int) -> None:
        """Take D, K and H. A head is drawn as if it were alone: uniform within 1 / sqrt(fan-in), as torch draws a linear layer.

        Raises:
            ConfigError: no feature, no head or no hidden unit.
        """
        super().__init__()
        if num_features < 1 or num_heads < 1:
            raise ConfigError(f"heads need at least one feature and one head, got {num_features} and {num_heads}")
        if not isinstance(hidden, int) or hidden < 1:
            raise ConfigError(f"head.hidden must be a whole number above 0, got {hidden}")
        self.num_heads, self.hidden = num_heads, hidden
        bound, hidden_bound = hidden**-0.5, num_features**-0.5
        self.hidden_weight_JD = nn.Parameter(torch.empty(num_heads * hidden, num_features).uniform_(-hidden_bound, hidden_bound))
        self.hidden_bias_J = nn.Parameter(torch.empty(num_heads * hidden).uniform_(-hidden_bound, hidden_bound))
        self.weight_KH = nn.Parameter(torch.empty(num_heads, hidden).uniform_(-bound, bound))
        self.bias_K = nn.Parameter(torch.empty(num_heads).uniform_(-bound, bound))

    def forward(self, z_BD: Tensor, columns: slice = EVERY) -> Tensor:
        """Return logits (B, C) of features (B, D), of the heads in `columns` (start and stop only); all K by default."""
        start, stop, _ = columns.indices(self.num_heads)
        units = EVERY if columns == EVERY else slice(start * self.hidden, stop * self.hidden)
        hidden_BJ = linear(z_BD, rows_of(self.hidden_weight_JD, units), rows_of(self.hidden_bias_J, units)).relu()
        product_BCH = hidden_BJ.view(len(z_BD), stop - start, self.hidden) * rows_of(self.weight_KH, columns)
        return product_BCH.sum(-1) + rows_of(self.bias_K, columns)

    def head_weights(self, column: int) -> dict[str, NDArray[np.float32]]:
        """Return the weights of one head: hidden_weight (H, D), hidden_bias (H,), weight (1, H), bias (1,)."""
        units = slice(column * self.hidden, (column + 1) * self.hidden)
        rows = slice(column, column + 1)
        return {
            "hidden_weight": _array(self.hidden_weight_JD[units]),
            "hidden_bias": _array(self.hidden_bias_J[units]),
            "weight": _array(self.weight_KH[rows]),
            "bias": _array(self.bias_K[rows]),
        }

    @torch.no_grad()
    def set_head_weights(self, column: int, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Give one head the weights that `head_weights` gave of another."""
        units = slice(column * self.hidden, (column + 1) * self.hidden)
        self.hidden_weight_JD[units].copy_(torch.tensor(weights["hidden_weight"]))
        self.hidden_bias_J[units].copy_(torch.tensor(weights["hidden_bias"]))
        self.weight_KH[column].copy_(torch.tensor(weights["weight"][0]))
        self.bias_K[column] = float(weights["bias"][0])


def _array(value: Tensor) -> NDArray[np.float32]:
    return value.detach().to("cpu", torch.float32).numpy().copy()
