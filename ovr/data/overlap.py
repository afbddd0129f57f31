"""Rows that a model was trained on among rows that it is to be calibrated or measured on, told by digests that its bundle keeps.

The digests are those of `row_digests`: rows are equal where the model cannot tell them apart. Knows arrays, no commands.

N = rows, U = different training rows, P = rows that were trained on
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ovr.data.lazy import Inputs
from ovr.data.leakage import U64, row_digests
from ovr.errors import ArtifactError, ConfigError, DataError

log = logging.getLogger(__name__)

TRAIN_ROWS = "data/train_rows.npy"  # of a bundle: the digests (U,) uint64 of its training rows, ascending, each once
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Overlap:
    """Which rows were trained on, of so many."""

    row_P: NDArray[np.int64]  # ascending, counted from 0
    num_rows: int

    @property
    def share(self) -> float:
        """Of all rows."""
        return len(self.row_P) / max(1, self.num_rows)


def read_train_rows(bundle: Path) -> U64 | None:
    """Return the digests of a bundle's training rows; None, with a warning, where it has none.

    Raises:
        ArtifactError: they cannot be read.
    """
    file = bundle / TRAIN_ROWS
    if not file.is_file():
        log.warning(
            "bundle %s has no digests of its training rows (%s): it is older than they are, or was trained with max_leakage=null. "
            "Rows that it was trained on cannot be told from others",
            bundle,
            TRAIN_ROWS,
        )
        return None
    try:
        digest_U: U64 = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}") from None
    if digest_U.dtype != np.uint64 or digest_U.ndim != 1:
        raise ArtifactError(f"{file} holds {digest_U.dtype} {digest_U.shape}; expected digests, uint64 (rows,)")
    return digest_U


def find_overlap(x: Inputs, train_U: U64) -> Overlap:
    """Return which of the rows (N, *shape), as the model takes them, were trained on; every row is read once."""
    return Overlap(np.flatnonzero(np.isin(row_digests(x), train_U)), len(x))


def check_overlap(
    overlap: Overlap, *, max_overlap: float, purpose: str, row_numbers: NDArray[np.int64] | None = None, source: str = "the rows"
) -> None:
    """Refuse rows of which too many were trained on, and log it of fewer.

    Args:
        max_overlap: the share of the rows that may have been trained on, from 0 to 1.
        purpose: what the rows are for: they "are not to be" that.
        row_numbers: (N,), which rows of the source they are, if that is known.
        source: how messages call what the rows are of.

    Raises:
        ConfigError: `max_overlap` is no share.
        DataError: more were trained on, with their number, share and first row numbers.
    """
    if isinstance(max_overlap, bool) or not isinstance(max_overlap, int | float) or not 0 <= max_overlap <= 1:
        raise ConfigError(f"max_overlap must be a share of rows from 0 to 1, got {max_overlap!r}")
    if not len(overlap.row_P):
        return
    numbers = overlap.row_P if row_numbers is None else row_numbers[overlap.row_P]
    first = ", ".join(map(str, numbers[:SHOWN].tolist())) + (", ..." if len(numbers) > SHOWN else "")
    counts = f"{len(numbers)} of {overlap.num_rows} rows ({overlap.share:.2%})"
    told = f"{counts} of {source} are also training rows of the model: row {first}"
    if overlap.share > max_overlap:
        raise DataError(
            f"{told} (counted from 0). A model is surer of these than of others, so they are not to be {purpose}: leave them "
            f"out, or give rows that were not trained on. max_overlap={_rounded_up(overlap.share)} allows them, where rows are "
            "equal by chance, as those of few coarse columns are"
        )
    log.warning("%s", told)


def _rounded_up(share: float) -> float:
    return float(min(1.0, np.ceil(share * 1000) / 1000))
