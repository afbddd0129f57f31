"""Texts as token numbers by a Hugging Face fast tokenizer, for `backbone=transformer`. Knows no model.

The whole tokenizer.json is part of the encoder, so that a bundle needs neither the folder nor the hub that it came from. What runs
it is the package `tokenizers` (compiled, without torch), which is imported when the first text is encoded.

B = batch, L = max_tokens
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ovr.core.bundle import MANIFEST, open_bundle
from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError, ConfigError, InputError
from ovr.input.records import columns_of, without_no_columns

FILE = "tokenizer.json"
MAX_CHARACTERS = 100_000  # of a text that are looked at; part of what the encoder means, so not to be changed
MAX_MAX_TOKENS = 8192  # attention takes memory that grows with its square
BLOCK_ROWS = 4096  # tokenized at a time; changes nothing but the memory in use
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
PAD_TOKENS = ("[PAD]", "<pad>", "<|padding|>", "<|pad|>")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Encodes each text as (L, 2) float32: the numbers of its tokens, each with weight 1, then padding of weight 0.

    A text of more than `max_tokens` tokens keeps the first of them and the special tokens around them (such as [CLS] and [SEP]);
    only its first 100,000 characters are looked at. An empty text is the special tokens alone. Truncation and padding settings
    inside the tokenizer.json have no effect.
    """

    kind: ClassVar[str] = "tokens"

    tokenizer: str  # the text of a tokenizer.json
    max_tokens: int
    columns: tuple[str, ...] = ()  # of a file, whose cells with `joiner` between them are a text; (): the only one, or "text"
    joiner: str = "\n"

    def __post_init__(self) -> None:
        """Check the size.

        Raises:
            ConfigError: `max_tokens` is no whole number from 1 to 8192.
        """
        given = self.max_tokens
        if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= MAX_MAX_TOKENS:
            raise ConfigError(f"max_tokens must be a whole number from 1 to {MAX_MAX_TOKENS}, got {given!r}")

    @classmethod
    def from_pretrained(cls, path: str, *, max_tokens: int) -> "Tokens":
        """Return the tokenizer of a folder that holds a tokenizer.json, of such a file, of a bundle, or of a model on the hub.

        A bundle's own `max_tokens` is not asked.

        Raises:
            ConfigError: no such folder or model, no tokenizer.json in it or one that cannot be read, a package that is missing, or
                a `max_tokens` that leaves no room for text beside the special tokens.
        """
        where = Path(path).expanduser()
        if (where / MANIFEST).is_file():
            return cls(_of_bundle(where), max_tokens)
        if where.is_dir() or not HUB_NAME.fullmatch(path):
            where = where if where.name == FILE else where / FILE
            if not where.is_file():
                raise ConfigError(
                    f"{where} does not exist; expected the {FILE} of a fast tokenizer, which "
                    "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) writes"
                )
        else:
            where = _from_hub(path)
        try:
            text = where.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read: {error}") from None
        encoder = cls(text, max_tokens)
        try:
            run = _loaded(text, max_tokens)
        except ArtifactError as error:
            raise ConfigError(f"{where}: {error}") from None
        num_special = run.num_special_tokens_to_add(False)
        if num_special >= max_tokens:
            raise ConfigError(f"max_tokens={max_tokens} leaves no room for text: the tokenizer adds {num_special} special tokens")
        return encoder

    @property
    def tensor(self) -> InputSchema:
        """One row: (L, 2)."""
        return InputSchema((self.max_tokens, 2))

    @property
    def num_tokens(self) -> int:
        """How many numbers there are: every token's is below it."""
        return max(_loaded(self.tokenizer, self.max_tokens).get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def records(self, rows: Any) -> list[Any]:
        """Return the texts as a list.

        Raises:
            InputError: one text instead of several, something that is no sequence, no rows at all, or a row that is no text.
        """
        if isinstance(rows, str | bytes):
            raise InputError(f"rows must be a sequence of texts, got a single {type(rows).__name__}; put it into a list")
        if hasattr(rows, "tolist"):  # arrays and columns of data frames
            rows = rows.tolist()
        if not isinstance(rows, Sequence):
            raise InputError(f"rows must be a sequence of texts, got {type(rows).__name__}")
        texts = list(rows)
        if not texts:
            raise InputError("got no rows; expected at least one text")
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"row {row} is {type(text).__name__} {_shown(text)}; expected a text")
        return texts

    def encode(self, rows: Any) -> NDArray[np.float32]:
        """Return (B, L, 2).

        Raises:
            InputError: what `records` raises for, or a text that is no valid unicode (naming its row).
            ArtifactError: the tokenizer cannot be used here: the package `tokenizers` is missing, or does not know this kind.
        """
        texts = self.records(rows)
        run = _loaded(self.tokenizer, self.max_tokens)
        for row, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"row {row} is no valid unicode: character {error.start} is half of a surrogate pair") from None
        x_BL2 = np.zeros((len(texts), self.max_tokens, 2), np.float32)
        x_BL2[..., 0] = _pad_number(run)
        for start in range(0, len(texts), BLOCK_ROWS):
            block = [text[:MAX_CHARACTERS] for text in texts[start : start + BLOCK_ROWS]]
            for row, encoding in enumerate(run.encode_batch_fast(block), start=start):
                numbers = encoding.ids
                x_BL2[row, : len(numbers), 0] = numbers
                x_BL2[row, : len(numbers), 1] = 1
        return x_BL2

    def check_runs_here(self) -> None:
        """Read the tokenizer.

        Raises:
            ArtifactError: as `encode`.
        """
        _loaded(self.tokenizer, self.max_tokens)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return where each token that `encode` makes of a text stands in it; two equal places for one that stands for none of it.

        Raises:
            ArtifactError: as `encode`.
        """
        encoding = _loaded(self.tokenizer, self.max_tokens).encode(text[:MAX_CHARACTERS])
        return [(int(start), int(end)) for start, end in encoding.offsets]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the tokenizer.json is one text, so that not a byte of it changes."""
        plain = {"kind": self.kind, "max_tokens": self.max_tokens, "tokenizer": self.tokenizer}
        return without_no_columns({**plain, "columns": list(self.columns), "joiner": self.joiner})

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Tokens":
        """Return what `to_json` wrote; the tokenizer itself is read when the first text is encoded.

        Raises:
            ArtifactError: other keys or values.
        """
        known = set(value) - {"columns", "joiner"}
        if known != {"kind", "max_tokens", "tokenizer"} or not isinstance(value["tokenizer"], str):
            raise ArtifactError(
                f"the encoder of the input has keys {sorted(value)}; expected kind, max_tokens and tokenizer (a text)"
            )
        try:
            return cls(value["tokenizer"], value["max_tokens"], **columns_of(value))
        except ConfigError as error:
            raise ArtifactError(f"the encoder of the input cannot be read: {error}") from None


@lru_cache(maxsize=8)
def _loaded(tokenizer: str, max_tokens: int) -> Any:
    """Return the tokenizer, cutting at `max_tokens` and not padding.

    Raises:
        ArtifactError: the package is missing, or what it is given is no tokenizer.json that it knows.
    """
    # A process that tokenized in threads and forks afterwards is told off by tokenizers, on stderr, whatever the fork is for.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        library = import_module("tokenizers")
    except ImportError:
        raise ArtifactError(
            "texts are made into tokens by the package tokenizers, which is not installed: pip install 'ovr[text]', or tokenizers"
        ) from None
    try:
        run = library.Tokenizer.from_str(tokenizer)
        run.no_padding()
        run.enable_truncation(max_tokens, direction="right")
    except Exception as error:  # tokenizers raises Exception itself
        raise ArtifactError(f"this is no tokenizer.json that tokenizers {library.__version__} knows: {error}") from None
    return run


def _pad_number(run: Any) -> int:
    numbers = [number for token in PAD_TOKENS if (number := run.token_to_id(token)) is not None]
    return int(numbers[0]) if numbers else 0


def _of_bundle(path: Path) -> str:
    encoder = open_bundle(path).input.encoder or {}
    encoder = next((part for _, part in encoder.get("parts", ()) if part["kind"] == Tokens.kind), encoder)
    if encoder.get("kind") != Tokens.kind:
        raise ConfigError(f"{path} is a bundle whose input is made by no tokenizer, but by {encoder.get('kind', 'no encoder')}")
    return Tokens.from_json(encoder).tokenizer


def _from_hub(name: str) -> Path:
    """Return the tokenizer.json of a model on the hub, copied to this machine."""
    try:
        hub = import_module("huggingface_hub")
    except ImportError:
        raise ConfigError(
            f"{name!r} is no folder here, and the package huggingface_hub, which asks the Hugging Face hub, is not installed: "
            "pip install 'ovr[text]'"
        ) from None
    try:
        return Path(hub.hf_hub_download(name, FILE))
    except Exception as error:  # its own, those of httpx, and OSError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"there is no folder {name!r}, and the Hugging Face hub gives no {FILE} of that name ({reason}); a model with another "
            "kind of tokenizer file gets one by AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
        ) from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
