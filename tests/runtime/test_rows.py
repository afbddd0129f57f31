"""Rows from files: every format gives the same array, and what is wrong is named with its place."""

import gzip
import json

import numpy as np
import pytest

from ovr.core.schema import InputSchema
from ovr.errors import InputError
from ovr.runtime.rows import read_rows

NAMED = InputSchema((3,), ("a", "b", "c"))
FLAT = InputSchema((3,))
IMAGE = InputSchema((1, 2, 2))
X = np.array([[1.5, -2.0, 3e5], [0.1, 0.2, 0.3]])


def put(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def csv_text(x, header=None):
    lines = ([",".join(header)] if header else []) + [",".join(map(repr, row)) for row in x.tolist()]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("x.csv", csv_text(X, ["a", "b", "c"]), {}),
        ("x.csv", csv_text(X[:, [2, 0, 1]], ["c", "a", "b"]), {}),
        ("x.csv", csv_text(X), {"header": False}),
        ("x.CSV", "\ufeff" + csv_text(X, ["a", "b", "c"]) + "\n\n", {}),
        ("x.csv", "a,label,b,c\n1.5,cat,-2,300000\n0.1,dog,0.2,0.3\n", {"drop": ["label"]}),
        ("x.txt", csv_text(X, ["a", "b", "c"]), {"format": "csv"}),
        ("x.jsonl", "\n".join(map(json.dumps, X.tolist())) + "\n\n", {}),
        ("x.ndjson", '{"c": 3e5, "a": 1.5, "b": -2}\n{"a": 0.1, "b": 0.2, "c": 0.3, "label": "dog"}', {"drop": ["label"]}),
    ],
)
def test_text_formats_give_the_rows_in_the_order_of_the_schema(tmp_path, name, text, arguments):
    rows = read_rows(put(tmp_path / name, text), NAMED, **arguments)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, X.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8", ">f4"])
def test_npy_of_any_number_type_is_taken(tmp_path, dtype):
    x = np.array([[1, 2, 3], [4, 5, 6]], dtype=dtype)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(read_rows(tmp_path / "x.npy", FLAT), x.astype(np.float32))


def test_images_come_flat_in_csv_and_nested_in_json(tmp_path):
    flat = read_rows(put(tmp_path / "x.csv", "1,2,3,4\n5,6,7,8\n"), IMAGE, header=False)
    nested = read_rows(put(tmp_path / "x.jsonl", "[[[1,2],[3,4]]]\n[[[5,6],[7,8]]]\n"), IMAGE)
    np.testing.assert_array_equal(flat, np.arange(1, 9, dtype=np.float32).reshape(2, 1, 2, 2))
    np.testing.assert_array_equal(flat, nested)


def test_a_header_names_nothing_where_the_schema_names_nothing(tmp_path):
    np.testing.assert_array_equal(read_rows(put(tmp_path / "x.csv", "p,q,r\n1,2,3\n"), FLAT), [[1, 2, 3]])


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", {}, "is empty; expected a header and rows"),
        ("\n1,2,3\n", {}, "begins with a blank line; expected a header and rows"),
        ("a,b,c\n", {}, "holds no rows; expected at least one below the header"),
        ("", {"header": False}, "holds no rows"),
        ("a,b\n1,2\n", {}, "other columns than the model: missing 'c'; unknown none"),
        ("a,b,c,d\n1,2,3,4\n", {}, r"unknown 'd' \(drop= leaves columns out\)"),
        ("a,b,c,c\n1,2,3,4\n", {}, r"columns \['c'\] more than once"),
        ("1,2,3\n4,5,6\n", {}, "line of numbers where the header should be; say header=false"),
        ("a,b,c\n1,2,3\n", {"header": False}, "line 1, column 'a' holds 'a'; expected a number; say header=true"),
        ("a,b,c\n1,2,3\n1,oops,3\n", {}, "line 3, column 'b' holds 'oops'; expected a number"),
        ("a,b,c\n1,,3\n", {}, "line 2, column 'b' holds ''; expected a number"),
        ("a,b,c\n1,2\n", {}, "line 2 has 2 cells; expected 3"),
        ("a,b,c\n1,2,3\n\n1,2,3\n", {}, "line 3 has 0 cells; expected 3"),
        ("a,b,c\n1,nan,3\n", {}, "line 2: column 'b' holds nan; every value must be finite"),
        ("a,b,c\n1,2,1e39\n", {}, "line 2: column 'c' holds 1e\\+39; every value must be finite"),
        ('a,b,c\n1,"2,3\n', {}, "line 2 is not CSV"),
    ],
)
def test_a_bad_csv_is_refused_with_the_place(tmp_path, text, arguments, message):
    with pytest.raises(InputError, match=message):
        read_rows(put(tmp_path / "x.csv", text), NAMED, **arguments)


@pytest.mark.parametrize(
    ("text", "schema", "message"),
    [
        ("\n", NAMED, "holds no rows; expected a JSON array or object"),
        ("[1,2,3]\n[1,2", NAMED, "line 2 is not JSON"),
        ("[" * 100_000, NAMED, "line 1 is not JSON"),
        ("[1,2]", NAMED, r"line 1 has shape \(2,\); expected an array of shape \(3,\)"),
        ("[1,[2],3]", NAMED, "line 1 has an uneven shape"),
        ("7", NAMED, r"line 1 has shape \(\); expected an array"),
        ("[1,2,3,4]", IMAGE, r"shape \(4,\); expected an array of shape \(1, 2, 2\)"),
        ("[1,null,3]", NAMED, "line 1, column 'b' holds null; expected a number"),
        ("[1,true,3]", NAMED, "column 'b' holds true; expected a number"),
        ('[1,2,"3"]', NAMED, "column 'c' holds \"3\"; expected a number"),
        ('{"a":1,"b":[2],"c":3}', NAMED, r"column 'b' holds \[2\]; expected a number"),
        ('{"a":1,"b":2}', NAMED, "missing 'c'"),
        ('{"a":1}', FLAT, "is an object, but the model's columns have no names"),
        ("[1,2,1" + "0" * 400 + "]", NAMED, "an integer that is too large"),
        ("[1,Infinity,3]", NAMED, "line 1: column 'b' holds inf; every value must be finite"),
    ],
)
def test_a_bad_json_line_is_refused_with_the_place(tmp_path, text, schema, message):
    with pytest.raises(InputError, match=message):
        read_rows(put(tmp_path / "x.jsonl", text), schema)


def test_a_header_of_another_width_is_refused_where_the_schema_names_nothing(tmp_path):
    with pytest.raises(InputError, match="has 2 columns; expected 3"):
        read_rows(put(tmp_path / "x.csv", "p,q\n1,2\n"), FLAT)


def test_bad_npy_files_are_refused(tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((2, 4)))
    with pytest.raises(InputError, match=r"rows have shape \(2, 4\); expected \(rows, 3\)"):
        read_rows(tmp_path / "wide.npy", FLAT)
    np.save(tmp_path / "text.npy", np.array([["a", "b", "c"]]))
    with pytest.raises(InputError, match="row 0, column 0 holds 'a'; expected a number"):
        read_rows(tmp_path / "text.npy", FLAT)
    np.save(tmp_path / "pickle.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match="is not an npy array"):
        read_rows(tmp_path / "pickle.npy", FLAT)
    np.save(tmp_path / "cut.npy", np.zeros((100, 3)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:500])
    with pytest.raises(InputError, match="is not an npy array"):
        read_rows(tmp_path / "cut.npy", FLAT)
    (tmp_path / "empty.npy").touch()
    with pytest.raises(InputError, match="is not an npy array"):
        read_rows(tmp_path / "empty.npy", FLAT)


def test_files_that_are_not_there_or_of_no_known_kind_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_rows(tmp_path / "none.csv", FLAT)
    with pytest.raises(InputError, match=r"of no known format \(csv, tsv, jsonl, npy\), got '\.parquet'"):
        read_rows(tmp_path / "x.parquet", FLAT)
    with pytest.raises(InputError, match="of no known format"):
        read_rows(tmp_path / "x.csv", FLAT, format="excel")
    (tmp_path / "latin.csv").write_bytes(b"a,b,c\n1,\xe9,3\n")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_rows(tmp_path / "latin.csv", NAMED)


def test_packed_and_tab_separated_numbers_are_read(tmp_path):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"1,2,3\n"))
    put(tmp_path / "x.tab", "1\t2\t3\n")
    for name in ("x.csv.gz", "x.tab"):
        np.testing.assert_array_equal(read_rows(tmp_path / name, FLAT, header=False), [[1, 2, 3]])


def test_names_to_drop_that_are_none_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    for name, text in (("x.csv", "a,b,c\n1,2,3\n"), ("x.jsonl", "[1,2,3]\n"), ("x.npy", None)):
        file = tmp_path / name if text is None else put(tmp_path / name, text)
        with pytest.raises(InputError, match=r"drop has 'label', which .* has not; its columns are "):
            read_rows(file, FLAT, drop=["label"])
    with pytest.raises(InputError, match="its columns are without names"):
        read_rows(tmp_path / "x.csv", FLAT, header=False, drop=["label"])
