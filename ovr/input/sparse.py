"""Rows of few values among many features, as lists of (feature, weight). Knows nothing of files or labels.

B = batch, L = tokens of a row, P = values of all rows
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError, InputError
from ovr.input.records import records_of

if TYPE_CHECKING:
    from typing import Self

MAX_FEATURES = 1 << 24  # float32 holds whole numbers below it exactly
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Encodes mappings feature number -> value as (max_tokens, 2): the number and the weight, by rising number, then zeros.

    Values of 0 are left out. Of a row with more than `max_tokens` others the largest by amount are kept, of equal ones those with
    the lower number. With `log`, v becomes sign(v) log(1 + |v|); with `normalize` "l2" the weights of a row are then divided by
    their Euclidean norm. A row without values is all zeros. Each row is encoded alone.
    """

    kind: ClassVar[str] = "sparse"
    num_features: int
    max_tokens: int
    log: bool = False
    normalize: str = "none"

    def __post_init__(self) -> None:
        for name, value, most in (("num_features", self.num_features, MAX_FEATURES), ("max_tokens", self.max_tokens, None)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most is not None and value > most):
                bound = "at least 1" if most is None else f"1 to {most}"
                raise ArtifactError(f"{name} of sparse rows must be a whole number, {bound}; got {value!r}")
        if not isinstance(self.log, bool):
            raise ArtifactError(f"log of sparse rows must be true or false, got {self.log!r}")
        if self.normalize not in ("none", "l2"):
            raise ArtifactError(f"normalize of sparse rows is {self.normalize!r}; expected 'none' or 'l2'")

    @property
    def tensor(self) -> InputSchema:
        """What `encode` returns, a row: (max_tokens, 2)."""
        return InputSchema((self.max_tokens, 2))

    def encode(self, rows: Any) -> F32:
        """Return a sequence of mappings, with whole numbers or their text as keys, as (B, max_tokens, 2).

        Raises:
            InputError: not a sequence of mappings, or no rows; a key that is no feature number or there twice, a value that is no
                finite number.
        """
        if isinstance(rows, Mapping):
            raise InputError("rows are a mapping; expected a sequence of mappings from feature number to value, one a row")
        start, index, value = [0], [], []
        for number, record in enumerate(records_of(rows, self.kind)):
            row = sorted((self._feature(key, number), _value(cell, number, key)) for key, cell in record.items())
            index += [feature for feature, _ in row]
            value += [cell for _, cell in row]
            start.append(len(index))
            for (one, _), (other, _) in pairwise(row):
                if one == other:
                    raise InputError(f"row {number} has feature {one} twice; expected each once")
        return self.padded(np.array(start, np.int64), np.array(index, np.int32), np.array(value, np.float32))

    def padded(self, start_B1: I64, index_P: NDArray[np.int32], value_P: F32) -> F32:
        """Return (B, max_tokens, 2) of rows whose values lie at `start_B1[b]` to before `start_B1[b + 1]`, by rising number."""
        num_rows = len(start_B1) - 1
        row_P = np.repeat(np.arange(num_rows), np.diff(start_B1))
        kept_P = value_P != 0
        row_P, index_P, weight_P = row_P[kept_P], index_P[kept_P], value_P[kept_P].astype(np.float64)
        place_P = _places(row_P, num_rows)
        if (place_P >= self.max_tokens).any():
            order_P = np.lexsort((index_P, -np.abs(weight_P), row_P))
            kept_P = np.sort(order_P[place_P < self.max_tokens])  # rows keep their order and length, so places fit either order
            row_P, index_P, weight_P = row_P[kept_P], index_P[kept_P], weight_P[kept_P]
            place_P = _places(row_P, num_rows)
        if self.log:
            weight_P = np.sign(weight_P) * np.log1p(np.abs(weight_P))
        if self.normalize == "l2":
            weight_P = weight_P / np.sqrt(np.bincount(row_P, weight_P**2, minlength=num_rows))[row_P]
        x = np.zeros((num_rows, self.max_tokens, 2), np.float32)
        x[row_P, place_P, 0] = index_P
        x[row_P, place_P, 1] = weight_P
        return x

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the bundle."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Self":
        """Return the encoder that `to_json` wrote.

        Raises:
            ArtifactError: other keys, or values out of range.
        """
        expected = {"kind", *(field.name for field in fields(cls))}
        if set(value) != expected or value["kind"] != cls.kind:
            raise ArtifactError(
                f"an encoder of sparse rows has {', '.join(sorted(expected))}; got {', '.join(map(repr, sorted(value)))}"
            )
        return cls(**{name: setting for name, setting in value.items() if name != "kind"})

    def _feature(self, key: str, row: int) -> int:
        # Only what `int` reads back alike: it takes "1_0", " 1" and other digits too.
        if not (key.isascii() and key.isdigit() and len(key) <= 9) or int(key) >= self.num_features:
            raise InputError(f"row {row} has feature {_shown(key)}; expected a whole number from 0 to {self.num_features - 1}")
        return int(key)


def _places(row_P: I64, num_rows: int) -> I64:
    """Return the position of each value within its row."""
    num_B = np.bincount(row_P, minlength=num_rows)
    places: I64 = np.arange(len(row_P)) - np.repeat(np.cumsum(num_B) - num_B, num_B)
    return places


def _value(cell: Any, row: int, key: str) -> float:
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        try:
            value = float(cell)
        except OverflowError:
            value = float("inf")
        if abs(value) <= float(np.finfo(np.float32).max):
            return value
    raise InputError(f"row {row}, feature {key} holds {_shown(cell)}; expected a finite number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
