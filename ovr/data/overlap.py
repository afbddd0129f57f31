"""Rows that a model was made from among rows that it is to be calibrated or measured on, told by digests that its bundle keeps.

The digests are those of `row_digests`: rows are equal where the model cannot tell them apart. Knows arrays, no commands.

N = rows, U = different rows of one kind, P = rows that the model was made from
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ovr.data.leakage import U64, first_numbers
from ovr.errors import ArtifactError, ConfigError, DataError

log = logging.getLogger(__name__)

# Of a bundle: the digests (U,) uint64 of its training rows, and of the other rows that it was calibrated on; ascending, each once.
TRAIN_ROWS, CALIB_ROWS = "data/train_rows.npy", "data/calib_rows.npy"
TRAINING, CALIBRATION = "training", "calibration"
FILES = {TRAINING: TRAIN_ROWS, CALIBRATION: CALIB_ROWS}


@dataclass(frozen=True, slots=True)
class Overlap:
    """Which rows the model was made from, of so many; `kind` is `TRAINING` or `CALIBRATION`."""

    kind: str
    row_P: NDArray[np.int64]  # ascending, counted from 0
    num_rows: int


def rows_of_step(kind: str, step: int) -> str:
    """Return the file with the digests of the rows that came to a bundle in a step of its history, counted from 1."""
    return FILES[kind].replace(".npy", f"_{step}.npy")


def read_digests(bundle: Path, kind: str, *, steps: Collection[int] | None = None) -> U64 | None:
    """Return the digests of a bundle's training or calibration rows; None where it has none.

    A warning says where those of training are missing.

    Args:
        steps: of the history, counted from 1, whose rows count too; None: all.

    Raises:
        ArtifactError: they cannot be read.
    """
    first = bundle / FILES[kind]
    more = sorted(first.parent.glob(f"{first.stem}_*.npy"))
    more = [file for file in more if steps is None or int(file.stem.rpartition("_")[2]) in steps]
    if not first.is_file():
        log.warning(
            "bundle %s has no digests of its %s rows (%s): it is older than they are, or was trained with max_leakage=null. "
            "Rows that it was made from cannot be told from others",
            bundle,
            kind,
            FILES[kind],
        )
    parts = [_read(file) for file in ([first] if first.is_file() else []) + more]
    if len(parts) > 1:
        return np.unique(np.concatenate(parts))
    return parts[0] if parts else None


def _read(file: Path) -> U64:
    try:
        digest_U: U64 = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}") from None
    if digest_U.dtype != np.uint64 or digest_U.ndim != 1:
        raise ArtifactError(f"{file} holds {digest_U.dtype} {digest_U.shape}; expected digests, uint64 (rows,)")
    return digest_U


def check_overlap(
    overlaps: Sequence[Overlap],
    *,
    max_overlap: float,
    purpose: str,
    row_numbers: NDArray[np.int64] | None = None,
    source: str = "the rows",
) -> None:
    """Refuse rows if the model was made from too many of them, and log it of fewer.

    Args:
        overlaps: of the same rows; a row may be in several.
        max_overlap: the share of the rows that the model may have been made from, from 0 to 1.
        purpose: what the rows are for: they "are not to be" that.
        row_numbers: (N,), which rows of the source they are, if that is known.
        source: how messages call what the rows are of.

    Raises:
        ConfigError: `max_overlap` is no share.
        DataError: it was made from more, with their number, share and first row numbers.
    """
    if isinstance(max_overlap, bool) or not isinstance(max_overlap, int | float) or not 0 <= max_overlap <= 1:
        raise ConfigError(f"max_overlap must be a share of rows from 0 to 1, got {max_overlap!r}")
    overlaps = [overlap for overlap in overlaps if len(overlap.row_P)]
    if not overlaps:
        return
    told = "; ".join(
        f"{len(each.row_P)} of {each.num_rows} rows ({len(each.row_P) / each.num_rows:.2%}) of {source} are also {each.kind} rows "
        f"of the model: row {first_numbers(each.row_P, row_numbers)}"
        for each in overlaps
    )
    share = len(np.unique(np.concatenate([each.row_P for each in overlaps]))) / overlaps[0].num_rows
    if share > max_overlap:
        raise DataError(
            f"{told} (counted from 0). A model is surer of its training rows than of others, and fits its calibration rows better, "
            f"so they are not to be {purpose}: leave them out, or give other rows. max_overlap={_rounded_up(share)} allows them, "
            "where rows are equal by chance, as those of few coarse columns are"
        )
    log.warning("%s", told)


def _rounded_up(share: float) -> float:
    return float(min(1.0, np.ceil(share * 1000) / 1000))
