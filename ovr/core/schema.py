"""What a model's input looks like, and the check of rows against it. Knows nothing of models.

B = batch
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.errors import ArtifactError, InputError


@dataclass(frozen=True, slots=True)
class InputSchema:
    """The model's one input: raw values, not yet normalised (normalisation is part of the graph).

    `shape` is that of one row, without the batch; `columns` names the entries of a flat row, or is empty. `encoder` is what
    `to_json` of the encoder gave that makes such rows of texts or cells, None where rows are given as they are.
    """

    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    dtype: str = "float32"
    name: str = "x"
    encoder: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.dtype != "float32":
            raise ArtifactError(f"input dtype {self.dtype!r} is not supported; expected 'float32'")
        if not self.shape or any(size < 1 for size in self.shape):
            raise ArtifactError(f"the shape of a row must be one or more positive sizes, got {self.shape}")
        if self.columns and len(self.columns) != self.size:
            raise ArtifactError(f"{len(self.columns)} column names for rows of {self.size} values")
        if twice := sorted(name for name, count in Counter(self.columns).items() if count > 1):
            raise ArtifactError(f"column names must differ, got {', '.join(map(repr, twice[:5]))} more than once")

    @property
    def size(self) -> int:
        """The number of values in one row."""
        return math.prod(self.shape)

    @property
    def raw_kind(self) -> str | None:
        """The kind of the encoder, None without one."""
        return None if self.encoder is None else str(self.encoder["kind"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `manifest.json`."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "columns": list(self.columns),
            "encoder": self.encoder,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "InputSchema":
        """Return the schema that `to_json` wrote."""
        return cls(tuple(value["shape"]), tuple(value["columns"]), value["dtype"], value["name"], value.get("encoder"))

    def column_name(self, index: int) -> str:
        """Return how messages call the value at flat position `index` of a row."""
        if self.columns:
            return f"column {self.columns[index]!r}"
        if len(self.shape) == 1:
            return f"column {index}"
        return f"position {tuple(int(i) for i in np.unravel_index(index, self.shape))}"


def check_rows(rows: Any, schema: InputSchema) -> NDArray[np.float32]:
    """Return `rows` as a contiguous float32 array (B, *schema.shape), or say what is wrong with them.

    Integers and floats of any width are taken; a value that float32 cannot hold is refused as not finite.

    Raises:
        InputError: another shape than (B, *schema.shape), no rows, a value that is no number, NaN or infinity (naming row and
            column).
    """
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise InputError(f"rows cannot be made into an array: {error}") from None
    if array.dtype.kind not in "fiu":
        raise InputError(_no_number(rows, schema) or f"rows must be numbers, got dtype {array.dtype}; expected {schema.dtype}")
    if array.ndim != len(schema.shape) + 1 or array.shape[1:] != schema.shape:
        expected = ", ".join(["rows", *map(str, schema.shape)])
        raise InputError(f"rows have shape {array.shape}; expected ({expected})")
    if array.shape[0] == 0:
        raise InputError("got no rows; expected at least one")
    with np.errstate(over="ignore"):
        array_f32 = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(array_f32)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite.reshape(len(array), -1))[0])
        value = array.reshape(len(array), -1)[row, column]
        raise InputError(
            f"row {row}, {schema.column_name(column)} holds {value}; every value must be finite "
            f"({int((~finite).sum())} of {finite.size} are not)"
        )
    return array_f32


def _no_number(rows: Any, schema: InputSchema) -> str | None:
    """Return what is said of the first value that is no number, where the rows have the right shape."""
    array = np.asarray(rows, dtype=object)
    if array.shape[1:] != schema.shape:
        return None
    for row, values in enumerate(array.reshape(len(array), -1)):
        for column, value in enumerate(values.tolist()):
            if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
                shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
                return f"row {row}, {schema.column_name(column)} holds {shown}; expected a number"
    return None
