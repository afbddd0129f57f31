import tracemalloc
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.lazy import SomeRows
from ovr.data.leakage import Leakage, check_leakage, find_leakage, row_digests, without_trained_on
from ovr.data.origin import Origin
from ovr.data.splits import SPLIT_NAMES, make_splits
from ovr.errors import ConfigError, DataError


def splits(parts):
    labelled = {
        name: (np.asarray(x, np.float32), Labels.from_columns(np.zeros(len(x), int), num_heads=1)) for name, x in parts.items()
    }
    return make_splits(Taxonomy.from_ids("a"), InputSchema((2,)), labelled)


def copied(num_rows, rng):
    """Splits of 1,000 rows each, of which the first rows of test are training rows."""
    parts = {name: rng.normal(size=(1000, 2)) for name in SPLIT_NAMES}
    parts["test"][:num_rows] = parts["train"][:num_rows]
    return splits(parts)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=4, max_size=4))
def test_equal_rows_are_counted_as_a_brute_force_does(values):
    parts = {name: [[v, -v] for v in of_split] for name, of_split in zip(SPLIT_NAMES, values, strict=True)}
    leakage = find_leakage(splits(parts))
    for leak, (earlier, later) in zip(leakage.leaks, combinations(SPLIT_NAMES, 2), strict=True):
        expected = sum(row in parts[earlier] for row in parts[later])
        assert (leak.earlier, leak.later, leak.num_rows, leak.share) == (earlier, later, expected, expected / len(parts[later]))
    for name, rows in parts.items():
        assert leakage.num_repeated[name] == sum(row in rows[:n] for n, row in enumerate(rows))


def test_digests_are_of_the_values_and_not_of_how_they_lie_in_memory(rng):
    x = rng.normal(size=(50, 3, 4)).astype(np.float32)
    digest_N = row_digests(x)
    assert len(np.unique(digest_N)) == 50
    np.testing.assert_array_equal(row_digests(np.asfortranarray(x)), digest_N)
    np.testing.assert_array_equal(row_digests(x[::-1]), digest_N[::-1])
    zero = np.zeros((2, 3), np.float32)
    zero[1] = -0.0
    assert len(np.unique(row_digests(zero))) == 1


def test_rows_are_read_in_blocks_and_8_bytes_of_each_are_kept(tmp_path, rng):
    np.save(tmp_path / "x.npy", rng.normal(size=(40_000, 500)).astype(np.float32))  # 80 MB
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        row_digests(x)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


def test_two_rows_in_a_thousand_are_told_and_a_copied_file_is_refused(rng, caplog):
    check_leakage(find_leakage(copied(2, rng)), max_leakage=0.1)
    assert [record.getMessage() for record in caplog.records] == ["2 rows of test (0.20 %) are also in train"]
    with pytest.raises(DataError, match=r"1000 rows of test \(100.0%\) are also in train. At most 10.0% may be .*split.by=group"):
        check_leakage(find_leakage(copied(1000, rng)), max_leakage=0.1)


def test_the_limit_is_met_exactly_and_every_pair_is_named(rng):
    check_leakage(find_leakage(copied(100, rng)), max_leakage=0.1)
    with pytest.raises(DataError, match=r"101 rows of test \(10.1%\)"):
        check_leakage(find_leakage(copied(101, rng)), max_leakage=0.1)
    with pytest.raises(DataError, match=r"of val .* in train; .*of calib .* in train; .*of test .* in train; .*of calib .* in val"):
        check_leakage(find_leakage(splits({name: [[1, 2]] for name in SPLIT_NAMES})), max_leakage=0)


@pytest.mark.parametrize("limit", [-0.1, 1.5, "some", True])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match="max_leakage must be a share of rows from 0 to 1, or null"):
        check_leakage(Leakage((), {}), max_leakage=limit)


@pytest.mark.parametrize("lazy", [False, True])
def test_calibration_rows_that_are_training_rows_are_left_out_refused_or_kept(rng, caplog, lazy):
    parts = {name: rng.normal(size=(20, 2)).astype(np.float32) for name in SPLIT_NAMES}
    parts["calib"][[3, 17]] = parts["train"][[5, 2]]
    made = splits(parts)
    labels = Labels.from_columns(np.arange(20) % 2, num_heads=2)
    origin = Origin(row_numbers={name: np.arange(20) + 100 for name in SPLIT_NAMES}, where={"calib": str, "test": str})
    x = SomeRows(made.calib.x, np.arange(20)) if lazy else made.calib.x
    made = replace(made, calib=type(made.calib)(x, labels, {"sex": np.array(list("FM" * 10))}), origin=origin)
    leakage = find_leakage(made)
    left = without_trained_on(made, leakage, calib_overlap="drop")
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 20 calibration rows are also training rows: row 103, 117 (counted from 0); they are left out"
    ]
    kept = np.delete(np.arange(20), [3, 17])
    np.testing.assert_array_equal(left.calib.x[:], parts["calib"][kept])
    np.testing.assert_array_equal(left.calib.labels.dense()[0], labels.dense()[0][kept])
    assert left.calib.cohorts["sex"].tolist() == [("F", "M")[n % 2] for n in kept]
    assert (set(left.origin.row_numbers), set(left.origin.where)) == ({"train", "val", "test"}, {"test"})
    assert without_trained_on(made, leakage, calib_overlap="keep") is made
    assert without_trained_on(left, find_leakage(left), calib_overlap="refuse") is left
    np.testing.assert_array_equal(leakage.calib_rows, np.unique(row_digests(parts["calib"][kept])))
    with pytest.raises(DataError, match=r"2 of 20 calibration rows .* row 103, 117 .*calib_overlap=drop leaves them out"):
        without_trained_on(made, leakage, calib_overlap="refuse")
    same = splits({**parts, "calib": parts["train"]})
    with pytest.raises(DataError, match=r"20 of 20 calibration rows are also training rows: row 0, 1, 2, 3, 4, \.\.\. "):
        without_trained_on(same, find_leakage(same), calib_overlap="drop")
