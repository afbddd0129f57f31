import json

import pytest

from ovr.data.json_rows import read_json, read_json_lines
from ovr.errors import DataError


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def test_lines_are_objects_or_lists(tmp_path):
    path = write(tmp_path / "a.jsonl", '\ufeff{"text": "one\\nmore", "n": 1}\n\n["two", [1]]\r\n')
    assert list(read_json_lines(path)) == [
        (f"{path}, line 1", {"text": "one\nmore", "n": 1}),
        (f"{path}, line 3", {"0": "two", "1": [1]}),
    ]


def test_a_list_of_rows_or_an_object_of_such_lists(tmp_path):
    rows = [{"text": "a"}, ["b"]]
    path = write(tmp_path / "list.json", rows)
    assert list(read_json(path, keys=None)) == [(f"{path}, row 0", {"text": "a"}), (f"{path}, row 1", {"0": "b"})]
    path = write(tmp_path / "splits.json", {"train": rows, "test": [], "more": [["ü"]]})
    assert [record for _, record in read_json(path, keys=["more", "train"])] == [{"0": "ü"}, {"text": "a"}, {"0": "b"}]
    assert next(iter(read_json(path, keys=["more"])))[0] == f"{path}, 'more', row 0"


@pytest.mark.parametrize(
    ("value", "keys", "message"),
    [
        ("[1,\n 2", None, r"is not JSON: .*line 2 column 3.*; a file with one row a line is format=jsonl"),
        ("", None, "is not JSON"),
        ({"train": []}, None, "is an object with 'train'; name the lists of each split in data.source.keys"),
        ([["a"]], ["train"], "is a list; data.source.keys expects an object with 'train'"),
        ({"train": []}, ["train", "val"], "is an object with 'train'; data.source.keys expects an object with 'train', 'val'"),
        ({"train": {"a": 1}}, ["train"], "'train' is dict; expected a list of rows"),
        ([["a"], "b"], None, 'row 1 is "b"; expected an object with a value a column, or a list'),
        ('{"a":' * 100_000, None, "is not JSON"),
    ],
)
def test_what_is_no_list_of_rows_is_named(tmp_path, value, keys, message):
    with pytest.raises(DataError, match=message):
        list(read_json(write(tmp_path / "a.json", value), keys=keys))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}\n{,}\n", "line 2 is not JSON"), ("[1]\n7\n", "line 2 is 7; expected an object"), ("[" * 100_000, "line 1 is not JSON")],
)
def test_a_line_that_is_no_row_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        list(read_json_lines(write(tmp_path / "a.jsonl", text)))


def test_files_that_cannot_be_read_are_named(tmp_path):
    for read in (read_json_lines, lambda path: read_json(path, keys=None)):
        with pytest.raises(DataError, match=r"gone\.json cannot be read: No such file"):
            list(read(tmp_path / "gone.json"))


def test_latin_1_is_taken_when_it_is_said(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes('[["école"]]\n'.encode("latin-1"))
    for read in (lambda encoding: read_json(path, keys=None, encoding=encoding), lambda e: read_json_lines(path, encoding=e)):
        with pytest.raises(DataError, match=r"is not utf-8 text \(byte 0xe9: .*encoding=latin-1 takes any byte"):
            list(read("utf-8"))
    assert [record for _, record in read_json(path, keys=None, encoding="latin-1")] == [{"0": "école"}]
    assert [record for _, record in read_json_lines(path, encoding="latin-1")] == [{"0": ["école"]}]
