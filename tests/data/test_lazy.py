import numpy as np
import pytest

from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.lazy import ArrayRows, CheckedRows, LazyArray, Locality, SomeRows, blocks, in_memory
from ovr.data.moments import Moments
from ovr.data.splits import SPLIT_NAMES, TrainRows, make_splits, standardization
from ovr.errors import DataError


class Counted:
    """Rows that tell which of them were read."""

    def __init__(self, x):
        self.x, self.read, self.shape, self.dtype = x, [], x.shape, x.dtype

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        self.read.extend(np.arange(len(self.x))[rows].tolist())
        return self.x[rows]


def labels(num_rows, num_heads=3):
    return Labels.from_columns(np.arange(num_rows) % num_heads, num_heads=num_heads)


def splits(parts):
    return make_splits(Taxonomy.from_ids("abc"), InputSchema((4,)), {name: (x, labels(len(x))) for name, x in parts.items()})


def mapped(folder, x):
    np.save(folder / "x.npy", x)
    return np.load(folder / "x.npy", mmap_mode="r")


def test_lazy_rows_are_not_read_by_make_splits_and_are_the_same_rows(rng):
    x = rng.normal(size=(30, 4)).astype(np.float32)
    parts = {name: Counted(x) for name in SPLIT_NAMES}
    made = splits(parts)
    assert isinstance(made.train.x, LazyArray)
    assert not any(part.read for part in parts.values())
    np.testing.assert_array_equal(made.train.x[np.array([4, 2, 4])], x[[4, 2, 4]])
    assert parts["train"].read == [4, 2, 4]
    np.testing.assert_array_equal(made.calib.x[:5], x[:5])
    assert len(made.val) == 30


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8])
def test_a_mapped_file_stays_one_and_gives_float32_of_the_callers_own(tmp_path, rng, dtype):
    x = mapped(tmp_path, (rng.random(size=(30, 4)) * 200).astype(dtype))
    made = splits(dict.fromkeys(SPLIT_NAMES, x))
    assert isinstance(made.train.x.rows.array, np.memmap)
    for rows in (slice(3, 9), np.array([1, 1, 29])):
        read = made.train.x[rows]
        assert (read.dtype, type(read), read.flags.writeable, read.flags.c_contiguous) == (np.float32, np.ndarray, True, True)
        np.testing.assert_array_equal(read, x[rows].astype(np.float32))
    assert not in_memory(x)
    assert not in_memory(x[3:].reshape(-1))
    assert in_memory(x[[1, 2]])


def test_a_value_that_is_not_finite_is_found_when_it_is_read(tmp_path):
    x = np.ones((30, 4))
    x[7, 2], x[9, 0] = np.nan, 1e300
    made = splits(dict.fromkeys(SPLIT_NAMES, mapped(tmp_path, x)))
    made.train.x[:7]
    with pytest.raises(DataError, match=r"train split: .*x\.npy, row 7, column 2 holds nan; every value must be finite"):
        made.train.x[np.array([3, 7])]
    with pytest.raises(DataError, match=r"val split: .*x\.npy, row 9, column 0 holds inf"):
        made.val.x[8:10]


def test_lazy_rows_that_cannot_be_used_are_refused(tmp_path):
    x = np.ones((30, 4), np.float32)
    bad = dict.fromkeys(SPLIT_NAMES, x) | {"val": Counted(x[:0]), "test": Counted(x[:, :3])}
    with pytest.raises(DataError, match=r"val split: got no rows.*test split: rows have shape \(30, 3\); expected \(rows, 4\)"):
        splits(bad)
    with pytest.raises(DataError, match="train split: rows must be numbers, got dtype <U1; expected float32"):
        splits(dict.fromkeys(SPLIT_NAMES, mapped(tmp_path, x.astype(int).astype("U1"))))
    liar = CheckedRows(Counted(x), InputSchema((5,)), "train split")
    with pytest.raises(DataError, match=r"train split: 2 rows were read with shape \(2, 4\); expected \(2, 5\)"):
        liar[:2]


def test_some_rows_are_those_rows_with_their_part_of_each_group(rng):
    x = rng.normal(size=(10, 2)).astype(np.float32)
    some = SomeRows(ArrayRows(x), np.array([0, 3, 4, 9]))
    assert (len(some), some.shape, some.dtype, some.locality) == (4, (4, 2), np.float32, None)
    np.testing.assert_array_equal(some[1:3], x[3:5])
    np.testing.assert_array_equal(some[np.array([3, 0])], x[[9, 0]])

    class Grouped(Counted):
        locality = Locality(np.array([0, 4, 8, 10]), 5)

    of_groups = SomeRows(Grouped(x), np.array([0, 3, 4, 9])).locality
    assert (of_groups.start_G1.tolist(), of_groups.buffer_rows) == ([0, 2, 3, 4], 5)


def test_blocks_cover_all_rows_within_their_size():
    x = np.empty((10, 3), np.float32)
    assert [(b.start, b.stop) for b in blocks(x, block_bytes=48)] == [(0, 4), (4, 8), (8, 10)]
    assert [b.start for b in blocks(x, block_bytes=1)] == list(range(10))


@pytest.mark.parametrize("buffer_rows", [1, 25, 1000])
def test_an_epoch_in_local_order_has_the_same_rows_and_few_groups_at_a_time(rng, buffer_rows):
    start_G1 = np.array([0, 10, 20, 20, 35, 50])
    locality = Locality(start_G1, buffer_rows)
    for order in (rng.permutation(50), rng.integers(50, size=50)):
        ordered = locality.ordered(order, np.random.default_rng(1))
        assert sorted(ordered) == sorted(order)
        np.testing.assert_array_equal(ordered, locality.ordered(order, np.random.default_rng(1)))
        group_N = np.searchsorted(start_G1, ordered, side="right") - 1
        runs = [set(range(*np.flatnonzero(group_N == g)[[0, -1]] + [0, 1])) for g in np.unique(group_N)]
        together = max(sum(bool(a & b) for b in runs) for a in runs)
        assert together == {1: 1, 25: 2, 1000: 4}[buffer_rows]
    assert (locality.ordered(np.arange(50), rng) != locality.ordered(np.arange(50), rng)).any() or buffer_rows == 1000


def test_moments_of_blocks_are_those_of_all_rows(rng):
    x = (rng.normal(size=(101, 3, 5)) * 3 + 1e4).astype(np.float32)
    moments = Moments.of_blocks(x[start : start + 17] for start in range(0, 101, 17))
    assert moments.num_rows == 101
    for axes, of in (((), 0), ((1,), (0, 2)), ((0, 1), None)):
        mean, deviation = moments.over(axes)
        np.testing.assert_allclose(mean.squeeze(), x.mean(axis=of, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(deviation.squeeze(), x.std(axis=of, dtype=np.float64), rtol=1e-9)


def test_a_constant_feature_has_no_deviation_however_many_blocks():
    x = np.full((1000, 2), 0.1, np.float32)
    assert (Moments.of_blocks(x[start : start + 7] for start in range(0, 1000, 7)).over(())[1] == 0).all()


def test_standardization_of_lazy_rows_reads_them_once(rng):
    x = rng.normal(3, 5, size=(30, 4)).astype(np.float32)
    rows = Counted(x)
    made = splits(dict.fromkeys(SPLIT_NAMES, rows))
    for per in ("feature", "channel"):
        for a, b in zip(standardization(made.train, per=per), standardization(TrainRows(x, labels(30)), per=per), strict=True):
            np.testing.assert_array_equal(a, b)
    assert sorted(rows.read) == list(range(30))
