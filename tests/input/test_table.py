import json
from dataclasses import replace
from datetime import date, datetime
from time import process_time

import numpy as np
import pytest

from ovr.errors import ArtifactError, DataError, InputError
from ovr.input.cells import Coded, Hashed, read_numbers, text_hash
from ovr.input.columns import CategoryColumn, NumericColumn, time_parts
from ovr.input.encoder import encoder_from_json
from ovr.input.records import records_of
from ovr.input.table import TableEncoder
from ovr.input.table_fit import ColumnSettings, TableSettings, fit_table, kind_of

COLUMNS = {
    "age": ["31", "?", "52", "40", "40", "18"],
    "job": ["cook", "clerk", "", "clerk", "cook", "pilot"],
    "when": ["2024-01-31", "2024-02-29T12:00", "2023-06-01", "2024-01-31", "", "2022-12-24"],
}


def fit(columns=COLUMNS, own=None, **settings):
    own = {name: ColumnSettings.of(name, value) for name, value in (own or {}).items()}
    return fit_table(columns.items(), settings=TableSettings(**settings), columns=own)[0]


def value(encoder, row, label):
    return float(encoder.encode([row])[0, encoder.tensor.columns.index(label)])


ROW = {"age": 40, "job": "cook", "when": "2024-01-31"}


def test_numbers_are_standardised_and_missing_ones_are_the_median_with_a_flag():
    encoder = fit()
    ages = np.array([31, 52, 40, 40, 18])
    for age in (18, 31.5, "40", " 52 ", np.float32(40)):
        expected = (float(age) - ages.mean()) / ages.std()
        assert value(encoder, {**ROW, "age": age}, "age") == pytest.approx(expected, rel=1e-6)
    for missing in (None, "", "?", "NA", float("nan"), " ? "):
        assert value(encoder, {**ROW, "age": missing}, "age") == pytest.approx((40 - ages.mean()) / ages.std(), rel=1e-6)
        assert value(encoder, {**ROW, "age": missing}, "age is missing") == 1
    assert value(encoder, ROW, "age is missing") == 0


def test_a_category_has_a_place_and_so_have_the_rare_the_unknown_and_the_missing():
    encoder = fit()
    labels = ["job=clerk", "job=cook", "job is unknown", "job is missing"]
    assert [name for name in encoder.tensor.columns if name.startswith("job")] == labels
    for cell, place in (("clerk", 0), (" cook", 1), ("pilot", 2), ("never seen", 2), (None, 3), ("?", 3)):
        got = [value(encoder, {**ROW, "job": cell}, label) for label in labels]
        assert got == [place == p for p in range(4)]


def test_without_a_rare_category_or_a_missing_one_in_training_there_is_no_place_for_them_and_the_row_is_zero():
    encoder = fit({"job": ["a", "b"] * 4})
    assert encoder.tensor.columns == ("job=a", "job=b")
    np.testing.assert_array_equal(encoder.encode({"job": ["a", "c", None]}), [[1, 0], [0, 0], [0, 0]])


def test_many_categories_are_hashed_alike_on_every_machine():
    texts = [f"town {n % 40}" for n in range(120)]
    encoder = fit({"town": texts}, max_categories=30, num_buckets=16)
    x = encoder.encode({"town": ["town 7", "elsewhere"]})
    assert x.shape == (2, 16)
    assert (x.sum(axis=1) == 1).all()
    assert x[0].argmax() == text_hash("town 7") % 16
    assert text_hash("town 7") == 2743857482
    np.testing.assert_array_equal(x, encoder.encode({"town": Hashed(np.array([text_hash("town 7"), text_hash("elsewhere")]))}))


def test_an_index_of_an_embedding_comes_last_and_counts_missing_and_unknown():
    encoder = fit(embedded=("job",), num_buckets=8)
    assert encoder.tensor.columns[-1] == "job"
    assert [value(encoder, {**ROW, "job": cell}, "job") for cell in (None, "never seen", "pilot", "clerk", "cook")] == [
        0,
        1,
        1,
        2,
        3,
    ]
    encoder = fit({"town": [f"town {n % 40}" for n in range(120)]}, embedded=("town",), num_buckets=16)
    got = encoder.encode({"town": ["town 7", None]})
    np.testing.assert_array_equal(got, [[2 + text_hash("town 7") % 14], [0]])
    kept = fit({"a": ["x"] * 3, "b": [""] * 3, "c": list("uvw")}, embedded=("a", "b", "c"), num_buckets=8)
    assert kept.tensor.columns == ("a", "b", "c")
    np.testing.assert_array_equal(kept.encode([{"a": "x", "b": None, "c": None}]), [[2, 0, 0]])


def test_dates_are_the_year_and_points_on_circles():
    encoder = fit()
    labels = [name for name in encoder.tensor.columns if name.startswith("when")]
    assert labels[:3] == ["when year", "when month sin", "when month cos"]
    assert labels[-1] == "when is missing"
    for cell in ("2024-02-29T12:00", datetime(2024, 2, 29, 12), "2024-02-29T13:00+01:00"):
        at = {label: value(encoder, {**ROW, "when": cell}, label) for label in labels}
        assert at["when month sin"] == pytest.approx(np.sin(2 * np.pi / 12), abs=1e-6)
        assert at["when weekday cos"] == pytest.approx(np.cos(2 * np.pi * 3 / 7), abs=1e-6)  # a Thursday
        assert at["when hour cos"] == pytest.approx(-1)
    assert value(encoder, {**ROW, "when": date(2024, 1, 31)}, "when hour cos") == 1
    assert value(encoder, {**ROW, "when": None}, "when is missing") == 1
    parts = time_parts(np.array([0.0]))  # 1970-01-01, a Thursday
    assert (parts["year"][0], parts["month cos"][0]) == (1970, 1)
    assert time_parts(np.array([(datetime(2023, 7, 2, 12) - datetime(1970, 1, 1)).total_seconds()]))["year"][0] == 2023.5


def test_dates_of_given_forms_only():
    days = ["31.01.2024", "01.02.2024", "24.12.2022", "24.12.2022"]
    encoder = fit({"when": days}, own={"when": {"kind": "date", "formats": ["%d.%m.%Y"]}})
    assert value(encoder, {"when": "31.01.2024"}, "when month cos") == pytest.approx(1)
    with pytest.raises(InputError, match=r"row 0, column 'when' holds '2024-01-31'; expected a time of the form %d.%m.%Y"):
        encoder.encode([{"when": "2024-01-31"}])
    with pytest.raises(InputError, match=r"column 'when' holds '20240131'; expected a time of ISO 8601, such as 2024-01-31"):
        fit().encode([{**ROW, "when": "20240131"}])


def test_normal_scores_do_not_mind_outliers():
    rng = np.random.default_rng(0)
    values = np.exp(3 * rng.normal(size=2000))
    encoder = fit({"v": values}, scale="quantile")
    x_N = encoder.encode({"v": values})[:, 0]
    assert np.abs(x_N).max() < 4.5
    assert abs(np.median(x_N)) < 0.02
    assert (np.diff(x_N[np.argsort(values)]) >= 0).all()
    assert x_N.std() == pytest.approx(1, abs=0.01)
    beyond = encoder.encode({"v": [values.max() * 1e9]})[0, 0]
    assert beyond == x_N.max()
    many_zeros = np.where(np.arange(2000) % 10, 0, values)
    assert np.isfinite(fit({"v": many_zeros}, scale="quantile").encode({"v": many_zeros})).all()


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("age", "forty", r"row 1, column 'age' holds 'forty'; expected a finite number"),
        ("age", "1_000", r"holds '1_000'; expected a finite number"),
        ("age", "inf", r"holds 'inf'; expected a finite number"),
        ("age", float("inf"), r"holds inf; expected a finite number"),
        ("age", True, r"holds True; expected a finite number"),
        ("age", [1], r"holds \[1\]; expected a finite number"),
        ("age", datetime(2024, 1, 1), r"expected a finite number"),
        ("age", 10**400, r"expected a finite number"),
        ("when", "yesterday", r"row 1, column 'when' holds 'yesterday'; expected a time of ISO 8601"),
        ("when", 3, r"column 'when' holds 3; expected a time of ISO 8601"),
        ("job", {"a": 1}, r"row 1, column 'job' holds \{'a': 1\}; expected a text"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named_whatever_the_policy(name, cell, message):
    encoder = fit()
    rows = [ROW, {**ROW, name: cell}]
    with pytest.raises(InputError, match=message):
        encoder.encode(rows)
    check = encoder.check(rows)
    assert (check.num_rows, check.num_passed, check.failed_P.tolist()) == (2, 1, [1])
    assert check.counts() == {(name, "unreadable"): 1}


def test_every_refused_row_is_told_with_its_own_cell():
    encoder = fit()
    rows = [ROW, {**ROW, "age": "old"}, ROW, {**ROW, "age": "young", "when": 3}]
    assert encoder.problems(rows) == {
        1: "column 'age' holds 'old'; expected a finite number",
        3: "column 'age' holds 'young'; expected a finite number; "
        "column 'when' holds 3; expected a time of ISO 8601, such as 2024-01-31",
    }


@pytest.mark.parametrize("row", [ROW, {name: str(cell) for name, cell in ROW.items()}])
def test_a_single_row_is_refused_as_columns(row):
    for take in (fit().encode, lambda rows: records_of(rows, "table")):
        with pytest.raises(InputError, match=r"rows are a mapping whose column '.*' is .*; .* for one row give \[row\], a list"):
            take(row)


def test_what_training_had_not_is_counted_and_refused_where_the_policy_says_so():
    columns = {"n": [1.0, 2.0, 3.0, 4.0], "c": ["a", "b", "a", "b"], "t": ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-05"]}
    rows = [{"n": 9, "c": "z", "t": "2030-01-01"}, {"n": None, "c": None, "t": None}, {"n": 1, "c": "a", "t": "2024-01-02"}]
    lenient = fit(columns)
    assert lenient.encode(rows).shape[0] == 3
    check = lenient.check(rows)
    assert check.num_passed == 3
    reasons = {("n", "out of range"), ("c", "unknown"), ("t", "out of range"), ("n", "missing"), ("c", "missing"), ("t", "missing")}
    assert check.counts() == dict.fromkeys(reasons, 1)
    strict = fit(columns, unknown="error", out_of_range="error", missing="error")
    assert strict.check(rows).failed_P.tolist() == [0, 1]
    assert strict.encode(rows[2:]).shape[0] == 1
    for name, message in (
        ("n", r"row 0, column 'n' holds 9; expected 1 to 4, as in the training rows"),
        ("c", r"row 0, column 'c' holds 'z'; expected one of 'a', 'b'"),
        ("t", r"row 0, column 't' holds '2030-01-01'; expected 2024-01-01T00:00:00 to 2024-01-05T00:00:00"),
    ):
        with pytest.raises(InputError, match=message):
            strict.encode([{**rows[2], name: rows[0][name]}])
        with pytest.raises(InputError, match=rf"row 0, column '{name}' holds None; expected .*, as in every training row"):
            strict.encode([{**rows[2], name: None}])
    some = fit(columns, own={"n": {"out_of_range": "clip"}, "c": {"unknown": "error"}, "t": {"out_of_range": "clip"}})
    np.testing.assert_array_equal(
        some.encode([{"n": 99, "c": "a", "t": "2050-01-01"}]), some.encode([{"n": 4, "c": "a", "t": "2024-01-05"}])
    )


def test_many_wrong_cells_are_one_error():
    rows = [{**ROW, "age": "x", "when": "y"}] * 5
    with pytest.raises(InputError, match=r"row 0, column 'age' holds 'x'; .* \(4 more such rows\); row 0, column 'when' holds 'y'"):
        fit().encode(rows)


def test_rows_are_the_same_in_every_form():
    pandas = pytest.importorskip("pandas")
    encoder = fit()
    x = encoder.encode(COLUMNS)
    assert x.dtype == np.float32
    records = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
    frame = pandas.DataFrame(COLUMNS)
    typed = pandas.DataFrame(
        {
            "age": pandas.array([31, None, 52, 40, 40, 18], dtype="Int64"),
            "job": pandas.Categorical([job or None for job in COLUMNS["job"]]),
            "when": pandas.to_datetime([day or None for day in COLUMNS["when"]], format="ISO8601"),
        }
    )
    coded = {**COLUMNS, "job": Coded(np.array([0, 1, -1, 1, 0, 2], np.int32), ["cook", "clerk", "pilot"])}
    for rows in (records, frame, typed, coded, json.loads(json.dumps(records))):
        np.testing.assert_array_equal(encoder.encode(rows), x)
    for n, record in enumerate(records):
        np.testing.assert_array_equal(encoder.encode([record])[0], x[n])


def test_integers_that_missing_cells_made_floats_are_the_same_categories():
    encoder = fit({"code": ["1", "2"] * 3}, own={"code": "category"})
    np.testing.assert_array_equal(encoder.encode({"code": [1, 1.0, np.int64(1), "1"]}), [[1, 0]] * 4)
    assert fit({"flag": [True, False] * 3}, own={"flag": "category"}).columns[0].categories == ("False", "True")


def test_numbers_alone_may_come_as_an_array():
    encoder = fit({"a": [1.0, 2.0, 4.0], "b": [1.0, 0.0, 0.0]})
    rows = np.array([[2.0, 1.0], [3.0, 0.0]])
    np.testing.assert_array_equal(encoder.encode(rows), encoder.encode({"a": rows[:, 0], "b": rows[:, 1]}))
    with pytest.raises(InputError, match=r"an array \(2, 3\) of float64; expected \(rows, 2\) numbers, or a mapping .*: 'a', 'b'"):
        encoder.encode(np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"an array \(2, 3\) of float64; expected a mapping of columns"):
        fit().encode(np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "got no rows; expected at least one"),
        ("text", "got str"),
        (7, "got int"),
        ([ROW, 7], "row 1 is int; expected an object with a value a column"),
        ([{"age": 1, "job": "a"}], r"row 0 has other columns than the model: missing 'when' \(null stands for .*\); unknown none"),
        ([ROW, {**ROW, "x": 1}], r"row 1 has other columns than the model: missing none; unknown 'x' \(drop= leaves columns out\)"),
        ({**{name: [1] for name in ROW}, "job": ["a", "b"]}, "the columns must have as many cells each, got 'age' 1, 'job' 2"),
    ],
)
def test_rows_of_another_form_are_refused(rows, message):
    for call in (fit().encode, fit().check):
        with pytest.raises(InputError, match=message):
            call(rows)


def test_columns_that_tell_nothing_are_noted_and_may_be_there_or_not():
    columns = {**COLUMNS, "same": ["x"] * 6, "none": ["NA"] * 6, "id": list("abcdef"), "one": [3] * 6, "day": ["2024-01-01"] * 6}
    encoder, notes = fit_table(columns.items(), settings=TableSettings(), columns={}, ignored=("extra",))
    assert notes == {
        "same": "every training row has 'x'",
        "none": "no training row has a value",
        "id": "no text is there 2 times, as of a column that numbers the rows",
        "one": "every training row has 3",
        "day": "every training row has the same time",
    }
    np.testing.assert_array_equal(encoder.encode([ROW]), encoder.encode([{**ROW, "same": "y", "extra": 1, "id": "z"}]))
    with pytest.raises(DataError, match="no column tells the training rows apart: 'a': every training row has 1"):
        fit({"a": [1, 1]})
    for kind in ("numeric", "category", "date"):
        with pytest.raises(DataError, match="'a': no training row has a value"):
            fit({"a": [None, ""]}, own={"a": kind})


def test_a_constant_beside_missing_cells_is_kept_for_its_flag():
    encoder = fit({"a": [5, None, 5, None]})
    np.testing.assert_array_equal(encoder.encode({"a": [5, None, 9]}), [[0, 0], [0, 1], [0, 0]])


def test_training_cells_of_another_kind_are_named():
    with pytest.raises(DataError, match=r"training row 0, column 'job' cannot be read; expected a finite number"):
        fit(own={"job": "numeric"})
    with pytest.raises(DataError, match=r"training row 0, column 'age' cannot be read; expected a time of ISO 8601"):
        fit(own={"age": "date"})
    with pytest.raises(DataError, match=r"column 'town' has more categories than are kept by name \(40\)"):
        fit({"town": [f"town {n % 40}" for n in range(120)]}, unknown="error", max_categories=30)


def test_a_mark_that_is_a_number_is_missing_whatever_cells_come_with_it():
    for others in (["5"], ["5", ""], ["5", None], ["x"]):
        value_N, _ = read_numbers([" -999 ", *others], ("", "-999"))
        assert np.isnan(value_N[0])


def test_kinds_as_cells_look():
    marks = TableSettings().marks
    for cells, kind in (
        (["1", "2.5", "", "-3e4"], "numeric"),
        (["1", "x"], "category"),
        (["2024-01-31", "?"], "date"),
        (["", "?", None], None),
        (np.array([1.0, np.nan]), "numeric"),
        (np.array(["2024-01-31"], "datetime64[D]"), "date"),
        ([True, False], "category"),
    ):
        assert kind_of(cells, marks, ()) == kind


def test_what_is_written_is_read_back():
    encoder = fit(scale="quantile", embedded=("job",))
    again = encoder_from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder
    np.testing.assert_array_equal(again.encode(COLUMNS), encoder.encode(COLUMNS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.pop("marks"), "the table encoder cannot be read: KeyError 'marks'"),
        (lambda value: value["columns"][0].pop("fill"), "cannot be read: TypeError"),
        (lambda value: value["columns"][0].update(size=1), r"column 'age' of the encoder has unknown settings \['size'\]"),
        (lambda value: value["columns"][0].update(kind="colour"), "cannot be read: KeyError 'colour'"),
        (lambda value: value["columns"][0].update(missing="drop"), "column 'age' has missing='drop'; expected one of allow, error"),
        (
            lambda value: value["columns"][1].update(layout="flat"),
            "has layout 'flat'; expected onehot, hashed or index",
        ),
        (lambda value: value.update(columns=[]), r"a table needs columns of distinct names, got \[\]"),
    ],
)
def test_what_cannot_be_read_is_named(change, message):
    written = json.loads(json.dumps(fit().to_json()))
    change(written)
    with pytest.raises(ArtifactError, match=message):
        TableEncoder.from_json(written)


def test_names_of_numbers_differ_even_where_columns_are_named_alike():
    encoder = fit({"a": ["b", "c"] * 3, "a=b": [1.0, 2.0] * 3})
    assert encoder.tensor.columns == ("0: a=b", "1: a=c", "2: a=b")


def test_policies_are_checked():
    numeric = NumericColumn("n", 0, 0, 1, 0, 1, False)
    with pytest.raises(ArtifactError, match="has out_of_range='drop'; expected one of allow, error, clip"):
        replace(numeric, out_of_range="drop")
    with pytest.raises(ArtifactError, match="has unknown='clip'; expected one of allow, error"):
        CategoryColumn("c", ("a",), (), False, False, unknown="clip")


def test_blocks_give_what_one_block_gives(monkeypatch):
    rng = np.random.default_rng(0)
    columns = {
        "n": [None if n % 7 == 0 else value for n, value in enumerate(rng.normal(size=500).tolist())],
        "c": [f"c{n}" for n in rng.integers(0, 5, 500)],
    }
    encoder = fit(columns, unknown="error")
    whole = encoder.encode(columns)
    monkeypatch.setattr("ovr.input.table.BLOCK_VALUES", 100)
    np.testing.assert_array_equal(encoder.encode(columns), whole)
    columns["c"][0] = columns["c"][77] = columns["c"][499] = "new"
    assert encoder.check(columns).failed_P.tolist() == [0, 77, 499]


def test_a_hundred_thousand_rows_of_twenty_columns_take_seconds():
    rng = np.random.default_rng(0)
    num_rows = 100_000
    columns = {f"n{d}": [f"{value:.4f}" for value in rng.normal(size=num_rows)] for d in range(10)}
    columns |= {f"c{d}": [f"category {n}" for n in rng.integers(0, 20, num_rows)] for d in range(8)}
    columns |= {f"d{d}": [str(day) for day in np.datetime64("2020-01-01") + rng.integers(0, 999, num_rows)] for d in range(2)}
    encoder = fit({name: column[:5000] for name, column in columns.items()})
    start = process_time()
    x = encoder.encode(columns)
    assert process_time() - start < 10  # 1 to 2 on an idle machine
    assert len(x) == num_rows
