import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.splits import SPLIT_NAMES, CalibRows, TestRows, TrainRows, ValRows, make_splits, standardization, stratified_split
from ovr.errors import DataError

FRACTIONS = {"train": 0.6, "val": 0.1, "calib": 0.15, "test": 0.15}


def parts(rng, num_rows=30, num_heads=3):
    return {
        name: (rng.normal(size=(num_rows, 4)), Labels.from_columns(np.arange(num_rows) % num_heads, num_heads=num_heads))
        for name in SPLIT_NAMES
    }


def test_the_four_splits_are_four_types(rng):
    splits = make_splits(Taxonomy.from_ids("abc"), InputSchema((4,)), parts(rng))
    assert [type(getattr(splits, name)) for name in SPLIT_NAMES] == [TrainRows, ValRows, CalibRows, TestRows]


def test_all_problems_of_the_splits_are_in_one_error(rng):
    bad = parts(rng)
    bad["val"][0][2, 1] = np.nan
    bad["test"] = (rng.normal(size=(30, 5)), bad["test"][1])
    with pytest.raises(
        DataError, match=r"val split: row 2, column 1 holds nan.*test split: rows have shape \(30, 5\); expected \(rows, 4\)"
    ):
        make_splits(Taxonomy.from_ids("abc"), InputSchema((4,)), bad)


def test_other_splits_than_the_four_are_refused(rng):
    bad = parts(rng)
    del bad["calib"]
    with pytest.raises(DataError, match="the rows are split into train, val, test; expected train, val, calib, test"):
        make_splits(Taxonomy.from_ids("abc"), InputSchema((4,)), bad)


def test_validation_without_any_positive_is_refused(rng):
    bad = parts(rng)
    bad["val"] = (bad["val"][0], Labels.from_dense(np.zeros((30, 3), dtype=bool)))
    with pytest.raises(DataError, match="val split has no positive row of any class"):
        make_splits(Taxonomy.from_ids("abc"), InputSchema((4,)), bad)


def test_labels_of_another_length_are_refused(rng):
    bad = parts(rng)
    bad["calib"] = (bad["calib"][0][:-1], bad["calib"][1])
    with pytest.raises(DataError, match=r"calib split: 29 rows but labels \(30, 3\); expected \(29, 3\)"):
        make_splits(Taxonomy.from_ids("abc"), InputSchema((4,)), bad)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.integers(0, 5))
def test_stratified_splits_are_a_partition_and_no_class_lacks_a_training_row(columns, seed):
    column_N = np.array(columns)
    rows = stratified_split(column_N, FRACTIONS, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(len(column_N)))
    assert set(column_N[rows["train"]]) == set(columns)


def test_stratified_splits_keep_the_proportions_of_every_class(rng):
    column_N = rng.choice(4, size=4000, p=[0.7, 0.2, 0.08, 0.02])
    for name, rows in stratified_split(column_N, FRACTIONS, seed=3).items():
        for k in range(4):
            assert abs((column_N[rows] == k).sum() - FRACTIONS[name] * (column_N == k).sum()) <= 1.5


def test_many_small_classes_still_fill_every_split():
    sizes = {name: len(rows) for name, rows in stratified_split(np.repeat(np.arange(100), 3), FRACTIONS, seed=0).items()}
    for name, size in sizes.items():
        assert abs(size - FRACTIONS[name] * 300) <= 4, sizes


def test_the_split_depends_on_the_seed_alone(rng):
    column_N = rng.integers(3, size=100)
    first, again, other = (stratified_split(column_N, FRACTIONS, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["test"], again["test"])
    assert not np.array_equal(first["test"], other["test"])


@pytest.mark.parametrize("fractions", [{"train": 0.5, "val": 0.6}, {"train": 1.0, "val": 0.0}])
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(DataError, match="positive and sum to 1"):
        stratified_split(np.array([0, 1]), fractions, seed=0)


def test_fractions_and_seeds_of_another_kind_are_refused():
    with pytest.raises(DataError, match=r"must be numbers, got {'train': 'most'}"):
        stratified_split(np.array([0, 1]), {"train": "most"}, seed=0)
    for seed in (-1, 0.5, None):
        with pytest.raises(DataError, match="seed of the split must be a whole number of at least 0, got"):
            stratified_split(np.array([0, 1]), {"train": 1.0}, seed=seed)


def test_standardization_gives_mean_zero_and_deviation_one(rng):
    x = rng.normal(3, 5, size=(200, 2, 4, 4)).astype(np.float32)
    x[:, 1] *= 7
    train = TrainRows(x, Labels.from_columns(np.zeros(200, int), num_heads=1))
    for per, axes in (("feature", 0), ("channel", (0, 2, 3))):
        shift, scale = standardization(train, per=per)
        z = (x - shift) * scale
        np.testing.assert_allclose(z.mean(axis=axes), 0, atol=1e-5)
        np.testing.assert_allclose(z.std(axis=axes), 1, atol=1e-4)


def test_standardization_leaves_a_constant_feature_and_takes_a_flat_row_as_one_channel(rng):
    x = rng.normal(size=(50, 3)).astype(np.float32)
    x[:, 2] = 4
    train = TrainRows(x, Labels.from_columns(np.zeros(50, int), num_heads=1))
    shift, scale = standardization(train, per="feature")
    assert (shift[2], scale[2]) == (4, 1)
    assert standardization(train, per="channel")[0].shape == (1,)
    assert [a.tolist() for a in standardization(train, per="none")] == [[0], [1]]
    with pytest.raises(DataError, match="normalize is 'row'"):
        standardization(train, per="row")
