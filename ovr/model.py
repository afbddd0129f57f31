"""The whole network: raw rows -> normaliser -> backbone -> heads -> logits. Knows nothing of losses, training or export.

B = batch, D = features, K = heads
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from ovr.errors import ConfigError


class Normalizer(nn.Module):
    """(x - shift) * scale, as part of the network, so that every runtime is given raw rows."""

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        """Take two tensors of one shape that broadcasts to a row, such as (1,), (C, 1, 1) or that of the row; kept in float32.

        Raises:
            ConfigError: their shapes differ, or a value is not finite.
        """
        super().__init__()
        if shift.shape != scale.shape:
            raise ConfigError(f"normalizer shift has shape {tuple(shift.shape)}, scale {tuple(scale.shape)}; expected the same")
        for name, value in (("shift", shift), ("scale", scale)):
            value = value.detach().to(torch.float32).clone()
            if not value.isfinite().all():
                raise ConfigError(f"normalizer {name} holds {value[~value.isfinite()][0].item()}; every value must be finite")
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised rows, of the shape of `x`."""
        return (x - self.shift) * self.scale


class OvrModel(nn.Module):
    """One shared backbone and K heads that do not see each other."""

    def __init__(
        self,
        normalizer: Normalizer,
        backbone: nn.Module,
        head: nn.Module,
        *,
        fixed_backbone: bool = False,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Take the three parts; `head` takes what `backbone` gives. In train mode, `augment` changes raw rows at random before.

        A fixed backbone is not trained and stays in eval mode: it gives a row the same features in every step and afterwards.

        Raises:
            ConfigError: a fixed backbone and `augment`.
        """
        if fixed_backbone and augment is not None:
            raise ConfigError(
                "a fixed backbone gives a row the same features in every step, and augment changes the rows: drop one"
            )
        super().__init__()
        self.normalizer = normalizer
        self.backbone = backbone
        self.head = head
        self.fixed_backbone = fixed_backbone
        self.augment = augment
        if fixed_backbone:
            backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every part but a fixed backbone."""
        super().train(mode)
        if self.fixed_backbone:
            self.backbone.eval()
        return self

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what an optimizer may move: not the weights of a fixed backbone, nor (as they are buffers) of frozen heads."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def features(self, x: Tensor) -> Tensor:
        """Return features (B, D) of raw rows (B, *shape)."""
        if self.training and self.augment is not None:
            x = self.augment(x)
        z_BD: Tensor = self.backbone(self.normalizer(x))
        return z_BD

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K), not probabilities and not yet calibrated, of raw rows (B, *shape)."""
        logit_BK: Tensor = self.head(self.features(x))
        return logit_BK
