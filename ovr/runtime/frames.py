"""Rows given as pandas frames, told by what they can do: pandas itself is not imported. Knows nothing of servers."""

from typing import Any

from ovr.core.nearest import nearest
from ovr.core.schema import InputSchema
from ovr.errors import InputError


def is_frame(rows: Any) -> bool:
    """Return whether `rows` is a pandas DataFrame, or works like one."""
    return hasattr(rows, "columns") and hasattr(rows, "to_dict") and hasattr(rows, "index")


def index_of(rows: Any) -> Any:
    """Return the index of a pandas DataFrame or Series, None of anything else."""
    return rows.index if hasattr(rows, "index") and hasattr(rows, "to_numpy") else None


def numbers_of(rows: Any, schema: InputSchema) -> Any:
    """Return the numbers of a DataFrame in the order of the model's columns; anything else as it is.

    A frame whose columns have no names (0, 1, ...), and one for a model without names of columns, is taken in its own order.

    Raises:
        InputError: the frame's columns are not those of the model.
    """
    if not is_frame(rows):
        return rows
    names = list(rows.columns)
    if schema.columns and names != list(range(len(names))):
        missing = [name for name in schema.columns if name not in set(names)]
        extra = [name for name in names if name not in set(schema.columns)]
        if missing or extra or len(names) != len(schema.columns):
            near = nearest(missing[0], [str(name) for name in extra]) if missing and extra else ""
            raise InputError(
                f"the frame has {len(names)} columns, the model {len(schema.columns)}; missing: {_shown(missing)}; "
                f"not of the model: {_shown(extra)}" + (f" ({near})" if near else "") + "; expected exactly the model's columns"
            )
        rows = rows[list(schema.columns)]
    return rows.to_numpy()


def _shown(names: list[Any]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "") if names else "none"
