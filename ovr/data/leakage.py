"""Rows that are there more than once: within a split, and across splits, where they tell the answer in advance.

Two rows are equal where the model cannot tell them apart: all values of x, as the encoder made them, are equal. Texts that differ
only in what an encoder drops (case, what is cut off at the end) count as equal, therefore.

N = rows, B = rows of a block
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ovr.data.cohorts import take
from ovr.data.lazy import Inputs, SomeRows, blocks, in_memory
from ovr.data.splits import SPLIT_NAMES, CalibRows, Splits
from ovr.errors import ConfigError, DataError

log = logging.getLogger(__name__)

U64 = NDArray[np.uint64]

CALIB_OVERLAPS = ("drop", "refuse", "keep")
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Leak:
    """How many rows of a split are also rows of an earlier one."""

    earlier: str
    later: str
    num_rows: int  # of the later split
    share: float  # of the later split's rows


@dataclass(frozen=True, slots=True)
class Leakage:
    """Pairs of splits, in order, and for each split how many of its rows repeat an earlier row of the same split.

    `train_rows` are the digests of the training rows, `calib_rows` those of the calibration rows that are none of them, ascending,
    each once; `calib_trained_on_N` says of each calibration row whether it is also a training row.
    """

    leaks: tuple[Leak, ...]
    num_repeated: Mapping[str, int]
    train_rows: U64 = field(default_factory=lambda: np.zeros(0, np.uint64), compare=False, repr=False)
    calib_rows: U64 = field(default_factory=lambda: np.zeros(0, np.uint64), compare=False, repr=False)
    calib_trained_on_N: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_), compare=False, repr=False)


def row_digests(x: Inputs) -> U64:
    """Return a digest of each row (N,), equal for equal rows; 8 bytes a row are kept, rows are read in blocks.

    Of 10 million different rows two have the same one with a chance of 3 in a million. -0 is 0.
    """
    digest_N = np.empty(len(x), np.uint64)
    for block in blocks(x):
        x_B = np.ascontiguousarray(x[block], dtype=np.float32) + np.float32(0)
        raw, size = memoryview(x_B.tobytes()), x_B[0].nbytes
        joined = b"".join(blake2b(raw[at : at + size], digest_size=8).digest() for at in range(0, len(raw), size))
        digest_N[block] = np.frombuffer(joined, np.uint64)
    return digest_N


def find_leakage(splits: Splits) -> Leakage:
    """Return the equal rows of every pair of splits; every row is read once."""
    digests = {name: row_digests(getattr(splits, name).x) for name in SPLIT_NAMES}
    distinct = {name: np.unique(digest_N) for name, digest_N in digests.items()}
    leaks = []
    for earlier, later in combinations(SPLIT_NAMES, 2):
        num_rows = int(np.isin(digests[later], distinct[earlier]).sum())
        leaks.append(Leak(earlier, later, num_rows, num_rows / len(digests[later])))
    num_repeated = {name: len(digests[name]) - len(distinct[name]) for name in SPLIT_NAMES}
    trained_on_N = np.isin(digests["calib"], distinct["train"])
    return Leakage(tuple(leaks), num_repeated, distinct["train"], np.unique(digests["calib"][~trained_on_N]), trained_on_N)


def check_leakage(leakage: Leakage, *, max_leakage: float) -> None:
    """Log what leaks, and refuse what is too much.

    Args:
        max_leakage: the share of a split's rows that may also be rows of an earlier split, from 0 to 1.

    Raises:
        ConfigError: `max_leakage` is no share.
        DataError: more rows leak, in any pair of splits.
    """
    if isinstance(max_leakage, bool) or not isinstance(max_leakage, int | float) or not 0 <= max_leakage <= 1:
        raise ConfigError(f"max_leakage must be a share of rows from 0 to 1, or null (not checked), got {max_leakage!r}")
    told = [
        f"{leak.num_rows} rows of {leak.later} ({leak.share:.1%}) are also in {leak.earlier}"
        for leak in leakage.leaks
        if leak.share > max_leakage
    ]
    if told:
        raise DataError(
            f"{'; '.join(told)}. At most {max_leakage:.1%} may be (max_leakage): figures of rows that were trained on say little. "
            "Leave them out, keep equal rows together with split.by=group, or raise max_leakage where rows are equal by chance, "
            "as those of few coarse columns are"
        )
    for leak in leakage.leaks:
        if leak.num_rows:
            log.warning("%d rows of %s (%.2f %%) are also in %s", leak.num_rows, leak.later, 100 * leak.share, leak.earlier)


def without_trained_on(splits: Splits, leakage: Leakage, *, calib_overlap: str) -> Splits:
    """Return the splits without the calibration rows that are also training rows, which a warning counts.

    Args:
        calib_overlap: "drop" leaves such rows out, "refuse" refuses them, "keep" keeps them.

    Raises:
        DataError: there are some and they are refused, or no other row would be left.
    """
    trained_on = np.flatnonzero(leakage.calib_trained_on_N)
    if calib_overlap == "keep" or not len(trained_on):
        return splits
    numbers = first_numbers(trained_on, splits.origin.row_numbers.get("calib"))
    told = f"{len(trained_on)} of {len(splits.calib)} calibration rows are also training rows: row {numbers} (counted from 0)"
    if calib_overlap == "refuse" or len(trained_on) == len(splits.calib):
        raise DataError(
            f"{told}. A model is surer of these than of others, so heads are not to be calibrated on them: give other rows; "
            "calib_overlap=drop leaves them out, calib_overlap=keep keeps them, where rows are equal by chance, as those of few "
            "coarse columns are"
        )
    log.warning("%s; they are left out", told)
    kept = np.flatnonzero(~leakage.calib_trained_on_N)
    rows = splits.calib
    x = rows.x[kept] if in_memory(rows.x) else SomeRows(rows.x, kept)
    calib = CalibRows(x, rows.labels.take(kept), take(rows.cohorts, kept))
    return replace(splits, calib=calib, origin=splits.origin.without("calib"))


def first_numbers(row_P: NDArray[np.int64], row_numbers: NDArray[np.int64] | None) -> str:
    """Return how messages name the first of some rows, by their numbers in the source (N,) where these are known."""
    numbers = row_P if row_numbers is None else row_numbers[row_P]
    return ", ".join(map(str, numbers[:SHOWN].tolist())) + (", ..." if len(numbers) > SHOWN else "")
