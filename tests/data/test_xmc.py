"""The repository's text format: what it says, every way it is written in, and every way it goes wrong."""

import logging
from itertools import pairwise

import numpy as np
import pytest

from ovr.data.lazy import LazyArray
from ovr.data.splits import SPLIT_NAMES
from ovr.data.xmc import load_xmc, read_xmc
from ovr.errors import DataError
from ovr.input.encoder import encoder_from_json

FRACTIONS = {"train": 0.6, "val": 0.2, "calib": 0.2}


def write(path, lines, *, num_features=20, num_labels=6):
    path.write_text("\n".join([f"{len(lines)} {num_features} {num_labels}", *lines]) + "\n")
    return path


def sample_lines(rng, num_rows, *, num_features=20, num_labels=6):
    """Return lines, and the mappings and label sets that they stand for."""
    rows, labels, lines = [], [], []
    for _ in range(num_rows):
        index = np.sort(rng.choice(num_features, size=rng.integers(0, 8), replace=False))
        value = rng.integers(1, 9, size=len(index)) / 8
        label = np.sort(rng.choice(num_labels, size=rng.integers(0, 4), replace=False))
        rows.append(dict(zip(index.tolist(), value.tolist(), strict=True)))
        labels.append(set(label.tolist()))
        lines.append(",".join(map(str, label)) + " " + " ".join(f"{i}:{v:g}" for i, v in rows[-1].items()))
    return lines, rows, labels


@pytest.fixture
def files(tmp_path, rng):
    return {name: write(tmp_path / f"{name}.txt", sample_lines(rng, n)[0]) for name, n in (("train", 200), ("test", 50))}


def load(train, test=None, **settings):
    known = {
        "label_names": None,
        "ids": "number",
        "num_tokens": 20,
        "max_tokens": None,
        "log_values": False,
        "normalize": "none",
        "fractions": FRACTIONS,
        "seed": 0,
    }
    return load_xmc(train=str(train), test=None if test is None else str(test), **{**known, **settings})


def test_a_file_is_read_as_it_was_written(tmp_path, rng):
    lines, rows, labels = sample_lines(rng, 300)
    file = read_xmc(write(tmp_path / "rows.txt", lines))
    assert (len(file.rows), file.num_features, file.num_labels) == (300, 20, 6)
    start = file.rows.start_N1
    got = [dict(zip(file.rows.index_P[a:b].tolist(), file.rows.value_P[a:b].tolist(), strict=True)) for a, b in pairwise(start)]
    assert got == rows
    start = file.labels.start_N1
    assert [set(file.labels.column_P[a:b].tolist()) for a, b in pairwise(start)] == labels


@pytest.mark.parametrize(
    "text",
    [
        "3 5 4\n1,3 0:1 4:.5\n 2:1e-1\n0\n",
        "\ufeff3 5 4\r\n1,3 0:1 4:.5\r\n 2:1e-1\r\n0 \r\n\r\n\r\n",  # a byte order mark, Windows' line ends, blank lines at the end
        "3\t5\t4\n3,1\t4:0.50 0:+1.\n2:0.1\n0",  # tabs, any order, a row that begins with a pair, no line end at the end
        "3 5 4\n1,3,1  0:1   4:.5  \n  2:1e-1 \n0",  # a label twice, more blanks
    ],
)
def test_a_file_may_be_written_in_several_ways(tmp_path, text):
    (tmp_path / "rows.txt").write_bytes(text.encode())
    file = read_xmc(tmp_path / "rows.txt")
    np.testing.assert_array_equal(file.rows.start_N1, [0, 2, 3, 3])
    np.testing.assert_array_equal(file.rows.index_P, [0, 4, 2])
    np.testing.assert_allclose(file.rows.value_P, [1, 0.5, 0.1])
    np.testing.assert_array_equal(file.labels.start_N1, [0, 2, 2, 3])
    np.testing.assert_array_equal(file.labels.column_P, [1, 3, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"rows\.txt, line 1 is ''; expected three whole numbers: rows features labels"),
        (b"0,1 3:1\n", "line 1 is '0,1 3:1'; expected three whole numbers"),
        (b"2 5\n", "line 1 is '2 5'; expected three whole numbers"),
        (b"0 5 4\n", "holds no rows"),
        (b"2 5 4\n1 0:1\n", "has 1 rows; line 1 tells of 2"),
        (b"1 5 4\n1 0:1\n\n2 0:1\n", "line 4 is a row more than the 1 that line 1 tells of"),
        (b"2 5 4\n1 0:1\n4 0:1\n", r"line 3 has label 4; line 1 tells of 4 labels, 0 to 3 \(they count from 0\)"),
        (b"1 5 4\n1 9:1\n", "line 2 has feature 9; line 1 tells of 5 features, 0 to 4$"),
        (b"1 5 4\n1 5:1\n", r"has feature 5; .*\(they count from 0\)"),
        (b"1 5 4\n-1 0:1\n", "line 2 begins with '-1'; expected labels"),
        (b"1 5 4\n1,,2 0:1\n", "line 2 begins with '1,,2'"),
        (b"1 5 4\n1, 2 0:1\n", "line 2 begins with '1,'"),
        (b"1 5 4\n1.0 0:1\n", "line 2 begins with '1.0'"),
        (b"1 5 4\n1 0:1 2\n", "line 2 has '2'; expected feature:value"),
        (b"1 5 4\n1 0:1:2 3\n", "line 2 has '0:1:2'"),
        (b"1 5 4\n1 0: 1\n", "line 2 has '0:'"),
        (b"1 5 4\n1 0:nan\n", "line 2 has '0:nan'"),
        (b"1 5 4\n1 x:1\n", "line 2 has 'x:1'"),
        (b"1 5 4\n1 \xe9:1\n", r"line 2 has '.*xe9:1'"),
        (b"1 5 4\n1 0:1e39\n", r"line 2, feature 0 holds 1e\+39; expected a number that float32 can hold"),
        (b"1 5 4\n1 3:1 0:1 3:2\n", "line 2 has feature 3 twice"),
        (b"1 5 4\n1 12345678901:1\n", "line 2 has '12345678901:1'"),
        (b"1 5 4\n1 0:" + b"1" * 100_000 + b"x\n", "line 2 has '0:1111"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, content, message):
    (tmp_path / "rows.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_xmc(tmp_path / "rows.txt")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"rows\.txt cannot be read: No such file"):
        read_xmc(tmp_path / "rows.txt")


def test_splits_hold_the_rows_of_the_files(files):
    splits = load(files["train"], files["test"])
    assert splits.taxonomy.ids == tuple("012345")
    assert [len(rows) for rows in (splits.train, splits.val, splits.calib, splits.test)] == [120, 40, 40, 50]
    test = read_xmc(files["test"])
    start = test.rows.start_N1
    rows = [dict(zip(test.rows.index_P[a:b].tolist(), test.rows.value_P[a:b].tolist(), strict=True)) for a, b in pairwise(start)]
    np.testing.assert_array_equal(splits.test.x[:], splits.encoder.encode(rows))
    np.testing.assert_array_equal(splits.test.x[np.array([7, 3, 7])], splits.encoder.encode([rows[7], rows[3], rows[7]]))
    target_NK, mask_NK = splits.test.labels.dense()
    assert mask_NK.all()
    np.testing.assert_array_equal(np.nonzero(target_NK)[1], test.labels.column_P)
    assert encoder_from_json(splits.input.encoder) == splits.encoder


def test_the_files_and_the_rows_of_each_split_are_told(files):
    origin = load(files["train"], files["test"]).origin
    assert [file.name for file in origin.files] == ["train.txt", "test.txt"]
    numbers = np.concatenate([origin.row_numbers[name] for name in ("train", "val", "calib")])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(200))
    np.testing.assert_array_equal(origin.row_numbers["test"], np.arange(50))
    for name in SPLIT_NAMES:
        file = files["test" if name == "test" else "train"]
        number = int(origin.row_numbers[name][5])
        assert origin.where[name](5) == f"{file}, line {number + 2}", "line 1 tells how many rows there are"


def test_rows_stay_sparse(files):
    splits = load(files["train"], files["test"], max_tokens=10_000)
    x = splits.train.x
    assert isinstance(x, LazyArray)
    assert not isinstance(x, np.ndarray)
    assert x.shape == (120, 10_000, 2)
    assert x[:3].shape == (3, 10_000, 2)
    assert x[:3].dtype == x.dtype == np.float32


def test_the_longest_training_row_says_how_many_values_are_kept(tmp_path, caplog):
    train = write(tmp_path / "train.txt", ["0 1:1 2:3 3:2"] * 9 + ["1 1:1 4:0"])
    test = write(tmp_path / "test.txt", ["0 0:1 1:4 2:3 3:2", "1 1:1"])
    assert load(train, test).input.shape == (3, 2)
    with caplog.at_level(logging.INFO):
        splits = load(train, test, max_tokens=2, log_values=True, normalize="l2")
    assert "test: 1 of 2 rows have more than 2 values; the largest are kept" in caplog.text
    expected = np.log1p([4, 3]) / np.linalg.norm(np.log1p([4, 3]))
    np.testing.assert_allclose(splits.test.x[:1][0], [[1, expected[0]], [2, expected[1]]], rtol=1e-6)


def test_labels_without_a_positive_training_row_are_left_out_and_rows_without_a_label_are_negatives(tmp_path, caplog):
    train = write(tmp_path / "train.txt", ["1 0:1", "4,1 0:1", " 0:1", "4 0:1", "1 3:1", "4 2:1"] * 5)
    test = write(tmp_path / "test.txt", ["0,1 0:1", "5", "4 1:1", "3,5 1:1"])
    with caplog.at_level(logging.INFO):
        splits = load(train, test)
    assert splits.taxonomy.ids == ("1", "4")
    target_NK, mask_NK = splits.test.labels.dense()
    np.testing.assert_array_equal(target_NK, [[1, 0], [0, 0], [0, 1], [0, 0]])
    assert mask_NK.all()
    assert "train.txt: 5 of 30 rows have no label: negatives of every class" in caplog.text
    assert "4 of 6 labels have no positive row in train.txt and are left out, with 4 of 6 labels of test rows" in caplog.text


def test_names_become_names_or_ids(files, tmp_path):
    names = tmp_path / "labels.txt"
    names.write_text("\ufeffa\na/b\na/b/c\nünï\nx y\nz\n\n", encoding="utf-8")
    named = load(files["train"], files["test"], label_names=str(names))
    assert [(spec.id, spec.name) for spec in named.taxonomy][3:5] == [("3", "ünï"), ("4", "x y")]
    splits = load(files["train"], files["test"], label_names=str(names), ids="name")
    assert splits.taxonomy.ids == ("a", "a/b", "a/b/c", "ünï", "x y", "z")
    assert [spec.parent for spec in splits.taxonomy][:3] == ["", "a", "a/b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "has 2 lines; expected a name for each of 6 labels"),
        (b"a\nb\n\nd\ne\nf\n", "line 3 is empty; expected the name of label 2"),
        (b"a\nb\n\xe9\nd\ne\nf\n", "is not UTF-8 text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_wrong_names_are_refused(files, tmp_path, content, message):
    if content is not None:
        (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(files["train"], files["test"], label_names=str(tmp_path / "labels.txt"))


def test_one_file_has_a_share_for_test(files):
    splits = load(files["train"], fractions={"train": 0.5, "val": 0.2, "calib": 0.2, "test": 0.1})
    assert [len(rows) for rows in (splits.train, splits.val, splits.calib, splits.test)] == [100, 40, 40, 20]


def test_a_test_file_takes_the_place_of_its_share(files):
    splits = load(files["train"], files["test"], fractions={"train": 0.3, "val": 0.1, "calib": 0.1, "test": 0.5})
    assert [len(rows) for rows in (splits.train, splits.val, splits.calib, splits.test)] == [120, 40, 40, 50]
    assert splits.origin.rule.fractions == FRACTIONS


def test_settings_that_do_not_fit_are_refused(files, tmp_path, rng):
    other = write(tmp_path / "other.txt", sample_lines(rng, 20, num_features=19)[0], num_features=19)
    for settings, message in (
        ({"test": other}, r"other\.txt has 19 features and 6 labels, .*train\.txt has 20 and 6; expected the same"),
        ({"num_tokens": 19}, r"train\.txt has 20 features, data\.num_tokens is 19; expected at least as many"),
        ({"fractions": {"train": 0.5, "test": 0.5}}, "fractions names train, test; expected train, val, calib$"),
        ({"fractions": FRACTIONS, "test": None}, "fractions names train, val, calib; expected train, val, calib, test"),
        ({"ids": "name"}, "ids is 'name'; expected 'number', or 'name' with data.label_names=FILE"),
        ({"ids": "text"}, "ids is 'text'"),
        ({"fractions": {"train": 0.5, "val": 0.5, "calib": 0}}, "fractions must be positive"),
        ({"fractions": dict.fromkeys(SPLIT_NAMES, 0.5), "test": None}, r"split\.fractions must sum to 1"),
        ({"seed": -1}, "seed of the split must be a whole number of at least 0, got -1"),
    ):
        with pytest.raises(DataError, match=message):
            load(files["train"], **{"test": files["test"], **settings})
    bare = write(tmp_path / "bare.txt", [" 0:1"] * 9)
    with pytest.raises(DataError, match=r"bare\.txt: no row has a label"):
        load(bare, files["test"])


def test_every_class_has_a_training_row_however_rare_and_the_others_are_spread(tmp_path, rng):
    labels = [[label] for label in range(300)] + [[label % 3, 3] if label % 2 else [label % 3] for label in range(700)]
    lines = [f"{','.join(map(str, labels[n]))} 0:1" for n in rng.permutation(1000)]
    path = write(tmp_path / "rows.txt", lines, num_labels=300)
    splits, again, other = (load(path, fractions={**FRACTIONS, "train": 0.5, "test": 0.1}, seed=seed) for seed in (1, 1, 2))
    parts = [getattr(splits, name) for name in SPLIT_NAMES]
    assert sum(map(len, parts)) == 1000
    assert parts[0].labels.num_positives_K().min() == 1
    count_KS = np.stack([part.labels.num_positives_K() for part in parts], axis=1)[:4]
    assert np.abs(count_KS - count_KS.sum(axis=1, keepdims=True) * [0.5, 0.2, 0.2, 0.1]).max() <= 2
    rows = [s.origin.row_numbers for s in (splits, again, other)]
    assert all(np.array_equal(rows[0][name], rows[1][name]) for name in SPLIT_NAMES)
    assert not np.array_equal(rows[0]["train"], rows[2]["train"])


def test_rows_that_rare_classes_need_come_before_the_share(tmp_path):
    path = write(tmp_path / "rows.txt", [f"{label} 0:1" for label in range(90)] + ["0 0:1"] * 10, num_labels=90)
    splits = load(path, fractions={**FRACTIONS, "train": 0.5, "test": 0.1})
    assert len(splits.train) >= 90
    assert splits.train.labels.num_positives_K().min() == 1
