"""Kinds of heads, and the bank of heads that are not all trained alike."""

from torch import Tensor

EVERY = slice(None)  # all columns


def rows_of(value: Tensor, columns: slice) -> Tensor:
    """Return rows of a weight; of all the weight itself, as the backward pass of a slice fills as many zeros and copies."""
    return value if columns == EVERY else value[columns]
