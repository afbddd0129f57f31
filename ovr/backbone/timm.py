"""Any image model of timm, with the mean and deviation that its weights were trained with. Knows nothing of the heads.

B = batch, C = channels, H = height, W = width, D = features
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovr.errors import ConfigError
from ovr.torchvision_ops import declare_missing_ops

log = logging.getLogger(__name__)


class Timm(nn.Module):
    """A timm model without its classifier: pooled features of images whose values are 0 to `white`."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        model: str,
        pretrained: bool,
        checkpoint: str | None,
        drop_rate: float,
        white: float,
        normalize: str,
    ) -> None:
        """Take the shape of one row, (H, W) or (C, H, W) with C 1 or 3; for grey the first layer's weights are summed.

        Args:
            model: timm's name, with a tag for one of several sets of weights.
            pretrained: fetch timm's own weights, from the Hugging Face hub or its cache.
            checkpoint: a file of weights (.safetensors, or .pth of tensors alone) to start from instead.
            drop_rate: of features, in train mode.
            white: the largest value of a pixel.
            normalize: what the data are normalised by besides, which must be "none".

        Raises:
            ConfigError: timm that cannot be imported, an unknown model, one that does not take such rows, weights that cannot be
                had or are another model's.
        """
        super().__init__()
        if normalize != "none":
            raise ConfigError(
                f"backbone=timm normalises images as its weights expect, and data.normalize={normalize} would do so before: "
                "add data.normalize=none"
            )
        if len(input_shape) not in (2, 3) or (len(input_shape) == 3 and input_shape[0] not in (1, 3)):
            raise ConfigError(f"backbone=timm needs rows of shape (H, W) or (C, H, W) with C 1 or 3, got {tuple(input_shape)}")
        if not isinstance(white, int | float) or not white > 0:
            raise ConfigError(f"backbone.white must be a number above 0, got {white!r}")
        if pretrained and checkpoint is not None:
            raise ConfigError("backbone.pretrained=true and backbone.checkpoint are two sources of weights: give one")
        timm = _timm()
        num_channels = input_shape[0] if len(input_shape) == 3 else 1
        size = tuple(input_shape[-2:])
        settings = timm.get_pretrained_cfg(model, allow_unregistered=True) if timm.is_model(model) else None
        if settings is None:
            near = timm.list_models(f"*{model.partition('.')[0]}*")[:5]
            raise ConfigError(
                f"backbone.model is {model!r}, which timm {timm.__version__} does not have; near it: {near or 'none'}"
            )
        more: dict[str, Any] = {}
        if settings.fixed_input_size and size != tuple(settings.input_size[1:]):
            more["img_size"] = size
        if checkpoint is not None:
            file = Path(checkpoint).expanduser()
            if not file.is_file():
                raise ConfigError(f"backbone.checkpoint {file} does not exist")
            more["pretrained_cfg_overlay"] = {"file": str(file)}
        try:
            self.model = timm.create_model(
                model,
                pretrained=pretrained or checkpoint is not None,
                num_classes=0,
                in_chans=num_channels,
                drop_rate=drop_rate,
                **more,
            )
            with torch.no_grad():
                z_BD = self.model.eval()(torch.zeros(2, num_channels, *size))
        except Exception as error:  # whatever the model's own code raises
            reason = str(error).strip().splitlines() or [type(error).__name__]
            hint = (
                f"; it was trained on images of {settings.input_size[1]}x{settings.input_size[2]} (data.size)"
                if not pretrained
                else ""
            )
            raise ConfigError(
                f"timm's {model} cannot be made for images of {num_channels}x{size[0]}x{size[1]}: {reason[0]}{hint}"
            ) from error
        if z_BD.ndim != 2:
            raise ConfigError(f"timm's {model} gives features of shape {tuple(z_BD.shape[1:])}; expected one vector an image")
        if checkpoint is not None:
            _check_loaded(self.model, file, timm)
        self.train()
        self.num_features = int(z_BD.shape[1])
        for name, value in (("mean", settings.mean), ("std", settings.std)):
            colour_C = torch.tensor(value) * white
            self.register_buffer(name, (colour_C if num_channels == 3 else colour_C.mean(0, keepdim=True)).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, D) of images (B, H, W) or (B, C, H, W), 0 to `white`."""
        if x.ndim == 3:
            x = x.unsqueeze(1)
        z_BD: Tensor = self.model((x - self.mean) / self.std)
        return z_BD


def _timm() -> Any:
    declare_missing_ops()
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"backbone=timm needs timm, and timm needs torchvision: pip install 'ovr[timm]', with the torchvision that was built "
            f"for torch {torch.__version__} ({error})"
        ) from error
    return timm


def _check_loaded(model: nn.Module, file: Path, timm: Any) -> None:
    """Raise ConfigError where the file is another model's: timm passes over weights that it does not find.

    Weights are known by their values, as timm renames some; those of the first layer and of positions may have been adapted.
    """
    in_file = {_fingerprint(value) for value in timm.models.load_state_dict(str(file)).values()}
    absent = [name for name, value in model.named_parameters() if _fingerprint(value) not in in_file]
    num = sum(1 for _ in model.parameters())
    if 2 * len(absent) > num:
        raise ConfigError(f"{file} holds only {num - len(absent)} of the model's {num} weights; is it of another model?")
    if absent:
        log.warning("%d of %d weights are not as %s has them: %s", len(absent), num, file, ", ".join(absent[:10]))


def _fingerprint(value: Tensor) -> tuple[int, float, float]:
    flat = value.detach().double().reshape(-1)
    return len(flat), float(flat.sum()), float(flat.abs().sum())
