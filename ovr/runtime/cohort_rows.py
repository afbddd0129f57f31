"""The cohorts of rows as a predictor, a client or the router is given them. Knows nothing of what a cohort changes."""

from collections.abc import Mapping
from typing import Any

from ovr.core.artifact import ModelCard
from ovr.errors import InputError
from ovr.input.cells import text_of
from ovr.input.encoder import Encoder
from ovr.input.records import take_column

RECORDS = "table"  # the kind of encoder whose rows have columns


def split_cohorts(rows: Any, card: ModelCard, encoder: Encoder | None) -> tuple[list[Any] | None, Any]:
    """Return the cells of the cohort column that the rows have (None without), and the rows as the encoder takes them."""
    if card.cohorts is None or card.input.raw_kind != RECORDS:
        return None, rows
    knows = getattr(encoder, "knows", None)
    return take_column(rows, card.cohorts.column, keep=knows is not None and knows(card.cohorts.column))


def check_takes_cohorts(card: ModelCard, cohort: Any) -> None:
    """Raise InputError where a cohort is given to a model that has none."""
    if cohort is not None and card.cohorts is None:
        raise InputError(
            "cohort is given, but this model has one calibration for all rows; "
            "leave it out, or train with cohort.column=COLUMN for a calibration a cohort"
        )


def cohort_names(cohort: Any, num_rows: int) -> list[str | None]:
    """Return one cohort a row as text, as training rows have it (see `ovr.data.cohorts`), None where it is not known.

    Args:
        cohort: one text for all rows, or a cell a row: text, number or date. None, NaN and the empty text are not known.

    Raises:
        InputError: another number than rows, a cell that is none of these, or neither a text nor cells.
    """
    if cohort is None or isinstance(cohort, str):
        return [(cohort or "").strip() or None] * num_rows
    cells = cohort.tolist() if hasattr(cohort, "tolist") else cohort
    try:
        cells = None if isinstance(cells, str | bytes | Mapping) else list(cells)
    except TypeError:  # a number, or an array of no axis
        cells = None
    if cells is None:
        raise InputError(f"cohort is {cohort!r}; expected one text a row, or one for all")
    if len(cells) != num_rows:
        raise InputError(f"got {len(cells)} cohorts for {num_rows} rows; expected one a row, or one text for all")
    for row, cell in enumerate(cells):
        if isinstance(cell, list | tuple | dict):
            raise InputError(f"the cohort of row {row} is {cell!r}; expected a text or a number, or None where it is not known")
    texts = [cell.decode(errors="replace") if isinstance(cell, bytes) else text_of(cell) for cell in cells]
    return [(text or "").strip() or None for text in texts]
