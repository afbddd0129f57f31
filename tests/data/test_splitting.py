import itertools
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ovr.data.labels import Labels
from ovr.data.splits import SPLIT_NAMES, stratified_split
from ovr.data.splitting import SplitRule, split_name, split_rows
from ovr.errors import DataError

FRACTIONS = {"train": 0.6, "val": 0.1, "calib": 0.15, "test": 0.15}
STRATIFIED = SplitRule("stratified", None, FRACTIONS)


def multi_class(columns, num_heads=None):
    columns = np.asarray(columns)
    return Labels.from_columns(columns, num_heads=num_heads or int(columns.max()) + 1)


def multi_label(rows, num_heads):
    target_NK = np.zeros((len(rows), num_heads), dtype=bool)
    for n, columns in enumerate(rows):
        target_NK[n, list(columns)] = True
    return Labels.from_dense(target_NK)


def assert_partition(rows, num_rows):
    assert list(rows) == [name for name in SPLIT_NAMES if name in rows]
    assert all((np.diff(row_B) > 0).all() and len(row_B) for row_B in rows.values())
    np.testing.assert_array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(num_rows))


def has_a_training_row_of_every_class(rows, labels):
    return ((labels.take(rows["train"]).num_positives_K() > 0) == (labels.num_positives_K() > 0)).all()


def test_stratified_with_a_class_a_row_is_what_it_was(rng):
    column_N = rng.integers(7, size=500)
    expected = stratified_split(column_N, FRACTIONS, seed=3)
    got = split_rows(SplitRule("stratified", None, FRACTIONS, 3), multi_class(column_N))
    for name in SPLIT_NAMES:
        np.testing.assert_array_equal(got[name], expected[name])


@given(st.lists(st.sets(st.integers(0, 8), max_size=5), min_size=40, max_size=150), st.integers(0, 3))
@settings(deadline=None)
def test_several_labels_a_row_are_a_partition_and_no_class_lacks_a_training_row(label_sets, seed):
    labels = multi_label(label_sets, 9)
    rows = split_rows(SplitRule("stratified", None, FRACTIONS, seed), labels)
    assert_partition(rows, len(label_sets))
    assert has_a_training_row_of_every_class(rows, labels)


def test_a_class_whose_rows_rarer_classes_took_elsewhere_still_has_a_training_row():
    # Rows 0 and 1 are all that class 0 has; classes 1 and 2 have a row each besides, on which they could be trained instead.
    for seed in range(20):
        labels = multi_label([{0, 1}, {0, 2}, {1}, {2}, *[{3}] * 40], 4)
        assert has_a_training_row_of_every_class(split_rows(SplitRule("stratified", None, FRACTIONS, seed), labels), labels)


def test_several_labels_a_row_keep_the_proportions_better_than_chance(rng):
    rate_K = np.geomspace(0.5, 0.004, 25)
    labels = Labels.from_dense(rng.random((4000, 25)) < rate_K)
    share_S, total_K = np.array(list(FRACTIONS.values())), labels.num_positives_K()

    def error(rows):
        counts_SK = np.array([labels.take(row_B).num_positives_K() for row_B in rows.values()])
        return np.abs(counts_SK - share_S[:, None] * total_K).max()

    rows = split_rows(STRATIFIED, labels)
    chance = dict(zip(SPLIT_NAMES, np.split(rng.permutation(4000), [2400, 2800, 3400]), strict=True))
    assert error(rows) < 12 < error(chance), (error(rows), error(chance))
    assert all(abs(len(rows[name]) - FRACTIONS[name] * 4000) <= 25 for name in SPLIT_NAMES)
    # What Sechidis et al. show above all: a rare class has a row in every split.
    rare = int(np.argmin(total_K))
    assert all(labels.take(row_B).num_positives_K()[rare] >= 1 for row_B in rows.values()), total_K[rare]


def test_rows_without_a_label_fill_up_the_splits():
    labels = multi_label([{0}] * 20 + [set()] * 80, 1)
    rows = split_rows(STRATIFIED, labels)
    assert [len(rows[name]) for name in SPLIT_NAMES] == [60, 10, 15, 15]
    assert [int(labels.take(rows[name]).num_positives_K()[0]) for name in SPLIT_NAMES] == [12, 2, 3, 3]


def test_the_seed_and_nothing_else_draws(rng):
    labels = Labels.from_dense(rng.random((200, 5)) < 0.3)
    groups = rng.integers(40, size=200).tolist()
    for rule, values in ((STRATIFIED, None), (SplitRule("group", "g", FRACTIONS), groups)):
        first, again = split_rows(rule, labels, values), split_rows(rule, labels, values)
        other = split_rows(SplitRule(rule.by, rule.column, FRACTIONS, 1), labels, values)
        np.testing.assert_array_equal(first["test"], again["test"])
        assert not np.array_equal(first["test"], other["test"])


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sets(st.integers(0, 4), max_size=3)), min_size=60, max_size=200), st.integers(0, 3)
)
@settings(deadline=None)
def test_no_group_is_in_two_splits_and_no_class_lacks_a_training_row(pairs, seed):
    groups, labels = [f"g{group}" for group, _ in pairs], multi_label([columns for _, columns in pairs], 5)
    assume(len(set(groups)) >= 8)  # train has a group of each of the 5 classes at most, and every other split needs one
    rows = split_rows(SplitRule("group", "patient", FRACTIONS, seed), labels, groups)
    assert_partition(rows, len(pairs))
    of_split = {name: {groups[row] for row in row_B} for name, row_B in rows.items()}
    assert sum(map(len, of_split.values())) == len(set(groups))
    assert has_a_training_row_of_every_class(rows, labels)


def test_groups_keep_the_proportions_of_rows_and_classes(rng):
    group_N = rng.integers(300, size=6000)
    kind_G = rng.choice(4, size=300, p=[0.6, 0.3, 0.07, 0.03])  # classes come in groups
    column_N = np.where(rng.random(6000) < 0.8, kind_G[group_N], rng.integers(4, size=6000))
    labels = multi_class(column_N)
    rows = split_rows(SplitRule("group", "g", FRACTIONS), labels, group_N.tolist())
    for name, row_B in rows.items():
        assert abs(len(row_B) / 6000 - FRACTIONS[name]) < 0.01
        share_K = labels.take(row_B).num_positives_K() / labels.num_positives_K()
        np.testing.assert_allclose(share_K, FRACTIONS[name], atol=0.05)


def test_too_few_groups_are_told():
    with pytest.raises(DataError, match="column 'g' has 3 groups; expected at least 4, one for each of train, val, calib, test"):
        split_rows(SplitRule("group", "g", FRACTIONS), multi_class([0, 0, 0, 0]), ["a", "b", "c", "c"])
    with pytest.raises(
        DataError, match=r"split val, test would have no group of column 'g': each class has a group in train, and the 4 g"
    ):
        split_rows(SplitRule("group", "g", FRACTIONS), multi_class([0, 1, 2, 2]), ["a", "b", "c", "d"])
    for empty in ("", None, float("nan")):
        with pytest.raises(DataError, match="row 1, column 'g' is empty"):
            split_rows(SplitRule("group", "g", FRACTIONS), multi_class([0, 0]), ["a", empty])


def test_a_column_names_the_splits_in_any_of_the_known_spellings():
    cells = ["Train", "dev", " calibration ", "TEST", "train"]
    rows = split_rows(SplitRule("column", "part"), multi_class([0, 0, 1, 1, 1]), cells)
    assert {name: row_B.tolist() for name, row_B in rows.items()} == {"train": [0, 4], "val": [1], "calib": [2], "test": [3]}
    assert (split_name("valid"), split_name("Testing"), split_name("holdout"), split_name(0)) == ("val", "test", None, None)


def test_splits_that_a_column_does_not_name_come_off_train(rng):
    columns = rng.integers(3, size=400)
    cells = np.array(["train"] * 300 + ["test"] * 100)
    rows = split_rows(
        SplitRule("column", "part", {"train": 0.8, "val": 0.1, "calib": 0.1, "test": 0.5}), multi_class(columns), cells
    )
    assert_partition(rows, 400)
    assert {name: len(row_B) for name, row_B in rows.items()} == {"train": 240, "val": 30, "calib": 30, "test": 100}
    np.testing.assert_array_equal(rows["test"], np.arange(300, 400))


def test_rows_of_files_are_split_by_file():
    rows = split_rows(SplitRule("file"), multi_class([0] * 4), ["train", "val", "test", "calib"])
    assert [rows[name].tolist() for name in SPLIT_NAMES] == [[0], [1], [3], [2]]


@pytest.mark.parametrize(
    ("cells", "fractions", "message"),
    [
        (
            ["train", "holdout"],
            {},
            "row 1: column 'part' holds 'holdout', which names no split; expected train or training; val or ",
        ),
        (["train", ""], {}, "row 1: column 'part' holds '', which names no split"),
        (["train", "val", "dev"], {}, "row 2: column 'part' holds 'dev', an earlier row 'val', and both mean val; use one"),
        (["val", "test"], {}, "column 'part': no row is train; the rows are val, test"),
        (["train", "val"], {"train": 0.5}, "no row is calib, test; .* which lacks calib, test: got {'train': 0.5}"),
        (["train", "test"], FRACTIONS, "split val, calib would have no row: 2 rows are too few"),
    ],
)
def test_a_column_that_names_no_splits_is_refused(cells, fractions, message):
    with pytest.raises(DataError, match=message):
        split_rows(SplitRule("column", "part", fractions), multi_class([0] * len(cells)), cells)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=100))
def test_by_time_no_row_is_older_than_one_of_an_earlier_split_and_ties_stay_together(times):
    rule = SplitRule("time", "day", FRACTIONS)
    labels = multi_class(np.zeros(len(times), int))
    if len(set(times)) < 4:
        with pytest.raises(DataError, match=rf"column 'day' has {len(set(times))} distinct times; expected at least 4"):
            split_rows(rule, labels, times)
        return
    rows = split_rows(rule, labels, times)
    assert_partition(rows, len(times))
    of_split = [np.array(times)[rows[name]] for name in SPLIT_NAMES]
    for older, newer in itertools.pairwise(of_split):
        assert older.max() < newer.min()


def test_by_time_the_fractions_are_met_where_no_ties_forbid_it(rng):
    times = rng.permutation(1000)
    rows = split_rows(SplitRule("time", "t", FRACTIONS), multi_class(np.zeros(1000, int)), times)
    assert [len(rows[name]) for name in SPLIT_NAMES] == [600, 100, 150, 150]
    assert times[rows["train"]].max() == 599


def test_numbers_and_dates_order_rows_and_are_not_mixed():
    began = datetime(2024, 1, 1)
    kinds = [
        [str(n - 20) for n in range(40)],
        [(began + timedelta(hours=7 * n)).isoformat() for n in range(40)],
        [(began + timedelta(days=n)).date().isoformat() for n in range(40)],
        [began + timedelta(days=n) for n in range(40)],
        [date(2024, 1, 1) + timedelta(days=n) for n in range(40)],
        [(began + timedelta(days=n)).replace(tzinfo=UTC) for n in range(40)],
        list(np.datetime64("2024-01-01") + np.arange(40)),
    ]
    for values in kinds:
        rows = split_rows(SplitRule("time", "t", FRACTIONS), multi_class(np.zeros(40, int)), values[::-1])
        assert rows["train"].tolist() == list(range(16, 40)), values[0]
    with pytest.raises(
        DataError, match=r"row 1, column 't' holds '2024-01-01', a date without a zone; the first row holds '3', a number"
    ):
        split_rows(SplitRule("time", "t", FRACTIONS), multi_class([0, 0]), ["3", "2024-01-01"])
    for bad in ("", "yesterday", "nan", None, float("inf"), True, np.datetime64("NaT")):
        with pytest.raises(DataError, match=r"row 1, column 't' holds .*; expected a number or a date such as 2024"):
            split_rows(SplitRule("time", "t", FRACTIONS), multi_class([0, 0]), [1, bad])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "random", "fractions": FRACTIONS}, "split.by is 'random'; expected one of stratified, file, column, time, group"),
        ({"fractions": FRACTIONS}, "split.by is not given"),
        ({"by": "stratified", "fraction": FRACTIONS}, "split has 'fraction'; expected by, column, fractions, seed"),
        ({"by": "time", "fractions": FRACTIONS}, "split.column is None with split.by=time; expected the name of a column"),
        (
            {"by": "stratified", "column": "x", "fractions": FRACTIONS},
            "split.column is 'x' with split.by=stratified; expected null",
        ),
        (
            {"by": "stratified", "fractions": FRACTIONS, "seed": -1},
            "seed of the split must be a whole number of at least 0, got -1",
        ),
        ({"by": "stratified", "fractions": FRACTIONS, "seed": True}, "seed of the split must be a whole number"),
        ({"by": "stratified", "fractions": 0.5}, "split.fractions is 0.5; expected a share for each of train, val"),
        ({"by": "stratified", "fractions": {"train": 0.5, "dev": 0.5}}, "split.fractions names 'dev'; expected train, val"),
        ({"by": "stratified", "fractions": {"train": 1.5}}, "must be numbers above 0 and at most 1"),
        ({"by": "stratified", "fractions": {"train": "most"}}, "must be numbers above 0 and at most 1"),
        ({"by": "stratified", "fractions": {"train": 0.5, "val": 0.4}}, "must sum to 1, got .* with sum 0.9"),
        ({"by": "group", "column": "g", "fractions": {"val": 1.0}}, "split.fractions has no share for train"),
    ],
)
def test_rules_that_are_none_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        SplitRule.of(settings)


def test_values_that_do_not_fit_the_rule_or_the_rows_are_refused():
    labels = multi_class([0, 1, 1])
    with pytest.raises(DataError, match=r"split\.by=stratified takes no values, got 3"):
        split_rows(STRATIFIED, labels, [1, 2, 3])
    with pytest.raises(DataError, match=r"split\.by=time takes one value a row, got none"):
        split_rows(SplitRule("time", "t", FRACTIONS), labels)
    with pytest.raises(DataError, match="got 2 values to split by for 3 rows"):
        split_rows(SplitRule("time", "t", FRACTIONS), labels, [1, 2])
    with pytest.raises(DataError, match="got no rows to split"):
        split_rows(STRATIFIED, Labels.from_columns(np.zeros(0, int), num_heads=1))
    with pytest.raises(DataError, match="would have no row: 3 rows are too few"):
        split_rows(STRATIFIED, labels)


def test_a_rule_is_kept_as_plain_values():
    assert SplitRule.of(STRATIFIED.to_json()) == STRATIFIED
