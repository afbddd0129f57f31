"""Texts by several encoders, one after another in a row, for `backbone=joined`. Knows neither files nor models.

B = batch, L = places of a row
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError, ConfigError
from ovr.input.records import columns_of, records_of, without_no_columns
from ovr.input.text import HashedText
from ovr.input.tokens import Tokens

ENCODERS: tuple[type[HashedText | Tokens], ...] = (HashedText, Tokens)


@dataclass(frozen=True, slots=True)
class JoinedTexts:
    """Encodes each text as (L, 2) float32: what every part makes of it, in the order of the parts."""

    kind: ClassVar[str] = "joined"

    parts: Mapping[str, HashedText | Tokens]
    columns: tuple[str, ...] = ()  # of a file, whose cells with `joiner` between them are a text; (): the only one, or "text"
    joiner: str = "\n"

    def __post_init__(self) -> None:
        """Check the parts.

        Raises:
            ConfigError: fewer than two, or another encoder than those of texts.
        """
        if len(self.parts) < 2:
            raise ConfigError(f"texts are joined of two encoders or more, got {', '.join(self.parts) or 'none'}")
        for name, part in self.parts.items():
            if not isinstance(part, ENCODERS):
                raise ConfigError(f"part {name} of joined texts is {type(part).__name__}; expected HashedText or Tokens")

    @property
    def tensor(self) -> InputSchema:
        """One row: (L, 2)."""
        return InputSchema((sum(part.max_tokens for part in self.parts.values()), 2))

    def records(self, rows: Any) -> list[str]:
        """Return the texts.

        Raises:
            InputError: not a sequence of str, or no rows.
        """
        return records_of(rows, self.kind)

    def encode(self, rows: Any) -> NDArray[np.float32]:
        """Return texts as (B, L, 2).

        Raises:
            InputError: what `records` or a part refuses.
            ArtifactError: a tokenizer cannot be used here.
        """
        texts = self.records(rows)
        return np.concatenate([part.encode(texts) for part in self.parts.values()], axis=1)

    def check_runs_here(self) -> None:
        """Read the tokenizers.

        Raises:
            ArtifactError: as `encode`.
        """
        for part in self.parts.values():
            if isinstance(part, Tokens):
                part.check_runs_here()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the bundle; `parts` is a list, as their order counts."""
        parts = [[name, part.to_json()] for name, part in self.parts.items()]
        return without_no_columns({"kind": self.kind, "parts": parts, "columns": list(self.columns), "joiner": self.joiner})

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "JoinedTexts":
        """Return what `to_json` wrote.

        Raises:
            ArtifactError: other keys or values.
        """
        kinds = {encoder.kind: encoder for encoder in ENCODERS}
        try:
            if set(value) - {"columns", "joiner"} != {"kind", "parts"}:
                raise ValueError(f"keys {sorted(value)}; expected kind and parts")
            parts = {str(name): kinds[part["kind"]].from_json(part) for name, part in value["parts"]}
            return cls(parts, **columns_of(value))
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the encoder of joined texts cannot be read: {error}") from None
