import csv

import numpy as np
import pytest

from ovr.data.table import load_table
from ovr.errors import DataError, TaxonomyError

FRACTIONS = {"train": 0.6, "val": 0.1, "calib": 0.15, "test": 0.15}
NO_FILES = dict.fromkeys(("train", "val", "calib", "test"))


def write(path, rows, header=("u", "v", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def load(path=None, files=NO_FILES, target="label", classes=(), fractions=FRACTIONS):
    return load_table(path=path, files=files, target=target, classes=classes, fractions=fractions, seed=0)


def some_rows(num_rows=60, ids=("x/y", "..", "日本")):
    return [[n, -n / 3, ids[n % len(ids)]] for n in range(num_rows)]


def test_one_file_is_split_and_its_ids_are_the_taxonomy(tmp_path):
    splits = load(write(tmp_path / "a.csv", some_rows()))
    assert splits.taxonomy.ids == tuple(sorted(("x/y", "..", "日本")))
    assert splits.input.columns == ("u", "v")
    seen = np.concatenate([rows.x[:, 0] for rows in (splits.train, splits.val, splits.calib, splits.test)])
    np.testing.assert_array_equal(np.sort(seen), np.arange(60))
    for rows in (splits.train, splits.test):
        expected = [splits.taxonomy.column(("x/y", "..", "日本")[int(n) % 3]) for n in rows.x[:, 0]]
        np.testing.assert_array_equal(rows.labels.dense()[0].argmax(axis=1), expected)


def test_a_file_a_split_is_taken_as_it_is_and_classes_may_be_given(tmp_path):
    files = {name: write(tmp_path / f"{name}.csv", some_rows(6 + k)) for k, name in enumerate(NO_FILES)}
    splits = load(files=files, classes=["日本", "..", "x/y"])
    assert splits.taxonomy.ids == ("日本", "..", "x/y")
    assert [len(splits.train), len(splits.val), len(splits.calib), len(splits.test)] == [6, 7, 8, 9]


def test_a_class_that_calibration_lacks_is_allowed(tmp_path):
    files = {name: write(tmp_path / f"{name}.csv", some_rows()) for name in NO_FILES}
    files["calib"] = write(tmp_path / "short.csv", some_rows(2))
    assert sorted(load(files=files).calib.labels.num_positives_K().tolist()) == [0, 1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; expected a header and rows"),
        ("u,v,label\n", "has a header but no rows"),
        ("u,v\n1,2\n", "one of them 'label'"),
        ("u,u,label\n1,2,a\n", "expected distinct names"),
        ("u,v,label\n1,2\n", "row 0: 2 cells; the header has 3"),
        ("u,v,label\n1,2,a\n\n1,2,b\n", "row 1: 0 cells; the header has 3"),
        ("\n\n", "is empty; expected a header and rows"),
        ("u,v,label\n1,two,a\n", "row 0, column 'v' holds 'two'; expected a finite number"),
        ("u,v,label\n" + "1,2,a\n" * 20 + "1,nan,a\n", "row 20, column 'v' holds 'nan'; expected a finite number"),
        ("u,v,label\n" + "1,2,a\n" * 20 + "1,inf,a\n", "row 20, column 'v' holds 'inf'; expected a finite number"),
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
    with pytest.raises(DataError, match=r"gone\.csv cannot be read as CSV: No such file"):
        load(str(tmp_path / "gone.csv"))
    (tmp_path / "latin.csv").write_bytes(b"u,label\n1,\xff\n")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        load(str(tmp_path / "latin.csv"))
    other = write(tmp_path / "other.csv", [[1, "a"]], header=("u", "label"))
    with pytest.raises(DataError, match=r"1 feature columns, .* has 2; missing \['v'\], extra none"):
        load(files={"train": good, "val": good, "calib": good, "test": other})


def test_labels_outside_the_taxonomy_are_named_with_their_row(tmp_path):
    with pytest.raises(DataError, match=r"row 2: labels outside the taxonomy of 2 classes: '日本'"):
        load(write(tmp_path / "a.csv", some_rows()), classes=["x/y", ".."])
    with pytest.raises(TaxonomyError, match="is there twice"):
        load(write(tmp_path / "a.csv", some_rows()), classes=["x/y", "x/y"])


def test_one_class_id_is_not_taken_for_a_list_of_letters(tmp_path):
    with pytest.raises(DataError, match=r"data.source.classes is 'yes'; expected a list, such as \[yes\]"):
        load(write(tmp_path / "a.csv", some_rows()), classes="yes")


def test_either_a_path_or_all_four_files(tmp_path):
    good = write(tmp_path / "good.csv", some_rows())
    for path, files in ((None, NO_FILES), (good, {**NO_FILES, "train": good}), (None, {**NO_FILES, "train": good})):
        with pytest.raises(DataError, match=r"give either data\.path"):
            load(path, files)
