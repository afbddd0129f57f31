"""A residual network for rows of numbers, of which the last may be indexes of embeddings. Knows nothing of the heads.

B = batch, C = numbers of a row that are no index, E = indexes, H = width of the blocks, D = features
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from ovr.backbone.mlp import ACTIVATIONS
from ovr.errors import ConfigError


class Tabular(nn.Module):
    """Numbers and embeddings side by side, a linear layer to H, then blocks that each add to it (Gorishniy et al. 2021, ResNet).

    A block is layer norm, linear, activation, dropout, linear, dropout. Layer norm and not batch norm, as in backbone=mlp.
    """

    offset_E: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        embedded: Sequence[str],
        num_buckets: int,
        embedding_width: int,
        width: int,
        num_blocks: int,
        hidden_factor: float,
        activation: str,
        dropout: float,
        hidden_dropout: float,
    ) -> None:
        """Take the shape of one row, (C + E,), and what stands in conf/backbone/tabular.yaml.

        Args:
            embedded: the columns whose indexes are the last E numbers of a row, in any order.
            num_buckets: an index is a whole number from 0 to below it.
            embedding_width: size of the vector of an index.
            hidden_factor: width inside a block, as a multiple of `width`.

        Raises:
            ConfigError: rows of another shape, or a setting out of range.
        """
        super().__init__()
        num_numbers = torch.Size(input_shape).numel() - len(embedded)
        if embedded and (len(input_shape) != 1 or num_numbers < 0):
            raise ConfigError(f"backbone.embedded names {len(embedded)} columns, but rows have shape {tuple(input_shape)}")
        for name, value in (("num_buckets", num_buckets), ("embedding_width", embedding_width), ("width", width)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"backbone.{name} must be a whole number above 0, got {value!r}")
        if not isinstance(num_blocks, int) or isinstance(num_blocks, bool) or num_blocks < 0:
            raise ConfigError(f"backbone.num_blocks must be a whole number of at least 0, got {num_blocks!r}")
        if not hidden_factor > 0:
            raise ConfigError(f"backbone.hidden_factor must be above 0, got {hidden_factor}")
        if activation not in ACTIVATIONS:
            raise ConfigError(f"backbone.activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        for name, share in (("dropout", dropout), ("hidden_dropout", hidden_dropout)):
            if not 0 <= share < 1:
                raise ConfigError(f"backbone.{name} must be a probability from 0 to below 1, got {share}")
        self.num_numbers, self.num_buckets = num_numbers, num_buckets
        self.register_buffer("offset_E", torch.arange(len(embedded)) * num_buckets)
        self.vector_VD = nn.Parameter(torch.randn(len(embedded) * num_buckets, embedding_width) * 0.1) if embedded else None
        self.first = nn.Linear(num_numbers + len(embedded) * embedding_width, width)
        inside = max(1, round(width * hidden_factor))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, inside),
                ACTIVATIONS[activation](),
                nn.Dropout(hidden_dropout),
                nn.Linear(inside, width),
                nn.Dropout(dropout),
            )
            for _ in range(num_blocks)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), ACTIVATIONS[activation]())
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, D) of rows (B, C + E); what lies outside 0 to `num_buckets` - 1 is taken to the nearest index."""
        x = x.flatten(1)
        if self.vector_VD is not None:
            index_BE = x[:, self.num_numbers :].round().long().clamp(0, self.num_buckets - 1) + self.offset_E
            x = torch.cat([x[:, : self.num_numbers], embedding(index_BE, self.vector_VD).flatten(1)], dim=1)
        z_BH = self.first(x)
        for block in self.blocks:
            z_BH = z_BH + block(z_BH)
        z_BD: Tensor = self.last(z_BH)
        return z_BD
