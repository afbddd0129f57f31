import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.leakage import Leakage, check_leakage, find_leakage, row_digests
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
