"""A multi-layer perceptron for flat rows. Knows nothing of the heads.

B = batch, D = features
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ovr.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Mlp(nn.Module):
    """Linear, layer norm, activation and dropout for each entry of `hidden`.

    Layer norm (Ba et al. 2016) and not batch norm: it works with one row a batch, and is the same in training and in use.
    """

    def __init__(self, input_shape: Sequence[int], *, hidden: Sequence[int], activation: str, dropout: float) -> None:
        """Take the shape of one row (flattened here), the layers' widths, "relu", "gelu" or "silu", and the dropout probability.

        Raises:
            ConfigError: no layer, a width that is not a whole number above 0, another activation, or a dropout outside [0, 1).
        """
        super().__init__()
        if not hidden or any(not isinstance(width, int) or width < 1 for width in hidden):
            raise ConfigError(
                f"backbone.hidden must be one or more whole widths above 0, got {list(hidden)}; for none use backbone=identity"
            )
        if activation not in ACTIVATIONS:
            raise ConfigError(f"backbone.activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"backbone.dropout must be a probability from 0 to below 1, got {dropout}")
        widths = [math.prod(input_shape), *hidden]
        self.layers = nn.Sequential(
            nn.Flatten(),
            *(
                nn.Sequential(nn.Linear(before, after), nn.LayerNorm(after), ACTIVATIONS[activation](), nn.Dropout(dropout))
                for before, after in pairwise(widths)
            ),
        )
        self.num_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, D) of rows (B, *input_shape)."""
        z_BD: Tensor = self.layers(x)
        return z_BD
