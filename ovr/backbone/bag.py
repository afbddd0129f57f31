"""A weighted sum of token vectors: for texts and sparse rows as tokens. Knows nothing of the heads, nor of what a token stands for.

B = batch, L = places of a row, V = tokens, D = features
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding, embedding_bag

from ovr.backbone.mlp import Mlp
from ovr.errors import ConfigError

BLOCK_ROWS = 4096  # of the training rows at a time
SMALLEST_NORM = 1e-12  # of a row without tokens, whose features are those of no text


class Bag(nn.Module):
    """Rows (B, L, 2) of [token number, weight], where weight 0 is padding, to the sum of weight * scale * vector of their tokens.

    The scale of a token is no weight that is trained: `fit` sets it from the training rows, to the inverse document frequency or
    to 1, and to 0 for tokens that they lack, whose vectors would be noise. `l2` divides a row's scaled weights by their norm
    (TF-IDF as in scikit-learn's TfidfTransformer, times a matrix that is trained). With `latent`, `fit` puts the training rows'
    leading directions beside unit vectors (latent semantic analysis, Deerwester et al. 1990).
    """

    scale_V: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        num_tokens: int,
        width: int,
        idf: bool,
        min_rows: int,
        l2: bool,
        init: float | str,
        latent: int,
        latent_weight: float,
        token_dropout: float,
        dropout: float,
        hidden: Sequence[int],
        activation: str,
        normalize: str = "none",
    ) -> None:
        """Take the shape of one row, (L, 2), and what stands in conf/backbone/bag.yaml.

        Args:
            num_tokens: tokens are numbered from 0 to below it.
            width: size of a token's vector.
            idf: whether tokens that are in many training rows weigh less.
            min_rows: tokens in fewer training rows weigh nothing.
            l2: whether the weights of a row are divided by their norm.
            init: standard deviation that the vectors are drawn with; or "identity", where the vector of token v is the v-th unit
                vector, and the features of a row are its scaled weights as they are (which solver=convex can take).
            latent: with unit vectors, how many leading directions of the training rows' scaled weights are features too.
            latent_weight: what these features are multiplied by: under a penalty on the heads' weights, large features are learnt
                before others, which is what few rows a class need.
            token_dropout: the share of tokens left out in a training step.
            dropout: the share of features left out in a training step.
            hidden: widths of layers after the sum, as those of backbone=mlp; with none, the sum is the features.
            activation: of those layers.
            normalize: of the data; token numbers are no quantities, so it must be "none".

        Raises:
            ConfigError: rows of another shape, or a setting out of range.
        """
        super().__init__()
        if len(input_shape) != 2 or input_shape[1] != 2:
            raise ConfigError(
                f"backbone=bag needs rows of shape (tokens, 2), [number, weight] each, got {tuple(input_shape)}; use data=text or "
                "data=xmc, or another backbone"
            )
        if normalize != "none":
            raise ConfigError(f"backbone=bag needs token numbers as they are, got data.normalize={normalize}; set it to none")
        for name, value in (("num_tokens", num_tokens), ("width", width), ("min_rows", min_rows)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"backbone.{name} must be a whole number above 0, got {value!r}")
        for name, flag in (("idf", idf), ("l2", l2)):
            if not isinstance(flag, bool):
                raise ConfigError(f"backbone.{name} must be true or false, got {flag!r}")
        for name, share in (("token_dropout", token_dropout), ("dropout", dropout)):
            if not 0 <= share < 1:
                raise ConfigError(f"backbone.{name} must be a probability from 0 to below 1, got {share}")
        if init == "identity" and width != num_tokens:
            raise ConfigError(f"backbone.init=identity needs as wide a vector as there are tokens, {num_tokens}, got width {width}")
        if not isinstance(latent, int) or isinstance(latent, bool) or not 0 <= latent < num_tokens:
            raise ConfigError(f"backbone.latent must be a whole number from 0 to below the {num_tokens} tokens, got {latent!r}")
        if latent and init != "identity":
            raise ConfigError(f"backbone.latent={latent} stands beside unit vectors; add backbone.init=identity, or leave it at 0")
        if not 0 < latent_weight < math.inf:
            raise ConfigError(f"backbone.latent_weight must be a positive number, got {latent_weight}")
        if init != "identity" and (isinstance(init, str) or not 0 < init < math.inf):
            raise ConfigError(f"backbone.init must be a positive number or identity, got {init}")
        self.idf, self.min_rows, self.l2, self.token_dropout = idf, min_rows, l2, token_dropout
        self.latent, self.latent_weight = latent, latent_weight
        width += latent
        vector_VD = torch.eye(num_tokens, width) if isinstance(init, str) else torch.empty(num_tokens, width).normal_(std=init)
        self.vector_VD = nn.Parameter(vector_VD)
        self.register_buffer("scale_V", torch.ones(num_tokens))
        self.layers: nn.Module = nn.Dropout(dropout)
        self.num_features = width
        if hidden:
            layers = Mlp((width,), hidden=hidden, activation=activation, dropout=dropout)
            self.layers, self.num_features = layers, layers.num_features

    @torch.no_grad()
    def fit(self, x: Any) -> None:
        """Set each token's scale, and latent vectors, from the raw training rows (N, L, 2), an array or what gives one for a slice.

        Raises:
            ConfigError: a token number that is not a whole number from 0 to below `num_tokens`.
        """
        num_tokens = len(self.scale_V)
        num_rows_V = np.zeros(num_tokens, np.int64)
        for start in range(0, len(x), BLOCK_ROWS):
            block = np.asarray(x[start : start + BLOCK_ROWS])
            number_BL, used_BL = block[..., 0], block[..., 1] != 0
            wrong_BL = used_BL & ~((number_BL >= 0) & (number_BL < num_tokens) & (number_BL == np.floor(number_BL)))
            if wrong_BL.any():
                row, place = (int(i) for i in np.argwhere(wrong_BL)[0])
                raise ConfigError(
                    f"training row {start + row} has token {number_BL[row, place]:g} at place {place}; backbone.num_tokens="
                    f"{num_tokens} needs whole numbers from 0 to {num_tokens - 1}"
                )
            # A token counts once a row, however often it stands there.
            number_U = np.unique(np.nonzero(used_BL)[0] * num_tokens + number_BL[used_BL].astype(np.int64)) % num_tokens
            num_rows_V += np.bincount(number_U, minlength=num_tokens)
        scale_V = np.log((1 + len(x)) / (1 + num_rows_V)) + 1 if self.idf else np.ones(num_tokens)
        scale_V[num_rows_V < self.min_rows] = 0
        self.scale_V.copy_(torch.from_numpy(scale_V))
        if self.latent:
            self.vector_VD[:, -self.latent :] = self.latent_weight * self._directions(x)

    def _directions(self, x: Any) -> Tensor:
        """Return the leading right singular vectors (V, latent) of the training rows' scaled weights, each with its largest entry
        above 0, from products of blocks: memory does not grow with the rows."""
        num_tokens = len(self.scale_V)
        product_VV = torch.zeros(num_tokens, num_tokens, dtype=torch.float64)
        for start in range(0, len(x), BLOCK_ROWS):
            block = torch.from_numpy(np.asarray(x[start : start + BLOCK_ROWS]))
            number_BL, weight_BL = self.weighted(block)
            weight_BV = torch.zeros(len(block), num_tokens, dtype=torch.float64)
            weight_BV.scatter_add_(1, number_BL, weight_BL.double())
            product_VV.addmm_(weight_BV.T, weight_BV)
        direction_VD: Tensor = torch.linalg.eigh(product_VV).eigenvectors[:, -self.latent :].flip(1)  # values rise
        largest_D = direction_VD.gather(0, direction_VD.abs().argmax(0, keepdim=True))
        return direction_VD * largest_D.sign()

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, D) of rows (B, L, 2).

        Raises:
            ConfigError: rows in half precision, which cannot hold token numbers.
        """
        if x.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"backbone=bag needs token numbers in float32, got {x.dtype}; use trainer.precision=32-true or bf16-mixed"
            )
        exporting = torch.compiler.is_compiling()
        if not exporting:  # the padding that all rows of the batch share
            used_L = (x[..., 1] != 0).any(0)
            x = x[:, : max(1, int(used_L.nonzero().max()) + 1 if used_L.any() else 1)]
        number_BL, weight_BL = self.weighted(x)
        return self.summed(number_BL, weight_BL, exporting=exporting)

    def summed(self, number_BL: Tensor, weight_BL: Tensor, *, exporting: bool = False) -> Tensor:
        """Return the features (B, D) of tokens with the weights that `weighted` gives."""
        if exporting:  # ONNX has no operator for it
            z_BD = (weight_BL.unsqueeze(1) @ embedding(number_BL, self.vector_VD)).squeeze(1)
        else:
            z_BD = embedding_bag(number_BL, self.vector_VD, mode="sum", per_sample_weights=weight_BL)
        features_BD: Tensor = self.layers(z_BD)
        return features_BD

    def weighted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers (B, L) of the rows' tokens and their weights (B, L), scaled and with `l2` divided by their norm."""
        number_BL = x[..., 0].long()
        weight_BL = (x[..., 1] * self.scale_V[number_BL]).to(self.vector_VD.dtype)
        weight_BL = dropout(weight_BL, self.token_dropout, self.training)
        if self.l2:
            weight_BL = weight_BL / weight_BL.square().sum(1, keepdim=True).clamp_min(SMALLEST_NORM**2).sqrt()
        return number_BL, weight_BL
