"""A pretrained Hugging Face encoder, frozen or fine-tuned: rows of tokens to features. Knows neither texts nor heads.

Needs the package transformers (extra `text`), and peft for adapters; both are imported when a backbone is made.

B = batch, L = tokens of a row, W = width of the encoder, D = features
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ovr.backbone.adapters import add_adapters, merge_adapters, rename_to_adapted
from ovr.backbone.pretrained import config_buffer, load_encoder
from ovr.errors import ConfigError

POOLINGS = ("mean", "cls", "max")
# Of the rows that are encoded together; see `_in_parts`. In training a GPU takes a batch as a whole, as more and smaller products
# would not fill it.
EVAL_TOKENS = 4096
TRAIN_TOKENS = 512


class Transformer(nn.Module):
    """Rows (B, L, 2) of token numbers and weights to the encoder's last vectors, pooled over the tokens of weight above 0.

    A row's features do not depend on its padding, nor, but for rounding, on the rows beside it.
    """

    pretrained = True  # its constructor loads its weights: heads may be fitted on it as it is
    told_by_repr = True  # as `config_json` has the encoder's settings: where it was loaded from makes no difference
    config_json: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        path: str,
        pooling: str,
        layers: Sequence[int],
        frozen: bool,
        trained_layers: int | str,
        lora_rank: int | None,
        lora_alpha: float,
        lora_dropout: float,
        lora_targets: str | Sequence[str],
        gradient_checkpointing: bool,
    ) -> None:
        """Take the shape of one row, (L, 2), and the settings that conf/backbone/transformer.yaml explains.

        Raises:
            ConfigError: rows of another shape or longer than the encoder takes, a setting out of range or without effect, a package
                that is missing, or an encoder that cannot be loaded.
        """
        super().__init__()
        if len(input_shape) != 2 or input_shape[1] != 2:
            raise ConfigError(
                f"backbone=transformer needs rows of tokens (L, 2), got shape {tuple(input_shape)}; "
                "texts become tokens by data=text with the encoder ovr.input.tokens.Tokens"
            )
        if pooling not in POOLINGS:
            raise ConfigError(f"backbone.pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}")
        for name, value in (("frozen", frozen), ("gradient_checkpointing", gradient_checkpointing)):
            if not isinstance(value, bool):
                raise ConfigError(f"backbone.{name} must be true or false, got {value!r}")
        if frozen and (lora_rank is not None or trained_layers != "all" or gradient_checkpointing):
            raise ConfigError(
                "backbone.lora_rank, trained_layers and gradient_checkpointing are about training, and backbone.frozen=true trains "
                "nothing; add backbone.frozen=false"
            )
        if lora_rank is not None and trained_layers != "all":
            raise ConfigError("backbone.lora_rank and backbone.trained_layers exclude each other: adapters go into every layer")
        encoder: Any = load_encoder(path)
        config = encoder.config
        num_layers = int(config.num_hidden_layers)
        longest = _most_tokens(encoder)
        if longest is not None and longest < input_shape[0]:
            raise ConfigError(
                f"rows have {input_shape[0]} tokens, and the encoder {path} takes at most {longest}; lower max_tokens"
            )
        if not layers or any(not isinstance(i, int) or not -num_layers - 1 <= i <= num_layers for i in layers):
            raise ConfigError(f"backbone.layers must be numbers from {-num_layers - 1} to {num_layers}, got {list(layers)}")
        self.pooling, self.layers, self.frozen = pooling, [int(i) % (num_layers + 1) for i in layers], frozen
        self.num_layers = num_layers
        self.num_features = int(config.hidden_size) * len(layers)
        if frozen:
            encoder.requires_grad_(False)
        elif lora_rank is not None:
            add_adapters(encoder, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout, targets=lora_targets)
        else:
            _train_last(encoder, trained_layers)
        if gradient_checkpointing:
            _checkpoint_activations(encoder)
        self.encoder = encoder
        # With the weights go the settings that make an encoder of them: `path` may be the bundle alone.
        self.register_buffer("config_json", config_buffer(config))
        self.train(True)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen encoder stays in eval mode, without dropout."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def extra_repr(self) -> str:
        """Return what `repr` shows of the settings that change features."""
        return f"pooling={self.pooling}, layers={self.layers}"

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, D) of rows (B, L, 2)."""
        if torch.compiler.is_exporting():
            return self._features(x)
        if (number := int(x[..., 0].max())) >= self.encoder.config.vocab_size:
            raise ConfigError(
                f"a row has token {number}, and the encoder knows {self.encoder.config.vocab_size} tokens: the tokenizer "
                "(data.source.encoder.path) is not the one that belongs to backbone.path"
            )
        if not self.encoder.training:
            return self._in_parts(x, EVAL_TOKENS)
        if x.device.type == "cpu":
            return self._in_parts(x, TRAIN_TOKENS)
        return self._features(x[:, : _longest(x)])

    def _features(self, x_BL2: Tensor) -> Tensor:
        number_BL = x_BL2[..., 0].long()
        mask_BL = x_BL2[..., 1] > 0
        # Attention over nothing is NaN: the first token of a row that has none is seen, and not pooled.
        first_L = torch.arange(mask_BL.shape[1], device=x_BL2.device) == 0
        seen_BL = mask_BL | (first_L & ~mask_BL.any(1, keepdim=True))
        wants_all = self.layers != [self.num_layers]
        out = self.encoder(input_ids=number_BL, attention_mask=seen_BL.long(), output_hidden_states=wants_all, return_dict=True)
        of_layers = [out.hidden_states[i] for i in self.layers] if wants_all else [out.last_hidden_state]
        return torch.cat([self._pooled(h_BLW, mask_BL.unsqueeze(-1)) for h_BLW in of_layers], dim=1)

    def _pooled(self, h_BLW: Tensor, mask_BL1: Tensor) -> Tensor:
        """Return (B, W); 0 for a row without a token."""
        if self.pooling == "mean":
            mask_BL1 = mask_BL1.to(h_BLW.dtype)
            return (h_BLW * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=1)
        least = torch.finfo(h_BLW.dtype).min
        z_BW = torch.where(mask_BL1, h_BLW, least).amax(1) if self.pooling == "max" else h_BLW[:, 0]
        return torch.where(mask_BL1.any(1), z_BW, 0.0)

    def _in_parts(self, x_BL2: Tensor, num_tokens: int) -> Tensor:
        """Encode rows of about the same length together, without the padding that they share.

        Of 1,024 short texts of 3 to 40 tokens, taken at once, two thirds of the work would be padding.
        """
        length_B = (x_BL2[..., 1] > 0).sum(1)
        order_B = length_B.argsort(descending=True, stable=True)
        lengths = length_B[order_B].tolist()
        parts = []
        start = 0
        while start < len(lengths):
            length = max(lengths[start], 1)
            rows = order_B[start : start + max(num_tokens // length, 1)]
            parts.append(self._features(x_BL2[rows, :length]))
            start += len(rows)
        return torch.cat(parts)[order_B.argsort()]

    def merged(self) -> "Transformer":
        """Make adapters part of the weights that they adapt, in place, and return self: fit for export, not for training on."""
        merge_adapters(self.encoder)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Weights of an encoder without adapters (of a bundle, whose are merged) are those that new adapters adapt.
        rename_to_adapted(self.encoder, state_dict, f"{prefix}encoder.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _most_tokens(encoder: Any) -> int | None:
    """Return how long a row may be, None where the encoder says nothing."""
    count = getattr(encoder.config, "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1:
        return None
    # RoBERTa and its kin count positions from behind the number of the padding token.
    positions = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    offset = getattr(positions, "padding_idx", None)
    return count if offset is None else count - offset - 1


def _checkpoint_activations(encoder: Any) -> None:
    kwargs = {"use_reentrant": False}
    if enable := getattr(encoder, "activation_checkpointing_enable", None):
        enable(activation_checkpointing_kwargs=kwargs)
    else:  # its name before transformers 5.2x
        encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def _longest(x_BL2: Tensor) -> int:
    return max(int((x_BL2[..., 1] > 0).sum(1).max()), 1)


def _train_last(encoder: Any, trained_layers: int | str) -> None:
    """Leave only the encoder's last layers to be trained."""
    if trained_layers == "all":
        return
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    blocks: list[nn.Module] = list(max(lists, key=len, default=[]))
    most = len(blocks)
    if not isinstance(trained_layers, int) or isinstance(trained_layers, bool) or not 1 <= trained_layers <= most:
        raise ConfigError(f"backbone.trained_layers must be all or a number from 1 to {most}, got {trained_layers!r}")
    encoder.requires_grad_(False)
    for block in blocks[most - trained_layers :]:
        block.requires_grad_(True)
