"""Tables for the terminal. Knows nothing of what they tell."""

from collections.abc import Sequence
from typing import Any

SIZED = 60  # letters of a cell


def table(lines: Sequence[Sequence[Any]]) -> str:
    """Return lines of cells as columns: numbers with four digits after the point, long texts without their middles."""
    cells = [[_cell(value) for value in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= SIZED else f"{text[: SIZED // 2]}…{text[len(text) - SIZED // 2 + 1 :]}"  # the end of a path
