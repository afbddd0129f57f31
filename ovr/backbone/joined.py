"""Several backbones beside each other: each takes its places of a row, and their features are joined. Knows no kind of part.

B = batch, L = places of a row, S = shape of a place, D = features
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ovr.errors import ConfigError


class Joined(nn.Module):
    """Rows (B, L, *S), in which the parts' rows follow each other, to the features of all parts, (B, D)."""

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        parts: Mapping[str, Callable[[tuple[int, ...]], nn.Module]],
        lengths: Mapping[str, int],
        normalize: str = "none",
    ) -> None:
        """Take the shape of one row, (L, *S), and what makes each part of the shape of its own rows.

        Args:
            parts: constructors, in the order of the rows.
            lengths: how many of the L places each part takes.
            normalize: of the data; parts take their rows as they are, so it must be "none".

        Raises:
            ConfigError: fewer than two parts, or lengths that are not theirs or do not sum to L; or what a part refuses.
        """
        super().__init__()
        if len(parts) < 2 or list(parts) != list(lengths):
            raise ConfigError(
                f"backbone=joined needs two parts or more and the length of each, got backbone.parts {', '.join(parts) or 'none'} "
                f"and backbone.lengths of {', '.join(lengths) or 'none'}"
            )
        if normalize != "none":
            raise ConfigError(f"backbone=joined needs rows as they are, got data.normalize={normalize}; set it to none")
        if sum(lengths.values()) != input_shape[0]:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ConfigError(
                f"backbone=joined: rows of shape {tuple(input_shape)} have {input_shape[0]} places, and the parts take {told}; "
                "data=text makes rows of such parts with encoder@data.source.encoder=joined"
            )
        self._take({name: make((lengths[name], *input_shape[1:])) for name, make in parts.items()}, lengths)

    def _take(self, parts: Mapping[str, Any], lengths: Mapping[str, int]) -> None:
        self.parts, self.lengths = nn.ModuleDict(parts), dict(lengths)
        self.num_features = sum(int(part.num_features) for part in parts.values())
        self.frozen = all(getattr(part, "frozen", False) is True for part in parts.values())
        self.pretrained = all(getattr(part, "pretrained", False) is True for part in parts.values())

    def fit(self, x: Any) -> None:
        """Fit the parts that take something from the raw training rows (N, L, *S) themselves.

        Raises:
            ConfigError: what a part refuses.
        """
        for name, part in self.parts.items():
            if callable(fit := getattr(part, "fit", None)):
                fit(self.rows_of(name, x))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, D) of rows (B, L, *S)."""
        return torch.cat([part(x[:, self._places(name)]) for name, part in self.parts.items()], dim=1)

    def merged(self) -> "Joined":
        """Let every part whose training adds something to its weights merge it, in place, and return self."""
        for name, part in self.parts.items():
            merged: Any = getattr(part, "merged", None)
            if callable(merged):
                self.parts[name] = merged()
        return self

    def _places(self, name: str) -> slice:
        names = list(self.lengths)
        start = sum(self.lengths[other] for other in names[: names.index(name)])
        return slice(start, start + self.lengths[name])

    def rows_of(self, name: str, x: Any) -> "Places":
        """Return a part's own rows of rows (N, L, *S), read when they are asked for."""
        return Places(x, self._places(name))

    def frozen_parts(self) -> dict[str, Any]:
        """Return the parts whose features of a row never change."""
        return {name: part for name, part in self.parts.items() if getattr(part, "frozen", False) is True}

    def on_features(self, place_size: int) -> "Joined":
        """Return the same with frozen parts replaced: in place of their rows they take their own features.

        A part's features, followed by zeros, fill places of `place_size` values each; see `ovr.training.features`.
        """
        rest = Joined.__new__(Joined)
        nn.Module.__init__(rest)
        given = {name: _Given(int(part.num_features)) for name, part in self.frozen_parts().items()}
        lengths = {name: math.ceil(part.num_features / place_size) for name, part in given.items()}
        rest._take({**dict(self.parts.items()), **given}, {**self.lengths, **lengths})
        return rest


class _Given(nn.Module):
    """Features that are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.num_features]


@dataclass(frozen=True, slots=True)
class Places:
    """Some places of rows (N, L, *S), read when they are asked for."""

    rows: Any
    places: slice

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, length, *S)."""
        return (len(self.rows), self.places.stop - self.places.start, *self.rows.shape[2:])

    @property
    def dtype(self) -> Any:
        """That of the rows."""
        return self.rows.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Any:
        return self.rows[rows][:, self.places]
