import gzip

import pytest

from ovr.data.delimited import Dialect, delimiter_of, read_header, read_rows
from ovr.errors import DataError


def rows_of(path, dialect=None, names=None):
    return list(read_rows(path, dialect or Dialect(), names=names))


def file_of(tmp_path, content, name="a.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_line_breaks_delimiters_and_quotes_in_quoted_cells_and_the_line_where_a_row_begins(tmp_path):
    path = file_of(tmp_path, 'text,label\r\n"one\r\ntwo, ""three""",a\r\nplain,b\r\n')
    assert read_header(path, Dialect()) == ("text", "label")
    assert rows_of(path) == [(2, ['one\r\ntwo, "three"', "a"]), (4, ["plain", "b"])]


def test_without_quoting_a_quote_is_a_character_like_any_other(tmp_path):
    path = file_of(tmp_path, '"so he said\t1\nfine"\t2\n"a" and "b"\t3\n', "a.tsv")
    dialect = Dialect(delimiter="tab", quoting="none", header=False)
    assert rows_of(path, dialect) == [(1, ['"so he said', "1"]), (2, ['fine"', "2"]), (3, ['"a" and "b"', "3"])]
    with pytest.raises(DataError, match=r"a\.tsv, row that begins on line 3: text follows .* set quoting=none"):
        rows_of(path, Dialect(delimiter="\t", header=False))


def test_a_stray_line_above_the_header_is_skipped_and_still_counted(tmp_path):
    path = file_of(tmp_path, "|1x3 Cross validator\nu,v\n1,2\n")
    assert read_header(path, Dialect(skip_lines=1)) == ("u", "v")
    assert rows_of(path, Dialect(skip_lines=1)) == [(3, ["1", "2"])]


def test_comments_are_left_out_between_rows_and_kept_inside_quotes(tmp_path):
    path = file_of(tmp_path, '|stray\nu,v\n1,"a\n|b"\n|note\n3,4\n')
    assert rows_of(path, Dialect(comment="|")) == [(3, ["1", "a\n|b"]), (6, ["3", "4"])]


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf-16"])
def test_a_byte_order_mark_is_dropped(tmp_path, encoding):
    path = file_of(tmp_path, "\ufeff".encode("utf-8") + b"u,v\n1,2\n" if encoding != "utf-16" else "u,v\n1,2\n".encode("utf-16"))
    assert read_header(path, Dialect(encoding=encoding)) == ("u", "v")
    assert rows_of(path, Dialect(encoding=encoding)) == [(2, ["1", "2"])]


def test_latin_1_bytes_are_named_with_their_line_and_the_cure(tmp_path):
    path = file_of(tmp_path, b"u,v\n" + b"1,2\n" * 5000 + "3,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv, line 5002 is not utf-8 text \(byte 0xe9: .*\); encoding=latin-1"):
        rows_of(path)
    assert rows_of(path, Dialect(encoding="latin-1"))[-1] == (5002, ["3", "café"])


def test_utf_16_is_recognised_in_the_message(tmp_path):
    with pytest.raises(DataError, match=r"begins as UTF-16 does: encoding=utf-16"):
        rows_of(file_of(tmp_path, "u,v\n".encode("utf-16")))
    with pytest.raises(DataError, match="is not utf-16 text"):
        rows_of(file_of(tmp_path, b"\xff\xfeu"), Dialect(encoding="utf-16"))


@pytest.mark.parametrize(
    ("content", "header", "message"),
    [
        ("u,v\n1,2\n3\n", True, r"line 3 \(row 1\): 1 cells; the header has 2"),
        ("u,v\n1,2,3\n", True, r"line 2 \(row 0\): 3 cells; the header has 2"),
        ("1,2\n1,2,3\n", False, r"line 2 \(row 1\): 3 cells; the first row has 2"),
        ("u,v\n1,2\n\n3,4\n", True, r"line 3 is blank and rows follow it"),
        ('u,v\n1,2\n3,"4\n5,6\n', True, r"row that begins on line 3: a quote is opened and not closed"),
        ("", True, r"is empty; expected a header and rows"),
        ("\n\n", False, r"is empty; expected rows"),
        ("u,u\n1,2\n", True, r"expected distinct names, but 'u' is there twice"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, content, header, message):
    with pytest.raises(DataError, match=message):
        rows_of(file_of(tmp_path, content), Dialect(header=header))


def test_blank_lines_at_the_end_are_left_out(tmp_path):
    assert rows_of(file_of(tmp_path, "u,v\n1,2\n\n  \n\n")) == [(2, ["1", "2"])]


def test_a_quoted_empty_cell_is_a_row_of_its_own(tmp_path):
    assert rows_of(file_of(tmp_path, 'text\na\n""\nb\n')) == [(2, ["a"]), (3, [""]), (4, ["b"])]


def test_without_a_header_columns_have_given_names_or_numbers(tmp_path):
    path, dialect = file_of(tmp_path, "1, 2\n3, 4\n"), Dialect(header=False, strip=True)
    assert read_header(path, dialect) == ("0", "1")
    assert read_header(path, dialect, names=["u", "v"]) == ("u", "v")
    assert rows_of(path, dialect, names=["u", "v"]) == [(1, ["1", "2"]), (2, ["3", "4"])]
    with pytest.raises(DataError, match=r"has 2 columns, and 3 names are given: 'u', 'v', 'w'"):
        rows_of(path, dialect, names=["u", "v", "w"])
    with pytest.raises(DataError, match=r"has a header, and names are given too; to replace it set header=false"):
        read_header(path, Dialect(), names=["u", "v"])
    path = file_of(tmp_path, "1,2\n3\n")
    with pytest.raises(DataError, match="1 cells; the list of names has 2"):
        rows_of(path, Dialect(header=False), names=["u", "v"])


def test_gzipped_files(tmp_path):
    path = file_of(tmp_path, gzip.compress(b"u,v\n1,2\n"), "a.csv.gz")
    assert rows_of(path) == [(2, ["1", "2"])]
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(file_of(tmp_path, path.read_bytes()[:-9], "cut.csv.gz"))
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(file_of(tmp_path, b"u,v\n", "plain.csv.gz"))


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path / "gone.csv", tmp_path):
        with pytest.raises(DataError, match=r"cannot be read: (No such file|Is a directory)"):
            rows_of(path)


def test_a_long_text_is_a_cell_and_an_endless_one_is_refused(tmp_path):
    path = file_of(tmp_path, 'text\n"' + "a b\n" * 100_000 + '"\n')
    assert len(rows_of(path)[0][1][0]) == 400_000
    path = file_of(tmp_path, 'text\n"' + "a" * ((1 << 24) + 10))
    with pytest.raises(DataError, match="line 2: a cell of more than 16,777,216 characters"):
        rows_of(path)


def test_the_file_is_streamed(tmp_path):
    path = file_of(tmp_path, "u,v\n" + "1,2\n" * 100_000 + "1\n")
    rows = read_rows(path, Dialect())
    assert [next(rows)[0] for _ in range(3)] == [2, 3, 4]  # the last, bad row is not read yet


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delimiter": ", "}, "the delimiter is ', '; expected one character"),
        ({"delimiter": '"'}, "the delimiter is"),
        ({"quoting": "some"}, "quoting is 'some'; expected one of standard, none"),
        ({"header": "yes"}, "header is 'yes'; expected true or false"),
        ({"decimal": ";"}, r"decimal is ';'; expected '\.' or ','"),
        ({"skip_lines": -1}, "skip_lines is -1; expected a whole number"),
        ({"encoding": "klingon"}, "encoding is 'klingon'; expected a name Python knows"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(DataError, match=message):
        Dialect(**settings)


def test_the_delimiter_of_a_file_name(tmp_path):
    assert [delimiter_of(tmp_path / name) for name in ("a.csv", "a.TSV", "a.tab.gz", "a.csv.gz")] == [",", "\t", "\t", ","]
    with pytest.raises(DataError, match=r"a\.data cannot be read: there is no such file"):
        delimiter_of(tmp_path / "a.data")
    (tmp_path / "a.data").touch()
    with pytest.raises(DataError, match=r"a\.data is none of \*\.csv, \*\.tsv, \*\.tab; say .* '.*reader\.delimiter=\";\"' or "):
        delimiter_of(tmp_path / "a.data", key="data.source.reader.delimiter")
    with pytest.raises(DataError, match=r"is a folder; expected a file"):
        delimiter_of(tmp_path)
