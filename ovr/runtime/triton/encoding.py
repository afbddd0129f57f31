"""What the network takes, made of what requests sent. Knows nothing of Triton's objects.

B = rows of some requests
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.faults import MAX_TEXT_CHARS
from ovr.core.schema import check_rows
from ovr.errors import InputError
from ovr.input.encoder import check_runs_here, encoder_from_json
from ovr.input.records import IMAGE, TEXTS, from_bytes, wire_name
from ovr.input.row_problems import row_problems
from ovr.runtime.cohort_rows import cohort_names, split_cohorts
from ovr.runtime.triton.together import Call


class Encoding:
    """The checks and the encoder of one publication."""

    def __init__(self, card: ModelCard, *, max_text_chars: int = MAX_TEXT_CHARS) -> None:
        """Read the encoder; a text of more than `max_text_chars` is refused.

        Raises:
            ArtifactError, ConfigError: it cannot be read, or a package that it needs is not here.
        """
        self._card, self._max_text_chars = card, max_text_chars
        self._encoder = encoder_from_json(card.input.encoder)
        check_runs_here(self._encoder)
        self.input_name = card.input.name if self._encoder is None else wire_name(self._encoder.kind)

    def of_all(self, calls: Sequence[Call]) -> NDArray[np.float32] | None:
        """Return the rows (B, ...) of these calls, checked and made at once, or None where they are to be taken one by one.

        That is where a row does not fit: of whose call, and which, is then to be said. And where rows have cohorts.
        """
        if self._card.cohorts is not None:
            return None
        try:
            return self._rows(np.concatenate([call.sent for call in calls]))[0]
        except InputError:
            return None

    def of(self, call: Call) -> tuple[NDArray[np.float32], list[str | None]]:
        """Return the rows of one call, and of a model with cohorts the cohort of each.

        Raises:
            InputError: a row does not fit, or the cohorts do not.
        """
        x, cells = self._rows(call.sent)
        if self._card.cohorts is None:
            return x, []
        cohort = call.wishes.cohort
        if call.cohorts is not None and cohort is not None:
            raise InputError("cohort is given twice, as an input and as a parameter; expected one of them")
        if call.cohorts is not None:
            return x, cohort_names(call.cohorts[:, 0], len(x))
        return x, cohort_names(cells if cohort is None else cohort, len(x))

    def num_refused(self, call: Call) -> int:
        """Return how many of a call's rows do not fit."""
        dear = self._encoder is not None and self._encoder.kind == IMAGE
        return len(row_problems(call.num_rows, lambda some: self._rows(call.sent[some]), one_by_one=dear))

    def _rows(self, sent: NDArray[Any]) -> tuple[NDArray[np.float32], Any]:
        """Return the rows as the network takes them, and the cells of the cohorts' column that they hold."""
        rows: Any = sent
        if self._encoder is not None:
            rows = from_bytes(sent, self._encoder.kind)
            if self._encoder.kind in TEXTS:
                self._check_lengths(rows)
        cells, rows = split_cohorts(rows, self._card, self._encoder)
        return check_rows(rows, self._card.input) if self._encoder is None else self._encoder.encode(rows), cells

    def _check_lengths(self, texts: Sequence[str]) -> None:
        for number, text in enumerate(texts):
            if len(text) > self._max_text_chars:
                raise InputError(f"row {number} has {len(text)} characters; a text has at most {self._max_text_chars} here")
