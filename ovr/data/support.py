"""How many rows stand behind each class in each split, and which classes have too few. Knows columns, not figures.

K = heads
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ovr.data.splits import SPLIT_NAMES, Splits
from ovr.errors import ConfigError, DataError

SHOWN = 10  # classes that an error names


def small_classes(splits: Splits, *, min_positives: Mapping[str, int]) -> NDArray[np.bool_]:
    """Return which classes (K,) have fewer positive rows than the minimum in any split.

    Raises:
        ConfigError: `min_positives` is no whole number of at least 0 for each of the four splits.
    """
    if not isinstance(min_positives, Mapping) or set(min_positives) != set(SPLIT_NAMES):
        raise ConfigError(f"min_positives is {min_positives!r}; expected a number for each of {', '.join(SPLIT_NAMES)}")
    for name, least in min_positives.items():
        if isinstance(least, bool) or not isinstance(least, int) or least < 0:
            raise ConfigError(f"min_positives.{name} must be a whole number of at least 0, got {least!r}")
    small_K = np.zeros(len(splits.taxonomy), np.bool_)
    for name, least in min_positives.items():
        small_K |= getattr(splits, name).labels.num_positives_K() < least
    return small_K


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
    counts = {name: getattr(splits, name).labels.num_positives_K() for name in SPLIT_NAMES}
    column_S = np.flatnonzero(small_K)
    shown = "; ".join(
        f"{splits.taxonomy[k].id!r} has "
        + ", ".join(f"{counts[name][k]} in {name}" for name in SPLIT_NAMES if counts[name][k] < min_positives[name])
        for k in column_S[:SHOWN]
    )
    more = f"; and {len(column_S) - SHOWN} more" if len(column_S) > SHOWN else ""
    raise DataError(
        f"{len(column_S)} of {len(small_K)} classes have fewer positive rows than min_positives "
        f"({', '.join(f'{name} {min_positives[name]}' for name in SPLIT_NAMES)}): {shown}{more}. "
        "allow_small_classes=true trains them too and marks their figures; or find more rows, or leave the classes out"
    )
