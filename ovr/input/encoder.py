"""What an encoder is, and how one is read back. Knows no kind of row.

B = batch
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError

if TYPE_CHECKING:
    from typing import Self

KINDS = {
    "table": "ovr.input.table.TableEncoder",
    "text": "ovr.input.text.HashedText",
    "tokens": "ovr.input.tokens.Tokens",
    "joined": "ovr.input.joined.JoinedTexts",
    "sparse": "ovr.input.sparse.SparseRows",
    "image": "ovr.input.image.ImageEncoder",
}
# What a kind needs beyond numpy where rows are encoded, as pyproject.toml has it.
PACKAGES = {"tokens": "tokenizers>=0.22,<0.24", "image": "pillow>=11.3,<14"}


class Encoder(Protocol):
    """Makes the network's input of rows as a user has them; fitted on training rows, the same wherever the model runs."""

    kind: ClassVar[str]

    @property
    def tensor(self) -> InputSchema:
        """What `encode` returns."""
        ...

    def encode(self, rows: Any) -> NDArray[np.float32]:
        """Return rows, in any form that `records_of` takes, as (B, *tensor.shape).

        Raises:
            InputError: a row that does not fit, naming row and column.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with `kind`."""
        ...

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Self":
        """Return what `to_json` wrote.

        Raises:
            ArtifactError: it cannot be read.
        """
        ...


def check_runs_here(encoder: Encoder | None) -> None:
    """Do nothing where all is there that the encoder imports with its first row.

    Raises:
        ArtifactError, ConfigError: a package is missing, or cannot read what the encoder holds.
    """
    check = getattr(encoder, "check_runs_here", None)  # of those that need more than NumPy
    if check is not None:
        check()


def packages_of(value: dict[str, Any] | None) -> list[str]:
    """Return the packages beyond numpy, as pip takes them, that what `to_json` wrote needs where it runs."""
    encoders = [] if value is None else [value, *(part for _, part in value.get("parts", ()))]
    return [PACKAGES[kind] for kind in PACKAGES if kind in {encoder["kind"] for encoder in encoders}]


def encoder_from_json(value: dict[str, Any] | None) -> Encoder | None:
    """Return the encoder that `to_json` wrote; None of None, where rows are given as the network takes them.

    Raises:
        ArtifactError: an unknown kind, or values that it cannot read.
    """
    if value is None:
        return None
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in KINDS:
        raise ArtifactError(f"the encoder of the input is of kind {kind!r}; this ovr knows {', '.join(KINDS)}")
    module, _, name = KINDS[kind].rpartition(".")
    encoder: Encoder = getattr(import_module(module), name).from_json(value)
    return encoder
