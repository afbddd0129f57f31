"""Cohort columns of the sources that have them: the cells of each row's own line, as texts, in every split."""

import json

import numpy as np
import pytest

from ovr.data.cohorts import check_names, cohort_of_cells, cohort_of_compact
from ovr.data.splits import SPLIT_NAMES
from ovr.errors import DataError
from tests.data import test_features, test_table, test_text

NUM_ROWS = 60
SEX = ["F", "M", ""]


def parts(splits):
    return [(name, getattr(splits, name)) for name in SPLIT_NAMES]


def table_rows():
    return [[n, -n / 3, SEX[n % 3], n % 4, ("a", "b")[n % 2]] for n in range(NUM_ROWS)]


@pytest.mark.parametrize("drop", [[], ["sex", "age"]])
def test_a_table_keeps_the_cells_of_each_row_as_texts(tmp_path, drop):
    path = test_table.write(tmp_path / "a.csv", table_rows(), header=("u", "v", "sex", "age", "label"))
    splits = test_table.load(path, cohorts=["sex", "age"], drop=drop)
    for name, rows in parts(splits):
        number_N = splits.origin.row_numbers[name]
        assert rows.cohorts["sex"].tolist() == [SEX[n % 3] for n in number_N]
        assert rows.cohorts["age"].tolist() == [str(n % 4) for n in number_N]
    assert [column.name for column in splits.encoder.columns] == ["u", "v", *([] if drop else ["sex", "age"])]
    assert set(splits.encoder.ignored) == set(drop)


def test_a_table_without_cohorts_is_encoded_as_with_them(tmp_path):
    path = test_table.write(tmp_path / "a.csv", table_rows(), header=("u", "v", "sex", "age", "label"))
    plain, with_cohorts = test_table.load(path), test_table.load(path, cohorts=["sex", "age"])
    assert plain.train.cohorts == {}
    assert plain.encoder == with_cohorts.encoder
    np.testing.assert_array_equal(plain.test.x, with_cohorts.test.x)


def test_a_dropped_cohort_of_a_second_file_is_spelled_as_in_it(tmp_path):
    header = ("u", "code", "label")
    files = {
        name: test_table.write(tmp_path / f"{name}.csv", [[n, cell, "ab"[n % 2]] for n in range(NUM_ROWS)], header=header)
        for name, cell in (("train", 7), ("test", "007"))
    }
    splits = test_table.load(files={**test_table.NO_FILES, **files}, cohorts=["code"], drop=["code"])
    assert set(splits.train.cohorts["code"]) == {"7"}
    assert set(splits.test.cohorts["code"]) == {"007"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_texts_keep_the_cells_of_each_row(tmp_path, kind):
    rows = [[text, label, n % 3 or None] for n, (text, label) in enumerate(test_text.some_rows(NUM_ROWS))]
    if kind == "csv":
        path = test_text.write_csv(tmp_path / "a.csv", rows, header=("text", "label", "age"))
    else:
        path = tmp_path / "a.jsonl"
        path.write_text("\n".join(json.dumps(dict(zip(("text", "label", "age"), row, strict=True))) for row in rows))
    splits = test_text.load(path, "source.cohorts=[age]")
    for name, part in parts(splits):
        assert part.cohorts["age"].tolist() == [str(n % 3 or "") for n in splits.origin.row_numbers[name]]


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_features_keep_an_array_or_a_column(tmp_path, kind):
    x = np.random.default_rng(0).normal(size=(NUM_ROWS, 3))
    y, site = np.arange(NUM_ROWS) % 3, np.array([f"site {n % 5}" for n in range(NUM_ROWS)])
    if kind == "npz":
        path = tmp_path / "a.npz"
        np.savez(path, x=x, y=y, site=site)
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({"x": x.tolist(), "y": y, "site": site.tolist()}), path)
    splits = test_features.load(path=path, cohorts=["site"])
    for name, part in parts(splits):
        assert part.cohorts["site"].tolist() == site[splits.origin.row_numbers[name]].tolist()


def test_an_absent_column_is_named_with_the_file_and_the_columns_there_are(tmp_path):
    path = test_table.write(tmp_path / "a.csv", table_rows(), header=("u", "v", "sex", "age", "label"))
    with pytest.raises(DataError, match=r"a\.csv has no column 'race' \(data\.source\.cohorts\); its columns are 'u', 'v', 'sex'"):
        test_table.load(path, cohorts=["race"])
    path = test_text.write_csv(tmp_path / "b.csv", test_text.some_rows())
    with pytest.raises(DataError, match=r"b\.csv, line 2 has no column 'race' .* its columns are 'text', 'label'"):
        test_text.load(path, "source.cohorts=[race]")
    np.savez(tmp_path / "c.npz", x=np.eye(9), y=np.arange(9) % 3)
    with pytest.raises(DataError, match=r"c\.npz has no column 'race' .* its columns are 'x', 'y'"):
        test_features.load(path=tmp_path / "c.npz", cohorts=["race"])
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(9, 2)))
    np.save(tmp_path / "y.npy", np.arange(9) % 3)
    with pytest.raises(DataError, match=r"x\.npy has no column 'race' .* expected a Parquet or an npz file"):
        test_features.load(path=tmp_path / "x.npy", labels=tmp_path / "y.npy", cohorts=["race"])


def test_an_array_that_is_not_one_cell_a_row_is_refused(tmp_path):
    np.savez(tmp_path / "c.npz", x=np.eye(9), y=np.arange(9) % 3, race=np.eye(9))
    with pytest.raises(DataError, match=r"'race' of data\.source\.cohorts has shape \(9, 9\); expected \(9,\)"):
        test_features.load(path=tmp_path / "c.npz", cohorts=["race"])


def test_numbers_dates_and_missing_cells_have_one_spelling():
    assert cohort_of_cells([3.0, 3, " a ", None, float("nan"), True, 0.5], "c", str).tolist() == [
        "3",
        "3",
        "a",
        "",
        "",
        "True",
        "0.5",
    ]
    times = np.array(["2024-05-31T12:00:00", "NaT"], "datetime64[us]")
    assert cohort_of_compact(times).tolist() == ["2024-05-31T12:00:00", ""]
    assert cohort_of_compact(np.array([1.0, np.nan, 2.5, 1.0])).tolist() == ["1", "", "2.5", "1"]
    with pytest.raises(DataError, match=r"1, cohort column 'c' holds \['a'\]; expected a text or a number"):
        cohort_of_cells(["a", ["a"]], "c", str)


@pytest.mark.parametrize("cohorts", ["sex", [1], [""], None])
def test_cohorts_are_a_list_of_names(cohorts):
    with pytest.raises(DataError, match=r"expected a list of columns"):
        check_names(cohorts)
    with pytest.raises(DataError, match=r"expected each column once"):
        check_names(["a", "a"])
