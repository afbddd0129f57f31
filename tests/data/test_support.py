import numpy as np
import pytest

from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.splits import SPLIT_NAMES, make_splits
from ovr.data.support import check_small_classes, small_classes
from ovr.errors import ConfigError, DataError

MINIMUM = {"train": 5, "val": 0, "calib": 1, "test": 1}


def splits(counts):
    """Splits with so many rows of each class."""
    parts = {}
    for name in SPLIT_NAMES:
        column_N = np.repeat(np.arange(len(counts[name])), counts[name])
        parts[name] = (np.zeros((len(column_N), 2)), Labels.from_columns(column_N, num_heads=len(counts[name])))
    return make_splits(Taxonomy.from_ids("abcdefghijklmnop"[: len(counts["train"])]), InputSchema((2,)), parts)


SOME = {"train": [9, 5, 4, 9], "val": [1, 0, 1, 1], "calib": [1, 1, 1, 0], "test": [1, 1, 1, 1]}


def test_a_class_is_small_where_any_split_has_too_few_rows_of_it():
    assert small_classes(splits(SOME), min_positives=MINIMUM).tolist() == [False, False, True, True]
    assert small_classes(splits(SOME), min_positives={**MINIMUM, "val": 1}).tolist() == [False, True, True, True]
    assert not small_classes(splits(SOME), min_positives=dict.fromkeys(SPLIT_NAMES, 0)).any()


def test_small_classes_are_refused_unless_they_are_allowed():
    assert check_small_classes(splits(SOME), min_positives=MINIMUM, allow=True).tolist() == [False, False, True, True]
    with pytest.raises(
        DataError,
        match=r"2 of 4 classes have fewer positive rows than min_positives \(train 5, val 0, calib 1, test 1\): "
        r"'c' has 4 in train; 'd' has 0 in calib\. allow_small_classes=true trains them",
    ):
        check_small_classes(splits(SOME), min_positives=MINIMUM, allow=False)
    few = {name: [1] * 14 for name in SPLIT_NAMES}
    with pytest.raises(DataError, match=r"14 of 14 classes .*'j' has 1 in train; and 4 more\."):
        check_small_classes(splits(few), min_positives=MINIMUM, allow=False)


def test_a_class_without_a_training_row_is_small_whatever_the_minimum():
    none = splits({**SOME, "train": [9, 0, 5, 0]})
    assert small_classes(none, min_positives=dict.fromkeys(SPLIT_NAMES, 0)).tolist() == [False, True, False, True]
    assert check_small_classes(none, min_positives=MINIMUM, allow=True).tolist() == [False, True, False, True]
    with pytest.raises(DataError, match=r"^no training row of class 'b', 'd'\. allow_small_classes=true trains them"):
        check_small_classes(none, min_positives=MINIMUM, allow=False)


def test_a_class_without_a_negative_row_is_small():
    lonely = splits({"train": [9, 5], "val": [1, 1], "calib": [3, 0], "test": [1, 2]})
    assert small_classes(lonely, min_positives=dict.fromkeys(SPLIT_NAMES, 0)).tolist() == [True, False]
    one = splits({name: [9] for name in SPLIT_NAMES})
    assert check_small_classes(one, min_positives=MINIMUM, allow=True).tolist() == [True]
    with pytest.raises(DataError, match=r"^no negative row of class 'a' in train, calib, test: a head that says yes to every row"):
        check_small_classes(one, min_positives=MINIMUM, allow=False)


@pytest.mark.parametrize(
    "minimum", [5, {"train": 5}, {**MINIMUM, "train": -1}, {**MINIMUM, "train": 1.5}, {**MINIMUM, "val": True}]
)
def test_a_minimum_that_is_none_is_refused(minimum):
    with pytest.raises(ConfigError, match=r"min_positives(\.\w+)? (is|must be)"):
        small_classes(splits(SOME), min_positives=minimum)


def test_the_setting_that_allows_them_is_a_flag():
    with pytest.raises(ConfigError, match="allow_small_classes is 'yes'; expected true or false"):
        check_small_classes(splits(SOME), min_positives=MINIMUM, allow="yes")
