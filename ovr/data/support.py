"""How many rows stand behind each class in each split, and which classes have too few. Knows columns, not figures.

K = heads
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ovr.data.splits import SPLIT_NAMES, Splits
from ovr.errors import ConfigError, DataError

SHOWN = 10  # classes that an error names
SHOWN_ABSENT = 100  # classes without a training row that it names
MEASURED = ("train", "calib", "test")  # splits where a class needs negatives too: else a head that says yes to all rows is right


def small_classes(splits: Splits, *, min_positives: Mapping[str, int]) -> NDArray[np.bool_]:
    """Return which classes (K,) have fewer positive rows than the minimum in any split, no positive row in train, or no negative
    row in train, calib or test.

    Raises:
        ConfigError: `min_positives` is no whole number of at least 0 for each of the four splits.
    """
    if not isinstance(min_positives, Mapping) or set(min_positives) != set(SPLIT_NAMES):
        raise ConfigError(f"min_positives is {min_positives!r}; expected a number for each of {', '.join(SPLIT_NAMES)}")
    for name, least in min_positives.items():
        if isinstance(least, bool) or not isinstance(least, int) or least < 0:
            raise ConfigError(f"min_positives.{name} must be a whole number of at least 0, got {least!r}")
    small_K = _absent(splits) | _few(splits, min_positives)
    for full_K in without_negatives(splits).values():
        small_K |= full_K
    return small_K


def without_negatives(splits: Splits) -> dict[str, NDArray[np.bool_]]:
    """Return which classes (K,) have no known negative row, for train, calib and test."""
    return {name: getattr(splits, name).labels.counts().num_negatives_K == 0 for name in MEASURED}


def check_small_classes(splits: Splits, *, min_positives: Mapping[str, int], allow: bool) -> NDArray[np.bool_]:
    """Return what `small_classes` does, where there are none or they are allowed.

    Raises:
        ConfigError: as `small_classes`, or `allow` is neither true nor false.
        DataError: there are such classes, and `allow` is false.
    """
    if not isinstance(allow, bool):
        raise ConfigError(f"allow_small_classes is {allow!r}; expected true or false")
    small_K = small_classes(splits, min_positives=min_positives)
    if allow or not small_K.any():
        return small_K
    raise DataError(
        f"{'; '.join(_problems(splits, min_positives))}. allow_small_classes=true trains them too and marks their figures; "
        "or find more rows, or leave the classes out"
    )


def _absent(splits: Splits) -> NDArray[np.bool_]:
    absent_K: NDArray[np.bool_] = splits.train.labels.num_positives_K() == 0
    return absent_K


def _few(splits: Splits, min_positives: Mapping[str, int]) -> NDArray[np.bool_]:
    few_K = np.zeros(len(splits.taxonomy), np.bool_)
    for name, least in min_positives.items():
        few_K |= getattr(splits, name).labels.num_positives_K() < least
    return few_K


def _problems(splits: Splits, min_positives: Mapping[str, int]) -> list[str]:
    ids, problems = splits.taxonomy.ids, []
    absent_K = _absent(splits)
    if absent_K.any():
        names = [repr(ids[k]) for k in np.flatnonzero(absent_K)]
        problems.append(f"no training row of class {_shown(names, ', ', SHOWN_ABSENT)}")
    few_K = _few(splits, min_positives) & ~absent_K
    if few_K.any():
        counts = {name: getattr(splits, name).labels.num_positives_K() for name in SPLIT_NAMES}
        lacks = [
            f"{ids[k]!r} has "
            + ", ".join(f"{counts[name][k]} in {name}" for name in SPLIT_NAMES if counts[name][k] < min_positives[name])
            for k in np.flatnonzero(few_K)
        ]
        problems.append(
            f"{len(lacks)} of {len(few_K)} classes have fewer positive rows than min_positives "
            f"({', '.join(f'{name} {min_positives[name]}' for name in SPLIT_NAMES)}): {_shown(lacks, '; ', SHOWN)}"
        )
    full = without_negatives(splits)
    full_K = np.logical_or.reduce(list(full.values()))
    if full_K.any():
        lacks = [f"{ids[k]!r} in {', '.join(name for name in MEASURED if full[name][k])}" for k in np.flatnonzero(full_K)]
        problems.append(
            f"no negative row of class {_shown(lacks, '; ', SHOWN)}: a head that says yes to every row is right about all of them"
        )
    return problems


def _shown(texts: Sequence[str], separator: str, most: int) -> str:
    return separator.join(texts[:most]) + (f"{separator}and {len(texts) - most} more" if len(texts) > most else "")
