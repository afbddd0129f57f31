import math

import numpy as np
import pytest

from ovr.errors import InputError
from ovr.input.records import from_bytes, records_of, to_bytes, wire_name


def test_columns_and_objects_give_the_same_records():
    columns = {"age": np.array([3, 4]), "town": ["Köln", None]}
    rows = [{"age": np.int64(3), "town": "Köln"}, {"age": 4, "town": math.nan}]
    expected = [{"age": 3, "town": "Köln"}, {"age": 4, "town": None}]
    assert records_of(columns, "table") == records_of(rows, "table") == expected
    assert all(type(record["age"]) is int for record in records_of(columns, "table"))


def test_a_data_frame_gives_the_records_of_its_columns():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [3, None], "seen": pandas.to_datetime(["2026-01-02", None]), 7: ["a", "b"]})
    assert records_of(frame, "table") == [
        {"age": 3.0, "seen": "2026-01-02T00:00:00", "7": "a"},
        {"age": None, "seen": None, "7": "b"},
    ]
    missing = pandas.DataFrame(
        {"age": pandas.array([3, None], dtype="Int64"), "town": pandas.array(["Köln", None], dtype="string")}
    )
    assert records_of(missing, "table") == [{"age": 3, "town": "Köln"}, {"age": None, "town": None}]


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ("one text", "text", "must be a sequence of texts, got str"),
        (["a", 3], "text", "row 1 is int 3; expected a text"),
        ([], "text", "got no rows"),
        ({}, "table", "got no rows"),
        ({"a": [1], "b": [1, 2]}, "table", "as many cells each, got 'a' 1, 'b' 2"),
        ([{"a": 1}, [1]], "table", "row 1 is list; expected an object"),
        (np.zeros((2, 2)), "table", "a DataFrame, got ndarray"),
    ],
)
def test_what_holds_no_rows_is_refused(rows, kind, message):
    with pytest.raises(InputError, match=message):
        records_of(rows, kind)


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_texts_come_back_from_their_bytes(kind):
    texts = ["", "naïve\ncafé", '{"a": 1}', "nul\0"]
    assert from_bytes(to_bytes(texts), kind) == texts
    assert wire_name(kind) == "text"


def test_objects_come_back_from_their_bytes():
    records = [{"a": 1.5, "b": None, "ü": "x"}, {}]
    assert from_bytes(to_bytes(records), "table") == records
    assert wire_name("table") == "row"


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (b"\xff", "text", "row 1 is not UTF-8: invalid start byte at byte 0"),
        (b"{", "table", "row 1 is not JSON"),
        (b"[1]", "table", "row 1 is list; expected a JSON object"),
        (b"[" * 100_000, "table", "row 1 is not JSON"),
    ],
)
def test_bytes_that_are_no_record_are_named(value, kind, message):
    good = to_bytes(["x"] if kind == "text" else [{}])[0, 0]
    array = np.array([[good], [value]], dtype=np.object_)
    with pytest.raises(InputError, match=message):
        from_bytes(array, kind)


def test_another_shape_of_bytes_is_refused():
    with pytest.raises(InputError, match=r"text has shape \(2,\); expected \(rows, 1\)"):
        from_bytes(np.array([b"a", b"b"], dtype=np.object_), "text")
