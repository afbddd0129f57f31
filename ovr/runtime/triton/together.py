"""Requests of one batch that are answered alike, and so together. Knows nothing of Triton's objects but that there are some.

B = rows of the batch
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.runtime.triton.heads import Scored
from ovr.runtime.triton.parameters import Asked


@dataclass(slots=True)
class Call:
    """A request that may be answered."""

    index: int  # among those of the batch
    request: Any
    sent: NDArray[Any]
    wishes: Asked
    wanted: tuple[str, ...]  # the outputs that it asks for
    cohorts: NDArray[Any] | None = None  # (B, 1), where it has an input for them
    start: int = 0  # of its rows among those that are scored
    is_probe: bool = False  # whether it only asks if there is an answer: its row is no client's

    @property
    def num_rows(self) -> int:
        """How many rows it has."""
        return len(self.sent)


def alike(calls: Sequence[Call]) -> list[list[Call]]:
    """Return the calls in groups that ask for the same, probes apart; `parameters_of` gives one object for the same parameters."""
    groups: dict[tuple[int, tuple[str, ...], bool], list[Call]] = {}
    for call in calls:
        groups.setdefault((id(call.wishes), call.wanted, call.is_probe), []).append(call)
    return list(groups.values())


def scored_of(calls: Sequence[Call], scored: Scored) -> Scored:
    """Return what was got for the rows of these calls, which come in the order that they have in the batch."""
    num_rows = sum(call.num_rows for call in calls)
    if num_rows == len(scored.prob_BK):
        return scored
    first, last = calls[0], calls[-1]
    if last.start + last.num_rows - first.start == num_rows:  # nothing between them
        rows: Any = slice(first.start, first.start + num_rows)
    else:
        rows = np.concatenate([np.arange(call.start, call.start + call.num_rows) for call in calls])
    is_odd_B = None if scored.is_odd_B is None else scored.is_odd_B[rows]
    return Scored(scored.prob_BK[rows], scored.head_version_BK[rows], scored.answered_K, is_odd_B)
