"""Training, validation, calibration and test rows: four types, because each may be used for one thing only.

Knows rows and labels, not where they come from.

N = rows, K = heads
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema, check_rows
from ovr.core.taxonomy import Taxonomy
from ovr.data.cohorts import Cohorts
from ovr.data.entries import Entries
from ovr.data.fitted import Fitted
from ovr.data.labels import Labels
from ovr.data.lazy import ArrayRows, CheckedRows, Inputs, LazyArray, blocks, in_memory
from ovr.data.moments import Moments
from ovr.data.origin import Origin
from ovr.errors import DataError, InputError
from ovr.input.encoder import Encoder

SPLIT_NAMES = ("train", "val", "calib", "test")


@dataclass(frozen=True, slots=True)
class Rows:
    """Raw inputs x (N, *shape) float32, not normalised, with their labels; `x` may be read row by row, see `ovr.data.lazy`.

    `cohorts` has a text a row (N,) for each cohort column that the source was asked for; "" where the cell holds nothing.
    """

    x: Inputs
    labels: Labels
    cohorts: Cohorts = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)


class TrainRows(Rows):
    """Rows that weights are fitted on."""


class ValRows(Rows):
    """Rows that choose the epoch; never fitted on."""


class CalibRows(Rows):
    """Rows that fit temperatures and thresholds; never trained on."""


class TestRows(Rows):
    """Rows that are only reported on."""

    __test__ = False  # not a test case, whatever pytest makes of the name


@dataclass(frozen=True, slots=True)
class Splits:
    """What a data source gives: the four kinds of rows, the classes and what a row looks like."""

    taxonomy: Taxonomy
    input: InputSchema
    train: TrainRows
    val: ValRows
    calib: CalibRows
    test: TestRows
    encoder: Encoder | None = None  # made the rows x of what the user has
    origin: Origin = field(default_factory=Origin)


def make_splits(
    taxonomy: Taxonomy,
    input: InputSchema,
    parts: Mapping[str, tuple[NDArray[Any] | LazyArray, Labels]],
    *,
    encoder: Encoder | None = None,
    origin: Origin | None = None,
    cohorts: Mapping[str, Cohorts] | None = None,
    fitted: Fitted | None = None,
) -> Splits:
    """Return checked splits from raw (x, labels) of train, val, calib and test, where `encoder`, if any, made the rows.

    `origin` tells of the files that they came from and how they were split, for the bundle's data card. `cohorts` are those of each
    split's rows. Where all rows are wanted for a model that is there (`fitted`) `parts` has the test split alone, and the others
    are empty. Whether every class has rows is not asked here but in `ovr.data.support`.
    A memory-mapped array, or any other x that is not a NumPy array, stays as it is: its values are checked when they are read.

    Raises:
        DataError: there are other splits than these four; a split is empty, has another row shape than `input`, or holds NaN or
            infinity; no class has a validation row. All problems are named in one error.
    """
    cohorts = cohorts or {}
    wanted = ("test",) if fitted is not None and fitted.whole else SPLIT_NAMES
    if set(parts) != set(wanted):
        raise DataError(f"the rows are split into {', '.join(parts)}; expected {', '.join(wanted)}")
    input = input if encoder is None else replace(input, encoder=encoder.to_json())
    if fitted is not None:
        input = fitted.input
    problems = []
    checked = {}
    for name in wanted:
        x, labels = parts[name]
        try:
            checked[name] = _checked(x, input, what=f"{name} split")
        except InputError as error:
            problems.append(f"{name} split: {error}")
        if len(x) != len(labels) or labels.num_heads != len(taxonomy):
            problems.append(
                f"{name} split: {len(x)} rows but labels ({len(labels)}, {labels.num_heads}); expected ({len(x)}, {len(taxonomy)})"
            )
    if not problems and fitted is None and not parts["val"][1].num_positives_K().any():
        problems.append("the val split has no positive row of any class; the best epoch could not be chosen")
    if problems:
        raise DataError("; ".join(problems))
    none = np.zeros((0, *input.shape), np.float32), Labels(Entries.none(0), Entries.none(0), len(taxonomy))
    rows = [(checked[name], parts[name][1], cohorts.get(name, {})) if name in wanted else (*none, {}) for name in SPLIT_NAMES]
    return Splits(
        taxonomy,
        input,
        TrainRows(*rows[0]),
        ValRows(*rows[1]),
        CalibRows(*rows[2]),
        TestRows(*rows[3]),
        encoder,
        origin or Origin(),
    )


def _checked(x: NDArray[Any] | LazyArray, input: InputSchema, *, what: str) -> Inputs:
    if in_memory(x) or not isinstance(x, LazyArray):
        return check_rows(x, input)
    if tuple(x.shape[1:]) != input.shape:
        raise InputError(f"rows have shape {tuple(x.shape)}; expected ({', '.join(['rows', *map(str, input.shape)])})")
    if len(x) == 0:
        raise InputError("got no rows; expected at least one")
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "fiu":
            raise InputError(f"rows must be numbers, got dtype {x.dtype}; expected {input.dtype}")
        x = ArrayRows(x, name=str(getattr(x, "filename", None) or "array"))
    return CheckedRows(x, input, what)


def stratified_split(column_N: NDArray[np.integer], fractions: Mapping[str, float], *, seed: int) -> dict[str, NDArray[np.int64]]:
    """Return disjoint sorted row numbers for each name in `fractions`, with every class spread in proportion.

    Within a class, rows go to the splits by largest remainder, and the first split of the mapping has the first row of every class,
    so a class with a single row is in that split. The result depends on `seed` and the labels only.

    Raises:
        DataError: fractions that are not positive numbers or do not sum to 1; a seed that is not a whole number of at least 0.
    """
    if not all(isinstance(value, int | float) for value in fractions.values()):
        raise DataError(f"split fractions must be numbers, got {dict(fractions)}")
    values = np.array(list(fractions.values()), dtype=float)
    if not (values > 0).all() or abs(values.sum() - 1) > 1e-6:
        raise DataError(f"split fractions must be positive and sum to 1, got {dict(fractions)} with sum {values.sum():g}")
    if not isinstance(seed, int) or seed < 0:
        raise DataError(f"the seed of the split must be a whole number of at least 0, got {seed!r}")
    rng = np.random.default_rng(seed)
    rows: dict[str, list[NDArray[np.int64]]] = {name: [] for name in fractions}
    carry = np.zeros(len(values))  # what rounding owes each split, so that totals keep the proportions with many small classes too
    for column in np.unique(column_N):
        members = rng.permutation(np.flatnonzero(column_N == column))
        wanted = values * len(members) + carry
        counts = np.maximum(np.floor(wanted).astype(int), 0)
        counts[0] = max(counts[0], 1)
        while counts.sum() > len(members):
            surplus = np.where(counts > (np.arange(len(counts)) == 0), counts - wanted, -np.inf)
            counts[np.argmax(surplus)] -= 1
        while counts.sum() < len(members):
            counts[np.argmax(wanted - counts)] += 1
        carry = wanted - counts
        for name, part in zip(fractions, np.split(members, np.cumsum(counts)[:-1]), strict=True):
            rows[name].append(part)
    return {name: np.sort(np.concatenate(parts)) for name, parts in rows.items()}


def standardization(train: TrainRows, *, per: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (shift, scale), float32 and broadcastable to a row, such that (x - shift) * scale has mean 0 and deviation 1.

    `per` is "feature" (each value of a row on its own), "channel" (each first index of an image; a flat row has one channel)
    or "none". A constant feature keeps scale 1.

    Raises:
        DataError: another `per`.
    """
    shape = train.x.shape[1:]
    if per == "none":
        return np.zeros(1, np.float32), np.ones(1, np.float32)
    if per not in ("feature", "channel"):
        raise DataError(f"normalize is {per!r}; expected 'feature', 'channel' or 'none'")
    axes = () if per == "feature" else tuple(axis for axis in range(len(shape)) if axis != 0 or len(shape) == 1)
    known: Moments | None = getattr(train.x, "moments", None)
    moments = Moments.of_blocks(train.x[block] for block in blocks(train.x)) if known is None else known
    mean, deviation = moments.over(axes)
    return mean.astype(np.float32), (1 / np.where(deviation > 0, deviation, 1)).astype(np.float32)
