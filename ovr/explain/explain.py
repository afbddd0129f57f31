"""The explanation of one row: which parts there are for its kind, and what each adds to the logits of some heads.

Knows models, encoders and captum's methods, not bundles or pages.

K = heads explained, L = places of a row of tokens, F = words, G = parts, S = shape of a row
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovr.backbone.bag import Bag
from ovr.backbone.transformer import EVAL_TOKENS, Transformer
from ovr.core.schema import InputSchema
from ovr.errors import ConfigError, InputError
from ovr.explain import attribute, parts
from ovr.input.columns import CategoryColumn
from ovr.input.encoder import Encoder
from ovr.input.joined import JoinedTexts
from ovr.input.table import TableEncoder
from ovr.input.text import HashedText
from ovr.input.tokens import Tokens
from ovr.model import OvrModel

F64 = NDArray[np.float64]
Method = Literal["integrated_gradients", "occlusion"]
METHODS = ("integrated_gradients", "occlusion")
MAX_WORDS = 400  # of a text whose words are left out one by one
_WORDS = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the parts of a row add to the logits of K heads, in comparison with a row that says nothing.

    `kind` is "columns" (names and values), "words" (spans of a text) or "image" (pixels, (K, H, W)). With integrated gradients the
    parts of a head sum to logit - baseline_logit but for `missed_K`, the error of the integral.
    """

    kind: Literal["columns", "words", "image"]
    method: str
    baseline: str  # in words
    value: F64  # (K, G), of an image (K, H, W)
    logit_K: F64  # before calibration
    baseline_logit_K: F64
    missed_K: F64 | None
    names: tuple[str, ...] = ()
    cells: tuple[Any, ...] = ()
    text: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    rest_K: F64 | None = None  # of words: what belongs to none of them, such as special tokens
    pixels: NDArray[Any] | None = None  # (C, H, W)


class Explainer:
    """Explains rows of one model; weights and rows are in float64."""

    def __init__(
        self, model: OvrModel, schema: InputSchema, encoder: Encoder | None, reference_rows: NDArray[np.float32], *, num_heads: int
    ) -> None:
        """Take a model in eval mode with the heads to explain, and rows as the network takes them, whose mean is the baseline.

        The model is brought to float64, in place.
        """
        self.model, self.schema, self.encoder, self.num_heads = model.double(), schema, encoder, num_heads
        self.reference_rows = reference_rows

    def explain(
        self, record: Any, *, method: str, steps: int = 128, baseline: str = "mean", window: int | None = None
    ) -> Explanation:
        """Return the explanation of one row.

        Args:
            record: a row as the encoder takes it: a text, a mapping of cells, an image; without an encoder the numbers themselves.
            method: "integrated_gradients" or "occlusion".
            steps: points of the integral.
            baseline: of numbers and images, "mean" (of the reference rows) or "zero"; texts are compared with no text.
            window: side in pixels of the square that covers a part of an image; None: about a seventh of the image.

        Raises:
            ConfigError: another method, baseline or number of steps; a method that cannot be used for this model (naming what is
                in its way); captum is not installed.
            InputError: a row that does not fit, or a text of too many words to leave out one by one.
        """
        if method not in METHODS:
            raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
        if baseline not in ("mean", "zero"):
            raise ConfigError(f"baseline is {baseline!r}; expected 'mean' or 'zero'")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ConfigError(f"steps is {steps!r}; expected a whole number of at least 1")
        attribute.captum_attr()
        encoded = self.encoder.encode([record]) if self.encoder is not None else np.asarray(record, np.float32)[None]
        x = torch.from_numpy(np.asarray(encoded, np.float64))
        gradients = method == "integrated_gradients"
        if isinstance(self.encoder, HashedText | Tokens | JoinedTexts):
            if not gradients:
                return self._left_out(record)
            if isinstance(self.encoder, JoinedTexts):
                raise ConfigError("integrated gradients of a text that several encoders take have no tokens; use method=occlusion")
            return self._hashed(x, record, steps) if isinstance(self.encoder, HashedText) else self._tokens(x, record, steps)
        if self.schema.raw_kind == "sparse":
            return self._sparse(x, gradients, steps)
        reference = self.reference_rows.astype(np.float64).mean(axis=0) if baseline == "mean" else np.zeros(self.schema.shape)
        told = "the mean of the bundle's reference rows" if baseline == "mean" else "zero"
        if len(self.schema.shape) == 1:
            return self._columns(x, torch.from_numpy(reference)[None], record, told, gradients, steps)
        return self._image(x, torch.from_numpy(reference)[None], told, gradients, steps, window)

    def _columns(self, x: Tensor, baseline: Tensor, record: Any, told: str, gradients: bool, steps: int) -> Explanation:
        encoder = self.encoder if isinstance(self.encoder, TableEncoder) else None
        names, group_D = parts.column_groups(self.schema, encoder)
        indexed = [c.name for c in encoder.columns if isinstance(c, CategoryColumn) and c.layout == "index"] if encoder else []
        if indexed and gradients:
            raise ConfigError(
                f"columns {', '.join(map(repr, indexed))} are looked up in a table of vectors, which gives them no gradient; use "
                "method=occlusion"
            )
        places = encoder.places() if encoder else {}
        for name in indexed:  # the mean of two indexes is a third: these are compared with a missing cell
            baseline[0, places[name]] = 0
        if gradients:
            value_KD, missed_K = self._integrated(self.model, x, baseline, steps)
            value_KG = parts.summed(value_KD, group_D, num_groups=len(names))
        else:
            value_KG, missed_K = self._ablated(self.model, x, baseline, torch.from_numpy(group_D)[None]), None
        cells = tuple(record[name] for name in names) if isinstance(record, Mapping) else tuple(x[0].tolist())
        return self._made("columns", told, value_KG, missed_K, x, baseline, names=tuple(names), cells=cells)

    def _image(self, x: Tensor, baseline: Tensor, told: str, gradients: bool, steps: int, window: int | None) -> Explanation:
        if x.ndim not in (3, 4):
            raise ConfigError(f"rows have shape {self.schema.shape}; explanations are of flat rows, images, texts and sparse rows")
        logits: attribute.Logits = self.model
        if x.ndim == 3:  # (H, W): captum's squares have a channel
            x, baseline = x[:, None], baseline[:, None]
            logits = lambda rows: self.model(rows[:, 0])  # noqa: E731
        height, width = x.shape[2:]
        if window is None:
            window = max(1, round(min(height, width) / 7))
        if not isinstance(window, int) or isinstance(window, bool) or not 1 <= window <= min(height, width):
            raise ConfigError(f"window is {window!r}; expected a whole number of pixels from 1 to {min(height, width)}")
        missed_K = None
        if gradients:
            value, missed_K = self._integrated(logits, x, baseline, steps)
            value_KHW = value.sum(axis=1)
        else:
            value_KHW = attribute.occlusion(logits, x, baseline, num_heads=self.num_heads, window=window)[:, 0]
        pixels = x[0].numpy()
        pixels = pixels.astype(np.uint8) if self.schema.raw_kind == "image" else pixels
        logit_K, baseline_K = self._logit(logits, x), self._logit(logits, baseline)
        return Explanation("image", _method(gradients), told, value_KHW, logit_K, baseline_K, missed_K, pixels=pixels)

    def _weights(self, x: Tensor) -> tuple[attribute.Logits, Tensor, NDArray[np.int64]]:
        """Return the logits as a function of a row's token weights (1, L), these, and the tokens' numbers (L,).

        Weights as the sum takes them, after the scales and, with `l2`, the norm: a norm does not change along a line from zero.
        """
        bag = self.model.backbone
        if not isinstance(bag, Bag):
            raise ConfigError(f"integrated gradients of tokens need backbone=bag, got {type(bag).__name__}; use method=occlusion")
        number_BL, weight_BL = bag.weighted(self.model.normalizer(x))
        used_L = (x[0, :, 1] != 0).nonzero()[:, 0]
        number_BL, weight_BL = number_BL[:, used_L], weight_BL[:, used_L]

        def logits(weight_BL: Tensor) -> Tensor:
            of_rows: Tensor = self.model.head(bag.summed(number_BL.expand(len(weight_BL), -1).contiguous(), weight_BL))
            return of_rows

        return logits, weight_BL, number_BL[0].numpy()

    def _hashed(self, x: Tensor, text: str, steps: int) -> Explanation:
        assert isinstance(self.encoder, HashedText)
        ngrams = self.encoder.ngrams(text)
        logits, weight, number_L = self._weights(x)
        nothing = torch.zeros_like(weight)
        if weight.shape[1] == 0:
            raise InputError(f"the text {text[:40]!r} has no word to explain by")
        value_KL, missed_K = self._integrated(logits, weight, nothing, steps)
        value_KF = parts.of_words(value_KL, number_L, ngrams)
        rest_K = value_KL.sum(axis=1) - value_KF.sum(axis=1)
        more = {"text": ngrams.text, "spans": ngrams.spans, "rest_K": rest_K}
        return self._made("words", "no text", value_KF, missed_K, weight, nothing, logits=logits, **more)

    def _sparse(self, x: Tensor, gradients: bool, steps: int) -> Explanation:
        if gradients:
            logits, weight, number_L = self._weights(x)
            value_KL, missed_K = self._integrated(logits, weight, torch.zeros_like(weight), steps)
            nothing = torch.zeros_like(weight)
        else:
            used = int((x[0, :, 1] != 0).sum())
            number, weight = x[:, :used, :1], x[:, :used, 1]
            logits = lambda rows: self.model(torch.cat([number.expand(len(rows), -1, -1), rows[..., None]], dim=2))  # noqa: E731
            nothing, number_L, missed_K = torch.zeros_like(weight), number[0, :, 0].long().numpy(), None
            value_KL = self._ablated(logits, weight, nothing, torch.arange(used)[None]) if used else np.zeros((self.num_heads, 0))
        names = tuple(f"feature {number}" for number in number_L.tolist())
        cells = tuple(x[0, : len(names), 1].tolist())
        return self._made("columns", "no features", value_KL, missed_K, weight, nothing, logits=logits, names=names, cells=cells)

    def _tokens(self, x: Tensor, text: str, steps: int) -> Explanation:
        assert isinstance(self.encoder, Tokens)
        backbone = self.model.backbone
        if not isinstance(backbone, Transformer):
            raise ConfigError(
                f"integrated gradients of tokens need backbone=transformer, got {type(backbone).__name__}; use method=occlusion"
            )
        length = int((x[0, :, 1] > 0).sum())
        offsets = self.encoder.offsets(text)
        x = x[:, :length]
        blank = x.clone()  # special tokens stay, and so does the length
        own_L = torch.tensor([start < end for start, end in offsets])
        blank[0, own_L, 0] = float(self.encoder.encode([""])[0, -1, 0]) if length < self.encoder.max_tokens else 0.0
        layer = backbone.encoder.get_input_embeddings()
        # One call of the layer for all rows: the encoder takes more than so many tokens in parts.
        together = max(1, min(attribute.ROWS_AT_ONCE, EVAL_TOKENS // length))
        value_KLW, missed_K = attribute.integrated_gradients(
            self.model, x, blank, num_heads=self.num_heads, steps=steps, layer=layer, rows_at_once=together
        )
        value_KL = value_KLW.sum(axis=2)
        places = [place for place, (start, end) in enumerate(offsets) if start < end]
        spans = tuple(offsets[place] for place in places)
        rest_K = value_KL.sum(axis=1) - value_KL[:, places].sum(axis=1)
        told = "as many padding tokens"
        return self._made("words", told, value_KL[:, places], missed_K, x, blank, text=text, spans=spans, rest_K=rest_K)

    def _left_out(self, text: str) -> Explanation:
        encoder: Any = self.encoder
        if isinstance(encoder, HashedText):
            ngrams = encoder.ngrams(text)
            text, spans = ngrams.text, ngrams.spans
        else:
            spans = tuple(found.span() for found in _WORDS.finditer(text))
        if not 1 <= len(spans) <= MAX_WORDS:
            raise InputError(f"the text has {len(spans)} words; method=occlusion leaves them out one by one, of 1 to {MAX_WORDS}")

        def logits(present_BF: Tensor) -> Tensor:
            texts = [parts.without(text, spans, present_F) for present_F in present_BF.numpy() > 0.5]
            rows: Tensor = self.model(torch.from_numpy(encoder.encode(texts).astype(np.float64)))
            return rows

        there = torch.ones(1, len(spans), dtype=torch.float64)
        nothing = torch.zeros_like(there)
        value_KF = self._ablated(logits, there, nothing, torch.arange(len(spans))[None])
        more = {"text": text, "spans": spans, "rest_K": np.zeros(self.num_heads)}
        return self._made("words", "the text without the word", value_KF, None, there, nothing, logits=logits, **more)

    def _integrated(self, logits: attribute.Logits, x: Tensor, baseline: Tensor, steps: int) -> tuple[F64, F64]:
        return attribute.integrated_gradients(logits, x, baseline, num_heads=self.num_heads, steps=steps)

    def _ablated(self, logits: attribute.Logits, x: Tensor, baseline: Tensor, group: Tensor) -> F64:
        return attribute.ablation(logits, x, baseline, group, num_heads=self.num_heads)

    def _logit(self, logits: attribute.Logits, x: Tensor) -> F64:
        with torch.no_grad():
            logit_K: F64 = logits(x)[0].numpy().astype(np.float64)
        return logit_K

    def _made(
        self,
        kind: Literal["columns", "words"],
        baseline: str,
        value: F64,
        missed_K: F64 | None,
        x: Tensor,
        nothing: Tensor,
        *,
        logits: attribute.Logits | None = None,
        **more: Any,
    ) -> Explanation:
        logits = logits or self.model
        logit_K, baseline_K = self._logit(logits, x), self._logit(logits, nothing)
        return Explanation(kind, _method(missed_K is not None), baseline, value, logit_K, baseline_K, missed_K, **more)


def _method(gradients: bool) -> str:
    return METHODS[0] if gradients else METHODS[1]
