"""Low-rank adapters (LoRA, Hu et al. 2021) by the package peft: put into an encoder, made part of its weights, and loaded over.

Knows modules and names of weights, not what they encode.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import nn

from ovr.errors import ConfigError


def add_adapters(encoder: nn.Module, *, rank: int, alpha: float, dropout: float, targets: str | Sequence[str]) -> None:
    """Put adapters beside the encoder's linear layers named in `targets`, or all; they alone are trained, and start as no change.

    Raises:
        ConfigError: a setting out of range, no such layer, or peft is not installed.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ConfigError(f"backbone.lora_rank must be a whole number of at least 1, or null for no adapters, got {rank!r}")
    if not isinstance(alpha, int | float) or alpha <= 0 or not 0 <= dropout < 1:
        raise ConfigError(f"backbone.lora_alpha must be above 0 and lora_dropout from 0 to below 1, got {alpha!r} and {dropout!r}")
    try:
        peft = import_module("peft")
    except ImportError:
        raise ConfigError("backbone.lora_rank needs the package peft, which is not installed: pip install peft") from None
    names = targets if isinstance(targets, str) else list(targets)
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    try:
        peft.inject_adapter_in_model(settings, encoder)
    except ValueError as error:
        raise ConfigError(f"backbone.lora_targets={names!r}: {str(error).splitlines()[0]}") from None


def merge_adapters(encoder: nn.Module) -> None:
    """Make every adapter part of the weights beside it, in place: the encoder is then what it was without adapters."""
    for name, module in list(encoder.named_modules()):
        if _adapted(module):
            layer: Any = module
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, layer.get_base_layer())


def rename_to_adapted(encoder: nn.Module, weights: dict[str, Any], prefix: str) -> None:
    """Rename those of `weights`, an encoder's without adapters, that `encoder` has adapters for, in place.

    The adapters of `encoder` are then set to no change.
    """
    for name, module in encoder.named_modules():
        if not _adapted(module):
            continue
        for part in ("weight", "bias"):
            plain = f"{prefix}{name}.{part}"
            if plain in weights:
                weights[f"{prefix}{name}.base_layer.{part}"] = weights.pop(plain)
        for part, value in module.state_dict().items():
            key = f"{prefix}{name}.{part}"
            if key not in weights and ".lora_" in f".{part}":
                weights[key] = value.new_zeros(value.shape) if "lora_B" in part else value


def _adapted(module: nn.Module) -> bool:
    return isinstance(getattr(module, "lora_B", None), nn.ModuleDict) and callable(getattr(module, "merge", None))
