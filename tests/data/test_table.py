import csv
import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from ovr.cli.conf import conf_dir
from ovr.data.table import load_table
from ovr.data.table_lookalikes import warn_of_lookalikes
from ovr.data.table_rows import TableRows
from ovr.errors import ArtifactError, DataError, InputError, TaxonomyError
from ovr.input.cells import Coded, Hashed, read_numbers
from ovr.input.columns import NumericColumn
from ovr.input.encoder import encoder_from_json
from ovr.input.table import TableEncoder

NO_FILES = dict.fromkeys(("train", "val", "calib", "test"))
IDS = ("x/y", "..", "日本")


def write(path, rows, header=("u", "v", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)
    return str(path)


def load(path=None, files=NO_FILES, target="label", **changes):
    cfg = OmegaConf.load(conf_dir() / "data" / "table.yaml")
    cfg = OmegaConf.create({"data": OmegaConf.merge(cfg, {"path": path, "files": files, "target": target, "source": changes})})
    source = OmegaConf.to_container(cfg, resolve=True)["data"]["source"]
    del source["_target_"]
    return load_table(**source)


def some_rows(num_rows=60, ids=IDS):
    return [[n, -n / 3, ids[n % len(ids)]] for n in range(num_rows)]


def parts(splits):
    return splits.train, splits.val, splits.calib, splits.test


def raw(rows, splits, name):
    """The column as it stood in the file."""
    column = next(column for column in splits.encoder.columns if column.name == name)
    return rows.x[:, splits.input.columns.index(name)] / column.scale + column.shift


def ids_of(splits, rows):
    return [splits.taxonomy[k].id for k in rows.labels.dense()[0].argmax(axis=1)]


def test_one_file_is_split_and_its_ids_are_the_taxonomy(tmp_path):
    splits = load(write(tmp_path / "a.csv", some_rows()))
    assert splits.taxonomy.ids == tuple(sorted(IDS))
    assert [spec.parent for spec in splits.taxonomy] == ["", "x", ""]
    assert splits.input.columns == ("u", "v")
    assert encoder_from_json(splits.input.encoder) == splits.encoder
    assert [file.name for file in splits.origin.files] == ["a.csv"]
    np.testing.assert_allclose(raw(splits.calib, splits, "u"), splits.origin.row_numbers["calib"], atol=1e-4)
    seen = np.concatenate([raw(rows, splits, "u") for rows in parts(splits)])
    np.testing.assert_allclose(np.sort(seen), np.arange(60), atol=1e-4)
    for rows in (splits.train, splits.test):
        assert ids_of(splits, rows) == [IDS[round(n) % 3] for n in raw(rows, splits, "u")]


def test_numbers_are_standardised_by_the_training_rows(tmp_path):
    splits = load(write(tmp_path / "a.csv", some_rows()))
    np.testing.assert_allclose(splits.train.x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(splits.train.x.std(axis=0), 1, atol=1e-6)


def test_a_file_a_split_is_taken_as_it_is_and_classes_may_be_given(tmp_path):
    files = {name: write(tmp_path / f"{name}.csv", some_rows(6 + k)) for k, name in enumerate(NO_FILES)}
    splits = load(files=files, classes=["日本", "..", "x/y"])
    assert splits.taxonomy.ids == ("日本", "..", "x/y")
    assert [len(rows) for rows in parts(splits)] == [6, 7, 8, 9]


def test_splits_without_a_file_are_parts_of_the_train_file(tmp_path):
    files = {"train": write(tmp_path / "train.csv", some_rows(60)), "test": write(tmp_path / "test.csv", some_rows(7))}
    splits = load(files={**NO_FILES, **files}, split={"fractions": {"train": 0.4, "val": 0.2, "calib": 0.2}})
    assert [len(rows) for rows in parts(splits)] == [30, 15, 15, 7]
    with pytest.raises(DataError, match="fractions must be positive for train, val, calib, got"):
        load(files={**NO_FILES, **files}, split={"fractions": {"val": None}})


@pytest.mark.parametrize("by", ["column", "group"])
def test_splits_by_a_column(tmp_path, by):
    names = [*NO_FILES]
    rows = [[*row, names[n % 4]] for n, row in enumerate(some_rows())]
    header = ("u", "v", "label", "part")
    path = write(tmp_path / "a.csv", rows, header=header)
    splits = load(path, split={"by": by, "column": "part"})
    assert splits.input.columns == ("u", "v")
    assert "part" in splits.encoder.ignored
    for rows_of_split in parts(splits):
        assert len(set(np.round(raw(rows_of_split, splits, "u")).astype(int) % 4)) == 1
    with pytest.raises(DataError, match=rf"split.column is None with split.by={by}"):
        load(path, split={"by": by})
    with pytest.raises(DataError, match=r"a\.csv has no column 'w'"):
        load(path, split={"by": by, "column": "w"})
    if by == "column":
        files = {**NO_FILES, "train": path, "test": path}
        with pytest.raises(DataError, match=r"column 'part' names the splits train, val, calib, test; expected train, val, calib"):
            load(files=files, split={"by": by, "column": "part"})


def test_splits_by_time_or_by_the_order_of_the_rows(tmp_path):
    rows = some_rows()
    splits = load(write(tmp_path / "a.csv", rows), split={"by": "time"})
    np.testing.assert_allclose(raw(splits.test, splits, "u"), np.arange(51, 60), atol=1e-4)
    header = ("u", "v", "label", "day")
    days = [[*row, str(np.datetime64("2024-01-01") + 59 - n)] for n, row in enumerate(rows)]
    path = write(tmp_path / "b.csv", days, header=header)
    splits = load(path, split={"by": "time", "column": "day"})
    np.testing.assert_allclose(raw(splits.test, splits, "u"), np.arange(9), atol=1e-4)
    assert splits.input.columns == ("u", "v")
    days[7][3] = ""
    with pytest.raises(DataError, match=r"c\.csv, line 9 \(row 7\), column 'day' holds .*; expected a number or a date"):
        load(write(tmp_path / "c.csv", days, header=header), split={"by": "time", "column": "day"})
    with pytest.raises(DataError, match=r"split.by is 'chance'; expected one of"):
        load(path, split={"by": "chance"})
    with pytest.raises(DataError, match="has no column 'w'"):
        load(path, split={"by": "time", "column": "w"})


def test_a_class_that_calibration_lacks_is_allowed(tmp_path):
    files = {name: write(tmp_path / f"{name}.csv", some_rows()) for name in NO_FILES}
    files["calib"] = write(tmp_path / "short.csv", some_rows(2))
    assert sorted(load(files=files).calib.labels.num_positives_K().tolist()) == [0, 1, 1]


def test_a_class_with_two_rows_has_one_of_them_in_training(tmp_path):
    splits = load(write(tmp_path / "a.csv", some_rows(100, ids=("a", "b")) + [[1, 2, "rare"]] * 2))
    counts = np.array([rows.labels.num_positives_K()[splits.taxonomy.column("rare")] for rows in parts(splits)])
    assert counts.sum() == 2
    assert counts[0] >= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; expected a header and rows"),
        ("u,v,label\n", "has a header but no rows"),
        ("u,v\n1,2\n", "has no column 'label'; its columns are 'u', 'v'"),
        ("label\na\n", "has no column beside 'label'; expected a feature"),
        ("u,u,label\n1,2,a\n", "expected distinct names"),
        ("u,v,label\n1,2\n", r"row 0\): 2 cells; the header has 3"),
        ("u,v,label\n1,2,a\n\n1,2,b\n", "line 3 is blank and rows follow it"),
        ("\n\n", "is empty; expected a header and rows"),
        ("u,v,label\n" + "1,2,a\n3,4,b\n" * 20 + "1,2,\n", r"line 42 \(row 40\) has no label in column 'label' \(1 such rows\)"),
        ("u,v,label\n" + "1,2,a\n" * 20, "no column tells the training rows apart: 'u': every training row has 1; 'v'"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, content, message):
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "bad.csv"))


def test_a_byte_order_mark_quotes_and_blank_lines_at_the_end_are_taken(tmp_path):
    (tmp_path / "a.csv").write_text('\ufeff"u","v","label"\r\n' + '"1","-2","a,""b"\r\n3,4,"c\nd"\r\n' * 20 + "\r\n\r\n")
    splits = load(str(tmp_path / "a.csv"))
    assert (splits.input.columns, splits.taxonomy.ids) == (("u", "v"), ('a,"b', "c\nd"))


def test_missing_files_undecodable_files_and_other_columns_are_named(tmp_path):
    good = write(tmp_path / "good.csv", some_rows())
    with pytest.raises(DataError, match=r"gone\.csv cannot be read: No such file"):
        load(str(tmp_path / "gone.csv"))
    (tmp_path / "latin.csv").write_bytes(b"u,label\n1,\xff\n")
    with pytest.raises(DataError, match=r"line 2 is not utf-8 text .* encoding=latin-1"):
        load(str(tmp_path / "latin.csv"))
    assert load(
        str((tmp_path / "latin.csv").write_bytes(b"u,label\n" + b"1,\xff\n2,b\n" * 9) and tmp_path / "latin.csv"),
        dialect={"encoding": "latin-1"},
    ).taxonomy.ids == ("b", "ÿ")
    other = write(tmp_path / "other.csv", [[1, "a"]], header=("u", "label"))
    with pytest.raises(
        DataError, match=r"other\.csv has no column 'v'; its columns .*; it is read as the train file .*good\.csv is"
    ):
        load(files={"train": good, "val": good, "calib": good, "test": other})
    more = write(tmp_path / "more.csv", [[1, 2, 3, "a"]], header=("u", "v", "w", "label"))
    with pytest.raises(DataError, match=r"more\.csv has columns that the train file .* has not: 'w'"):
        load(files={"train": good, "val": good, "calib": good, "test": more})


def test_labels_outside_the_taxonomy_are_named_with_their_row(tmp_path):
    with pytest.raises(DataError, match=r"line 4 \(row 2\): labels outside the taxonomy of 2 classes: '日本'"):
        load(write(tmp_path / "a.csv", some_rows()), classes=["x/y", ".."])
    with pytest.raises(TaxonomyError, match="is there twice"):
        load(write(tmp_path / "a.csv", some_rows()), classes=["x/y", "x/y"])


def test_one_class_id_is_not_taken_for_a_list_of_letters(tmp_path):
    with pytest.raises(DataError, match=r"data.source.classes is 'yes'; expected a list, such as \[yes\]"):
        load(write(tmp_path / "a.csv", some_rows()), classes="yes")


def test_either_a_path_or_files_with_one_for_training(tmp_path):
    good = write(tmp_path / "good.csv", some_rows())
    for path, files in ((None, NO_FILES), (good, {**NO_FILES, "train": good}), (None, {**NO_FILES, "test": good})):
        with pytest.raises(DataError, match=r"give either data\.path"):
            load(path, files)


MIXED = ("age", "job", "when", "empty", "same", "id", "label")


def mixed_rows(num_rows=200):
    rng = np.random.default_rng(0)
    rows = []
    for n in range(num_rows):
        age = "?" if n % 10 == 3 else int(rng.integers(18, 90))
        job = "" if n % 20 == 5 else ("clerk", "cook", "pilot")[n % 3]
        rows.append([age, job, str(np.datetime64("2020-01-01") + n), "NA", 7, f"row {n}", "ab"[n % 2]])
    return rows


def test_kinds_are_those_of_the_training_rows_and_columns_that_tell_nothing_are_left_out(tmp_path, caplog):
    with caplog.at_level("INFO"):
        splits = load(write(tmp_path / "a.csv", mixed_rows(), header=MIXED))
    assert [(column.name, column.kind) for column in splits.encoder.columns] == [
        ("age", "numeric"),
        ("job", "category"),
        ("when", "date"),
    ]
    assert splits.input.columns[:6] == ("age", "age is missing", "job=clerk", "job=cook", "job=pilot", "job is missing")
    assert splits.encoder.ignored == ("empty", "same", "id")
    for note in (
        "'empty' is left out: no training row",
        "'same' is left out: every training row has 7",
        "'id' is left out: no text",
    ):
        assert note in caplog.text
    assert np.isfinite(splits.test.x).all()


def test_kinds_may_be_given_and_columns_left_out(tmp_path):
    path = write(tmp_path / "a.csv", mixed_rows(), header=MIXED)
    splits = load(path, columns={"age": "category", "when": {"kind": "date", "out_of_range": "clip"}}, drop=["job", "id"])
    assert [(column.name, column.kind) for column in splits.encoder.columns] == [("age", "category"), ("when", "date")]
    assert splits.encoder.ignored == ("job", "id", "empty", "same")
    assert splits.encoder.columns[1].out_of_range == "clip"
    for changes, message in (
        ({"columns": {"job": "numeric"}}, r"line 2, column 'job' holds 'clerk'; expected a finite number"),
        ({"columns": {"job": "date"}}, r"line 2, column 'job' holds 'clerk'; expected a time of ISO 8601"),
        ({"columns": {"job": "word"}}, "column 'job' has kind 'word'; expected one of numeric, category, date"),
        ({"columns": {"job": {"sort": 1}}}, r"column 'job' has settings .*, got \['sort'\]"),
        ({"columns": {"jobs": "numeric"}}, "has no column 'jobs'"),
        ({"columns": {"label": "category"}}, "column 'label' is in data.target"),
        ({"drop": ["none"]}, "has no column 'none'"),
        ({"encoding": {"scale": "other"}}, "the scale of numbers is 'other'; expected one of standard, quantile"),
        ({"encoding": {"num_buckets": 2}}, "num_buckets is 2; expected a whole number of at least 3"),
    ):
        with pytest.raises(DataError, match=message):
            load(path, **changes)


def test_embedded_columns_end_a_row(tmp_path):
    cfg = {"embedded": ["job", "age"], "num_buckets": 100}
    path = write(tmp_path / "a.csv", mixed_rows(), header=MIXED)
    splits = load(path, encoding=cfg)
    assert splits.input.columns[-2:] == ("age", "job")
    assert set(splits.train.x[:, -1]) == {0, 2, 3, 4}
    for changes in ({"drop": ["job"]}, {"columns": {"job": "numeric"}}, {"encoding": {"embedded": ["label"]}}):
        with pytest.raises(DataError, match=r"is in data\.(embedded|target); it cannot be"):
            load(path, **{"encoding": cfg, **changes})


def test_a_text_that_first_comes_late_makes_the_column_a_category(tmp_path, monkeypatch):
    monkeypatch.setattr("ovr.data.compact.CHUNK_CELLS", 192)  # chunks of 64 rows
    rows = [[n % 5, n % 3, "ab"[n % 2]] for n in range(300)]
    for n in (290, 291, 292, 293):
        rows[n][0] = "007"
    for n in range(250, 300):
        rows[n][1] = "new"
    splits = load(files=dict.fromkeys(NO_FILES, write(tmp_path / "a.csv", rows)), columns={"u": "category"})
    assert splits.encoder.columns[0].categories == ("0", "007", "1", "2", "3", "4")
    assert splits.encoder.columns[1].categories == ("0", "1", "2", "new")
    rows[0][1] = "1970-01-01"
    rows[1:] = [[u, f"2020-01-{v + 1:02}" if v != "new" else v, label] for u, v, label in rows[1:]]
    splits = load(files=dict.fromkeys(NO_FILES, write(tmp_path / "a.csv", rows)))
    assert splits.encoder.columns[1].kind == "category"


def test_a_text_outside_the_training_rows_does_not_change_the_kind(tmp_path):
    rows = some_rows(100)
    rows[98][0] = "abc"
    with pytest.raises(DataError, match=r"line 100 \(row 98\), column 'u' holds 'abc'; expected a finite number"):
        load(write(tmp_path / "a.csv", rows), split={"by": "time"})
    train, test = write(tmp_path / "train.csv", some_rows(60)), write(tmp_path / "test.csv", rows)
    with pytest.raises(DataError, match=r"test\.csv, line 100, column 'u' holds 'abc'; expected a finite number"):
        load(files={**dict.fromkeys(NO_FILES, train), "test": test})


def test_a_column_of_numbers_but_for_few_texts_is_not_taken_for_a_category(tmp_path):
    rows = some_rows(100)
    rows[2][0] = rows[3][0] = "n/k"
    path = write(tmp_path / "a.csv", rows)
    message = (
        r"line 4 \(row 2\), column 'u' holds 'n/k', but 58 training rows hold numbers; correct the 2 .*columns=\{u: category\}"
    )
    with pytest.raises(DataError, match=message):
        load(path, split={"by": "time"})
    marked, as_text = load(path, encoding={"marks": ["n/k"]}), load(path, columns={"u": "category"})
    assert marked.encoder.columns[0].kind == "numeric"
    assert ("u", "numeric") not in [(column.name, column.kind) for column in as_text.encoder.columns]


def test_what_the_policies_refuse_is_logged_and_not_refused_here(tmp_path, caplog):
    rows = some_rows(100)
    splits = load(write(tmp_path / "a.csv", rows), split={"by": "time"}, encoding={"out_of_range": "error"})
    assert "test split: 15 of 15 rows would be refused: column 'u', out of range" in caplog.text
    assert len(splits.test) == 15


def test_the_census_dialect_no_header_a_stray_line_question_marks_and_full_stops(tmp_path):
    rows = ["39, State-gov, ?, <=50K", "50, Private, 13, >50K", "?, Private, 9, <=50K"] * 20
    (tmp_path / "a.data").write_text("\n".join(rows) + "\n\n")
    (tmp_path / "a.test").write_text("|1x3 Cross validator\n" + "\n".join(row + "." for row in rows) + "\n\n")
    splits = load(
        files={**NO_FILES, "train": str(tmp_path / "a.data"), "test": str(tmp_path / "a.test")},
        target="income",
        names=["age", "work", "years", "income"],
        dialect={"delimiter": ",", "header": False, "strip": True, "comment": "|"},
        labels={"strip": "."},
    )
    assert splits.taxonomy.ids == ("<=50K", ">50K")
    assert (len(splits.test), splits.test.labels.num_positives_K().tolist()) == (60, [40, 20])
    assert {column.kind for column in splits.encoder.columns} == {"numeric", "category"}


def test_several_labels_in_a_cell(tmp_path):
    rows = [[n, 0, ("a|b/c", "b/c", "a")[n % 3]] for n in range(60)]
    splits = load(write(tmp_path / "a.csv", rows), labels={"separator": "|"})
    assert [(spec.id, spec.parent) for spec in splits.taxonomy] == [("a", ""), ("b/c", "b")]
    target_NK, mask_NK = splits.train.labels.dense()
    expected = [[n % 3 != 1, n % 3 != 2] for n in np.round(raw(splits.train, splits, "u")).astype(int)]
    np.testing.assert_array_equal(target_NK, expected)
    assert mask_NK.all()


def test_a_json_list_in_a_cell_is_several_labels(tmp_path):
    rows = [[n, 0, ('["a", "b/c"]', " [7]", "a", "[]")[n % 4]] for n in range(80)]
    splits = load(write(tmp_path / "a.csv", rows), labels={"separator": "json", "unlabelled": "negative"})
    assert splits.taxonomy.ids == ("7", "a", "b/c")
    number_N = np.round(raw(splits.train, splits, "u")).astype(int) % 4
    expected = np.array([[0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]])[number_N]
    np.testing.assert_array_equal(splits.train.labels.dense()[0], expected)


@pytest.mark.parametrize(
    ("cell", "separator", "message"),
    [
        ('["a", "b"]', None, r'a.csv, line 4 .*has a JSON list of labels, \["a", "b"\]; .* set data.source.labels.separator=json'),
        ("[a, b]", "json", r"a.csv, line 4 .*has the label \[a, b\], which is no JSON list of texts or whole numbers"),
        ("[1.5]", "json", r"has the label \[1.5\], which is no JSON list of texts or whole numbers"),
    ],
)
def test_a_list_where_none_is_expected_and_no_list_where_one_is_are_refused(tmp_path, cell, separator, message):
    rows = [[n, 0, cell if n == 2 else "a"] for n in range(40)]
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.csv", rows), labels={"separator": separator})


def test_an_id_may_begin_as_a_list_does(tmp_path):
    rows = [[n, 0, ("[a", "[b]", "[1.5]")[n % 3]] for n in range(60)]
    assert load(write(tmp_path / "a.csv", rows)).taxonomy.ids == ("[1.5]", "[a", "[b]")
    rows = [[n, 0, ("[1, 2]", "[3, 4]")[n % 2]] for n in range(60)]
    assert load(write(tmp_path / "b.csv", rows), labels={"separator": "|"}).taxonomy.ids == ("[1, 2]", "[3, 4]")


@pytest.mark.parametrize(("unlabelled", "known"), [("unknown", False), ("negative", True)])
def test_rows_without_a_label(tmp_path, unlabelled, known):
    rows = [[n, 0, ("", "a", "b")[n % 3]] for n in range(60)]
    splits = load(write(tmp_path / "a.csv", rows), labels={"unlabelled": unlabelled})
    target_NK, mask_NK = splits.train.labels.dense()
    without = np.round(raw(splits.train, splits, "u")).astype(int) % 3 == 0
    assert without.any()
    assert not target_NK[without].any()
    assert (mask_NK[without] == known).all()
    assert mask_NK[~without].all()


def test_a_column_a_class(tmp_path):
    rows = [[n, n % 2, "" if n % 10 == 7 else int(n % 3 == 0)] for n in range(60)]
    path = write(tmp_path / "a.csv", rows, header=("u", "odd", "third"))
    splits = load(path, target=["third", "odd"], labels={"unlabelled": "unknown"})
    assert splits.taxonomy.ids == ("third", "odd")
    assert splits.input.columns == ("u",)
    n_N = np.round(raw(splits.train, splits, "u")).astype(int)
    target_NK, mask_NK = splits.train.labels.dense()
    np.testing.assert_array_equal(mask_NK[:, 0], n_N % 10 != 7)
    np.testing.assert_array_equal(target_NK[:, 0], (n_N % 3 == 0) & (n_N % 10 != 7))
    np.testing.assert_array_equal(target_NK[:, 1], n_N % 2 == 1)
    with pytest.raises(DataError, match=r"line 9 \(row 7\), column 'third' holds neither 0 nor 1 \(6 such rows\)"):
        load(path, target=["third", "odd"])
    with pytest.raises(DataError, match=r"line 4 \(row 2\), column 'u' holds 2; expected 0 or 1"):
        load(path, target=["u", "odd"])
    with pytest.raises(DataError, match=r"column 'label' holds 'x/y'; expected 0 or 1"):
        load(write(tmp_path / "b.csv", some_rows()), target=["label"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": []}, "expected a column of class ids, or a list of distinct 0/1 columns"),
        ({"labels": {"unlabelled": "drop"}}, "unlabelled is 'drop'; expected one of error, unknown, negative"),
        ({"target": ["u"], "labels": {"separator": ";"}}, "labels.separator is ';'; expected characters, with data.target=COLUMN"),
        ({"target": ["u"], "classes": ["z"]}, "class 'z' of data.source.classes is none of the 0/1 columns 'u'"),
    ],
)
def test_label_settings_are_checked(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.csv", some_rows()), **changes)


def test_large_tables_are_encoded_when_rows_are_asked_for(tmp_path):
    path = write(tmp_path / "a.csv", mixed_rows(), header=MIXED)
    dense, lazy = load(path), load(path, max_encoded_bytes=100)
    for rows, other in zip(parts(dense), parts(lazy), strict=True):
        np.testing.assert_array_equal(other.x[:], rows.x)
        np.testing.assert_array_equal(other.x[np.array([3, 0])], rows.x[[3, 0]])
    table_rows = TableRows(lazy.encoder, {}, np.arange(3))
    assert (len(table_rows), table_rows.shape, table_rows.dtype) == (3, (3, lazy.encoder.tensor.size), np.float32)


def test_a_column_of_very_many_texts_is_kept_as_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr("ovr.data.compact.MAX_TEXTS", 50)
    monkeypatch.setattr("ovr.data.compact.CHUNK_CELLS", 100)
    rows = [["" if n % 50 == 9 else f"name {n % 150}", n % 7, "ab"[n % 2]] for n in range(400)]
    splits = load(write(tmp_path / "a.csv", rows))
    column = splits.encoder.columns[0]
    assert (column.layout, column.num_buckets, column.missing_place) == ("hashed", 256, True)
    for n in (0, 9, 399):  # as records, where texts are at hand
        record = {"u": rows[n][0], "v": rows[n][1]}
        x = splits.encoder.encode([record])
        assert any((x == part.x).all(axis=1).any() for part in parts(splits))


def test_ten_thousand_columns(tmp_path):
    rng = np.random.default_rng(0)
    rows = [[*(f"{value:.2f}" for value in rng.normal(size=10_000)), "ab"[n % 2]] for n in range(60)]
    splits = load(write(tmp_path / "a.csv", rows, header=[*(f"c{d}" for d in range(10_000)), "label"]))
    assert splits.train.x.shape == (36, 10_000)
    assert encoder_from_json(json.loads(json.dumps(splits.encoder.to_json()))).encode(
        [{f"c{d}": cell for d, cell in enumerate(rows[0][:-1])}]
    ).shape == (1, 10_000)


def parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=17)
    return str(path)


def parquet_columns(num_rows=60):
    pyarrow = pytest.importorskip("pyarrow")
    n = range(num_rows)
    times = [None if k == 4 else datetime(2024, 1, 1) + timedelta(hours=3 * k) for k in n]
    return {
        "number": [None if k == 0 else k / 7 for k in n],
        "whole": pyarrow.array([None if k == 1 else k for k in n], pyarrow.int32()),
        "flag": [None if k == 2 else k % 3 == 0 for k in n],
        "coded": pyarrow.array([None if k == 3 else ("red", "green")[k % 2] for k in n]).dictionary_encode(),
        "moment": pyarrow.array(times, pyarrow.timestamp("ms")),
        "label": [k % 2 for k in n],
    }


def test_parquet(tmp_path):
    columns = parquet_columns()
    path = parquet(tmp_path / "a.parquet", **columns)
    splits = load(path)
    assert splits.taxonomy.ids == ("0", "1")
    kinds = {column.name: column.kind for column in splits.encoder.columns}
    assert kinds == {"number": "numeric", "whole": "numeric", "flag": "category", "coded": "category", "moment": "date"}
    records = [dict(zip(columns, row, strict=True)) for row in zip(*map(_listed, columns.values()), strict=True)]
    for record in records:
        del record["label"]
    encoded = splits.encoder.encode(records)  # what a user sends is encoded as what was read
    read = np.concatenate([rows.x for rows in parts(splits)])
    np.testing.assert_array_equal(read[np.lexsort(read.T)], encoded[np.lexsort(encoded.T)])


def _listed(column):
    return column.to_pylist() if hasattr(column, "to_pylist") else column


def test_parquet_columns_of_other_kinds(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    columns = parquet_columns()
    texts = [["1", "2.5"][k % 2] for k in range(60)]
    path = parquet(tmp_path / "a.parquet", **columns, texts=texts)
    splits = load(path, columns={"whole": "category", "texts": "numeric"}, drop=["moment"])
    kinds = {column.name: column.kind for column in splits.encoder.columns}
    assert (kinds["whole"], kinds["texts"]) == ("category", "numeric") if "whole" in kinds else kinds["texts"] == "numeric"
    with pytest.raises(DataError, match=r"row 0, column 'coded' holds 'red'; expected a finite number"):
        load(path, columns={"coded": "numeric"})
    with pytest.raises(DataError, match=r"column 'moment' holds timestamp\[ms\]; expected numbers"):
        load(path, columns={"moment": "numeric"})
    with pytest.raises(DataError, match="column 'number' holds double; expected times"):
        load(path, columns={"number": "date"})
    odd = parquet(tmp_path / "b.parquet", **columns, odd=pyarrow.array([[1]] * 60))
    with pytest.raises(DataError, match=r"column 'odd' is of type list<.*; expected .*data.source.drop=\[odd\]"):
        load(odd)
    endless = parquet(tmp_path / "c.parquet", u=[float("inf")] * 3, label=["a"] * 3)
    with pytest.raises(DataError, match="column 'u' holds inf; expected finite numbers"):
        load(endless)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load(write(tmp_path / "no.parquet", some_rows()))
    with pytest.raises(DataError, match="has no rows"):
        load(parquet(tmp_path / "d.parquet", u=pyarrow.array([], pyarrow.float64()), label=pyarrow.array([], pyarrow.string())))


def test_parquet_lists_of_labels(tmp_path):
    labels = [(["a", "b"], ["b"], [])[k % 3] for k in range(60)]
    path = parquet(tmp_path / "a.parquet", u=[float(k) for k in range(60)], label=labels)
    splits = load(path, labels={"unlabelled": "negative"})
    n_N = np.round(raw(splits.train, splits, "u")).astype(int)
    np.testing.assert_array_equal(splits.train.labels.dense()[0], [[n % 3 == 0, n % 3 != 2] for n in n_N])


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'ovr\[data\]'"):
        load(str(tmp_path / "a.parquet"))


PEAK = """
import resource, sys
sys.path.insert(0, {tests!r})
from tests.data.test_table import load
def held(kind): return int(next(line for line in open("/proc/self/status") if line.startswith(kind)).split()[1]) * 1024
before = held("VmHWM")
if {limit}:  # of what is not mapped from a file
    resource.setrlimit(resource.RLIMIT_DATA, (held("VmData") + {limit},) * 2)
splits = load({path!r}, max_encoded_bytes=1, memory_mib={memory_mib})
print(held("VmHWM") - before, sum(map(len, (splits.train, splits.val, splits.calib, splits.test))))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """31 MB of 3.6 million cells, which as Python strings would take 60 bytes each; as arrays they take 8 and less."""
    path, rng = tmp_path_factory.mktemp("large") / "large.csv", np.random.default_rng(0)
    lines = [",".join([*(f"{value:.6f}" for value in rng.normal(size=24)), f"town {n % 90}", "ab"[n % 2]]) for n in range(2000)]
    with path.open("w") as file:
        file.write(",".join([*(f"c{d}" for d in range(24)), "town", "label"]) + "\n")
        for _ in range(70):
            file.write("\n".join(lines) + "\n")
    return path


def in_fresh_process(path, *, limit, memory_mib):
    script = PEAK.format(tests=str(Path(__file__).parents[2]), path=str(path), limit=limit, memory_mib=memory_mib)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_large_file_is_read_in_memory_of_its_size_and_not_of_its_cells_as_python_objects(large):
    done = in_fresh_process(large, limit=0, memory_mib=1024)
    peak, num_rows = map(int, done.stdout.split())
    assert num_rows == 140_000
    size = large.stat().st_size
    assert peak < size + 64e6, f"{peak / 1e6:.0f} MB for a file of {size / 1e6:.0f} MB"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit of memory is Linux's")
def test_columns_on_disk_take_no_memory(large):
    limit = 46 << 20  # labels, row numbers, a chunk of cells and a block of encoded rows; with the cells it takes over 56
    assert "MemoryError" in in_fresh_process(large, limit=limit, memory_mib=1024).stderr
    done = in_fresh_process(large, limit=limit, memory_mib=0)
    assert done.stdout.split()[1:] == ["140000"], done.stderr


def test_classes_may_be_called_as_missing_cells_are(tmp_path):
    ids = ["NA", "null", "nan", "?"]
    path = write(tmp_path / "a.csv", [[n, "NA" if n % 9 == 0 else n % 5, ids[n % 4]] for n in range(80)])
    splits = load(path)
    assert splits.taxonomy.ids == ("?", "NA", "nan", "null")
    assert splits.input.columns[-1] == "v is missing"
    with pytest.raises(DataError, match=r"line 5 \(row 3\) has no label in column 'label' \(20 such rows\)"):
        load(path, labels={"marks": ["", "?"]})
    with pytest.raises(DataError, match=r"labels\.marks is '\?'; expected a list of texts"):
        load(path, labels={"marks": "?"})


def test_dates_and_decimal_commas_that_are_not_read_are_told_with_the_cure(tmp_path, caplog):
    header = ("when", "price", "u", "label")
    rows = [[f"{n % 28 + 1:02}.{n % 12 + 1:02}.{1990 + n}", f"{n}.{n % 1000:03},{n % 10}5", n, IDS[n % 3]] for n in range(1, 61)]
    path = write(tmp_path / "a.csv", rows, header=header)
    load(path)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "column 'when' is left out, and its texts look like dates ('02.02.1991'), which " in warned[0]
    assert "'data.source.columns={when: {kind: date, formats: [\"%d.%m.%Y\"]}}' reads" in warned[0]
    assert "column 'price' is left out, and its texts look like numbers with a decimal comma ('1.001,15')" in warned[1]
    assert "'data.source.dialect.decimal=\",\"' reads" in warned[1]
    caplog.clear()
    splits = load(path, columns={"when": {"kind": "date", "formats": ["%d.%m.%Y"]}}, dialect={"decimal": ","})
    assert [column.kind for column in splits.encoder.columns] == ["date", "numeric", "numeric"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    price = splits.encoder.columns[1]
    assert 1000 < price.low < price.high < 60061
    row = {"when": "02.02.1991", "u": 1}
    encoder = TableEncoder.from_json(splits.encoder.to_json())
    np.testing.assert_array_equal(encoder.encode([{**row, "price": "1.001,15"}]), encoder.encode([{**row, "price": 1001.15}]))
    with pytest.raises(InputError, match=r"column 'price' holds '1001\.15'; expected a finite number"):
        encoder.encode([{**row, "price": "1001.15"}])
    assert "decimal" not in load(write(tmp_path / "b.csv", some_rows())).encoder.to_json()


@pytest.mark.parametrize(
    ("text", "format"),
    [("2024/01/31", "%Y/%m/%d"), ("01/31/2024", "%m/%d/%Y"), ("31-1-24", "%d-%m-%y"), ("31.01.2024 7:05", "%d.%m.%Y %H:%M")],
)
def test_the_form_of_a_date_is_told(caplog, text, format):
    warn_of_lookalikes("t", Hashed(np.zeros(3, np.int64), (text,)), (), is_left_out=False)
    assert f"column 't' is read as categories, and its texts look like dates ({text!r})" in caplog.text
    assert f'formats: ["{format}"]' in caplog.text
    datetime.strptime(text, format)


def test_names_and_versions_look_like_no_dates(caplog):
    warn_of_lookalikes("t", Coded(np.zeros(3, np.int32), ["1.2.3.4", "a", "12"]), (), is_left_out=True)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,5", 1.5),
        (" -1.234.567,25 ", -1234567.25),
        ("12", 12),
        ("1.000", 1000),
        ("1,5e3", 1500),
        ("n,a", None),
        ("1.5", None),
        ("1,2,3", None),
    ],
)
def test_numbers_with_a_decimal_comma(text, value):
    value_N, bad_P = read_numbers([text], (), ",")
    assert value_N.tolist() == [value] if value is not None else bad_P.tolist() == [0]
    with pytest.raises(ArtifactError, match=r"the decimal of a table is ';'; expected '\.' or ','"):
        TableEncoder((NumericColumn("a", 0, 0, 1, 0, 9, True),), decimal=";")


def test_the_cells_of_test_rows_are_shown_as_they_were_read(tmp_path):
    rows = [[n, "xyz"[n % 3], IDS[n % 3]] for n in range(60)]
    for limit in ({}, {"max_encoded_bytes": 0}):
        splits = load(write(tmp_path / "a.csv", rows), **limit)
        assert list(splits.origin.shown) == ["test"]
        for row, number in enumerate(splits.origin.row_numbers["test"]):
            assert splits.origin.shown["test"](row) == {"u": float(number), "v": "xyz"[number % 3]}
