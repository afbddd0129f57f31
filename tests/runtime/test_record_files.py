import gzip

import numpy as np
import pytest

from ovr.core.schema import InputSchema
from ovr.data.xmc import read_xmc
from ovr.errors import InputError
from ovr.input.sparse import SparseRows
from ovr.runtime.record_files import TextColumns, read_placed_records, read_records
from ovr.runtime.rows import read_rows


def written(tmp_path, name, text, encoding="utf-8"):
    file = tmp_path / name
    file.write_bytes(text.encode(encoding))
    return file


def test_cells_of_csv_tsv_json_lines_and_parquet_are_the_same_records(tmp_path):
    records = [{"town": 'Köln, "old"', "note": "two\nlines"}, {"town": "", "note": "x"}]
    csv = written(tmp_path, "a.csv", '\ufefftown,note,label\r\n"Köln, ""old""","two\nlines",a\r\n"",x,b\r\n\r\n')
    tsv = written(tmp_path, "a.tsv", 'town\tnote\tlabel\n"Köln, ""old"""\t"two\nlines"\ta\n\tx\tb\n')
    lines = ['{"town": "Köln, \\"old\\"", "note": "two\\nlines", "label": 1}', "", '{"town": "", "note": "x"}']
    json_lines = written(tmp_path, "a.jsonl", "\n".join(lines))
    for file in (csv, tsv, json_lines):
        assert read_records(file, "table", drop=["label"]) == records
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    assert read_records(tmp_path / "a.parquet", "table") == records


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_texts_are_the_only_column_or_the_one_named_text(tmp_path, kind):
    texts = ["first", "second, with comma"]
    files = [
        written(tmp_path, "a.txt", "first\r\nsecond, with comma\r\n"),
        written(tmp_path, "a.csv", 'words\nfirst\n"second, with comma"\n'),
        written(tmp_path, "b.csv", 'id,text\n1,first\n2,"second, with comma"\n'),
        written(tmp_path, "a.jsonl", '"first"\n{"anything": "second, with comma"}\n'),
    ]
    assert all(read_records(file, kind) == texts for file in files)
    headless = written(tmp_path, "c.csv", 'first\n"second, with comma"\n')
    assert read_records(headless, kind, header=False) == texts


def test_every_ending_that_training_takes_is_known(tmp_path):
    record = '{"a": "1", "b": "x"}'
    texts = {"a.csv.gz": "a,b\n1,x\n", "a.tab": "a\tb\n1\tx\n", "a.json": f"[{record}]", "a.jsonl.gz": record}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        assert read_records(tmp_path / name, "table") == [{"a": "1", "b": "x"}]
    (tmp_path / "bad.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n" * 99)[:-20])
    with pytest.raises(InputError, match=r"bad\.csv\.gz cannot be read: "):
        read_records(tmp_path / "bad.csv.gz", "table")
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match="is not Parquet"):
        read_records(written(tmp_path, "a.pq", "no"), "table")


def test_texts_of_several_columns_are_joined(tmp_path):
    columns = TextColumns(("title", "body"), " / ")
    file = written(tmp_path, "a.csv", "body,label,title\nb,x,a\n")
    assert read_records(file, "text", text=columns) == ["a / b"]
    assert read_records(written(tmp_path, "a.jsonl", '["b", "a"]\n"joined"\n'), "text", text=TextColumns(("1", "0"), "")) == [
        "ab",
        "joined",
    ]
    assert read_records(written(tmp_path, "b.csv", "b\ta,x\n"), "text", header=False, text=TextColumns(("1",))) == ["x"]
    assert TextColumns.of({"kind": "text", "columns": ["a"], "joiner": ""}) == TextColumns(("a",), "")
    assert TextColumns.of({"kind": "table", "columns": [{}]}) == TextColumns.of(None) == TextColumns()


def test_places_are_lines_also_where_rows_span_several(tmp_path):
    rows, where = read_placed_records(written(tmp_path, "a.csv", 'a\n"1\n2"\n3\n'), "table")
    assert [where(n).rpartition(", ")[2] for n in range(len(rows))] == ["line 2", "line 4"]
    rows, where = read_placed_records(written(tmp_path, "a.json", '["a", "b"]'), "text")
    assert where(1).endswith("a.json, row 1")


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("a.csv", "a,b\n1\n", "table", "line 2 has 1 cells; expected 2"),
        ("a.csv", "a,b\n\n1,2\n", "table", "line 2 has 0 cells; expected 2"),
        ("a.csv", 'a\n"x\n', "table", "line 2 is not CSV"),
        ("a.csv", "a,a\n1,2\n", "table", "columns .'a'. more than once"),
        ("a.csv", "a,b\n", "table", "holds no rows"),
        ("a.csv", "a,b\nx,y\n", "text", "columns 'a', 'b'; expected one with the text"),
        ("a.jsonl", "[1]\n", "table", r"line 1 holds \[1\]; expected an object"),
        ("a.jsonl", '{"text": 1}\n', "text", "line 1 holds 1; expected a text"),
        ("a.jsonl", "{\n", "text", "line 1 is not JSON"),
        ("a.txt", "x\n", "table", "of no known format"),
        ("a.xls", "x\n", "text", "of no known format"),
        ("a.json", "[1", "table", "is not JSON: .* format=jsonl"),
        ("a.json", '{"a": 1}', "table", "is dict; expected one JSON list of rows"),
        ("a.json", "[]", "table", "holds no rows"),
        ("a.txt", "2 9\n", "sparse", "line 1 is '2 9'; expected three whole numbers: rows features labels"),
        ("a.txt", "2 9 4\n0 1:2\n", "sparse", "has 1 rows; line 1 tells of 2"),
        ("a.txt", "1 9 4\n0 1:2\n0 1:2\n", "sparse", "line 3 is a row more than the 1 that line 1 tells of"),
        ("a.txt", "1 9 4\n0 1:x\n", "sparse", "line 2 has '1:x'; expected feature:value"),
        ("a.txt", "1 9 4\n0 1:2 1:3\n", "sparse", "line 2 has '1:3'; expected each feature once, with a finite number"),
        ("a.txt", "1 9 4\n0 1:nan\n", "sparse", "line 2 has '1:nan'; expected each feature once"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, text, kind, message):
    with pytest.raises(InputError, match=message):
        read_records(written(tmp_path, name, text), kind)


def test_an_xmc_file_has_the_rows_that_training_reads(tmp_path):
    file = written(tmp_path, "a.xmc.txt", "\ufeff4 9 4\n0,3 1:0.5 8:-2e-1\n1:7 2:1\n2\n\t5:1\n\n")
    rows, where = read_placed_records(file, "sparse")
    assert rows == [{"1": 0.5, "8": -0.2}, {"1": 7, "2": 1}, {}, {"5": 1}]
    assert where(3) == f"{file}, line 5"
    encoder = SparseRows(9, 3)
    csr = read_xmc(file).rows
    np.testing.assert_array_equal(encoder.encode(rows), encoder.padded(csr.start_N1, csr.index_P, csr.value_P))


@pytest.mark.parametrize(("given", "mark"), [(";", ";"), ("tab", "\t"), ("|", "|")])
def test_a_delimiter_of_its_own_cuts_cells(tmp_path, given, mark):
    file = written(tmp_path, "a.csv", f'a{mark}b\n1,5{mark}"x{mark}y"\n')
    assert read_records(file, "table", delimiter=given) == [{"a": "1,5", "b": f"x{mark}y"}]
    numbers = written(tmp_path, "n.csv", f"u{mark}v\n1{mark}2\n")
    assert read_rows(numbers, InputSchema((2,)), delimiter=given).tolist() == [[1, 2]]


def test_a_delimiter_that_cannot_be_one_is_refused(tmp_path):
    file = written(tmp_path, "a.csv", "a\n1\n")
    for wrong in ("", ";;", '"', "\n"):
        with pytest.raises(InputError, match="cannot be used; expected one character, such as ';', or tab"):
            read_records(file, "table", delimiter=wrong)
    with pytest.raises(InputError, match="delimiter=';' is of CSV and TSV; the input is jsonl"):
        read_records(written(tmp_path, "a.jsonl", "{}"), "table", delimiter=";")


def test_columns_to_drop_that_are_none_are_refused(tmp_path):
    file = written(tmp_path, "a.csv", "a,label\n1,x\n")
    with pytest.raises(InputError, match=r"drop has 'lable', which .*a\.csv has not; its columns are 'a', 'label'"):
        read_records(file, "table", drop=["lable"])
    with pytest.raises(InputError, match="has no column 'title', 'body'; the model's text is made of"):
        read_records(file, "text", text=TextColumns(("title", "body")))


def test_other_bytes_than_utf8_and_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_records(written(tmp_path, "a.csv", "text\nnaïve\n", encoding="latin-1"), "text")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_records(tmp_path / "none.csv", "text")


def test_no_parquet_is_an_error_of_its_own(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match="is not Parquet"):
        read_records(written(tmp_path, "a.parquet", "no"), "table")
