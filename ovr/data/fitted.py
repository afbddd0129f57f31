"""Rows that are read for a model that is there already: by its classes and its encoder, neither of which is fitted anew.

What a source fits on training rows, kinds and categories of columns among it, is taken from the model, whatever the settings of the
source say; how files are spelled, where labels stand and how rows are split is as the settings say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import DataError
from ovr.input.encoder import encoder_from_json

GIVES = {
    None: "rows of numbers as they are (data=features, stream, digits or idx)",
    "table": "columns (data=table)",
    "text": "texts (data=text)",
    "tokens": "texts (data=text)",
    "joined": "texts (data=text)",
    "sparse": "sparse rows (data=xmc)",
    "image": "images (data=images)",
}


@dataclass(frozen=True, slots=True)
class Fitted:
    """Classes and input of the model that rows are read for.

    With `whole` all rows of one source are wanted as they are: they become the test split, and the others are empty. Else rows are
    divided as the source's settings say, so that the settings of a training run give the splits of that run.
    """

    taxonomy: Taxonomy
    input: InputSchema
    whole: bool

    def encoder(self, *kinds: type[Any], source: str) -> Any:
        """Return the model's encoder, which is of one of these kinds.

        Raises:
            DataError: it takes other rows than `source` gives.
        """
        encoder = encoder_from_json(self.input.encoder)
        if not isinstance(encoder, kinds):
            raise DataError(f"the model takes {GIVES.get(self.input.raw_kind, self.input.raw_kind)}, not what {source} gives")
        return encoder

    def check_numbers(self, columns: Sequence[str], *, source: str) -> None:
        """Raise DataError unless the model takes rows as they are, with these names of columns if both have names."""
        if self.input.encoder is not None:
            raise DataError(f"the model takes {GIVES.get(self.input.raw_kind, self.input.raw_kind)}, not what {source} gives")
        if columns and self.input.columns and tuple(columns) != self.input.columns:
            at = next((k for k, (one, other) in enumerate(zip(columns, self.input.columns, strict=False)) if one != other), 0)
            raise DataError(
                f"{source} gives columns {columns[at]!r}, ... ({len(columns)}), the model takes {self.input.columns[at]!r}, ... "
                f"({len(self.input.columns)}); expected the same columns in the same order"
            )

    def check_one_file(self, files: Sequence[str], *, one: str) -> None:
        """Raise DataError where all rows are wanted, undivided, of more than one file: `one` says how a single one is given."""
        if self.whole and files:
            raise DataError(
                f"rows=all takes one file: give {one}; or say rows=train, val, calib or test for the rows of that split "
                f"(got files for {', '.join(files)})"
            )

    def check_classes(self, class_ids: Sequence[str], *, where: str) -> None:
        """Raise DataError if `where` names a class that the model has not."""
        known = set(self.taxonomy.ids)
        if unknown := [class_id for class_id in class_ids if class_id not in known]:
            shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise DataError(f"{where} names classes that are not among the model's {len(self.taxonomy)}: {shown}")
