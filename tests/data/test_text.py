import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from ovr.cli.instantiate import build
from ovr.errors import DataError
from ovr.input.text import HashedText

CONF = Path(__file__).resolve().parents[2] / "conf"
SPLITS = ("train", "val", "calib", "test")
WORDS = {"pay": "bill money due", "play": "song music loud", "rain": "cloud wet sky"}
ENCODER = HashedText(5000, 32, (1, 2), (3, 5))


def load(path=None, *overrides, label="label", **files):
    """Load by the configuration that a user would use."""
    given = [f"path={path}"] if path else [f"files.{name}={file}" for name, file in files.items()]
    cfg = OmegaConf.create({"data": OmegaConf.load(CONF / "data" / "text.yaml")})
    del cfg.data.defaults
    cfg.data.source.encoder = OmegaConf.load(CONF / "encoder" / "hashed.yaml")
    small = ["num_tokens=5000", "max_tokens=32", f"label={label}"]
    cfg.merge_with_dotlist([f"data.{change}" for change in (*small, *given, *overrides)])
    return build(cfg.data.source)


def some_rows(num_rows=60):
    """A text and its class, none of them twice."""
    names = sorted(WORDS)
    return [[f"{WORDS[names[n % 3]]} number {n}", names[n % 3]] for n in range(num_rows)]


def write_csv(path, rows, header=("text", "label"), **how):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **how).writerows([header, *rows] if header else rows)
    return path


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def encoded(texts):
    return ENCODER.encode(texts)


def of(splits):
    return [getattr(splits, name) for name in SPLITS]


def columns(rows):
    return rows.labels.dense()[0].argmax(axis=1).tolist()


def test_one_file_is_divided_and_its_ids_are_the_taxonomy(tmp_path):
    rows = some_rows()
    splits = load(write_csv(tmp_path / "a.csv", rows))
    assert splits.taxonomy.ids == ("pay", "play", "rain")
    assert (splits.encoder, splits.input.shape) == (ENCODER, (32, 2))
    assert [len(part) for part in of(splits)] == [36, 6, 9, 9]
    known = {encoded([text])[0].tobytes(): label for text, label in rows}
    found = [known.pop(x.tobytes()) for part in of(splits) for x in part.x]
    assert found == [splits.taxonomy.ids[k] for part in of(splits) for k in columns(part)]
    assert not known, "every row is in one split"


def test_the_data_card_is_told_of_files_rule_and_rows(tmp_path):
    rows = [*some_rows(20), ["no label", ""], *some_rows(60)[20:]]
    splits = load(write_csv(tmp_path / "a.csv", rows), "source.rule.no_label=leave_out")
    assert [file.name for file in splits.origin.files] == ["a.csv"]
    assert splits.origin.rule.by == "stratified"
    for name, part in zip(SPLITS, of(splits), strict=True):
        np.testing.assert_array_equal(part.x, encoded([rows[n][0] for n in splits.origin.row_numbers[name]]))
        assert [splits.origin.shown[name](n) for n in range(len(part))] == [rows[n][0] for n in splits.origin.row_numbers[name]]
    paths = {name: write_csv(tmp_path / f"{name}.csv", some_rows(12)) for name in SPLITS}
    given = load(**paths)
    assert [file.name for file in given.origin.files] == ["train.csv", "val.csv", "calib.csv", "test.csv"]
    assert given.origin.rule is None
    assert all(given.origin.row_numbers[name].tolist() == list(range(12)) for name in SPLITS)


def test_every_format_gives_the_same_splits(tmp_path):
    rows = some_rows()
    objects = [{"text": text, "label": label, "more": None} for text, label in rows]
    paths = [
        write_csv(tmp_path / "a.csv", rows),
        write_csv(tmp_path / "a.tsv", rows, delimiter="\t"),
        write_json(tmp_path / "a.json", objects),
        tmp_path / "a.jsonl",
    ]
    paths[-1].write_text("\n".join(map(json.dumps, objects)))
    one, *others = map(load, paths)
    for other in others:
        for part, expected in zip(of(other), of(one), strict=True):
            np.testing.assert_array_equal(part.x, expected.x)
            np.testing.assert_array_equal(part.labels.dense()[0], expected.labels.dense()[0])
    listed = load(write_json(tmp_path / "lists.json", rows), "text=0", label=1)
    np.testing.assert_array_equal(listed.train.x, one.train.x)


def test_files_for_some_splits_leave_the_rest_to_be_divided(tmp_path):
    train, test, val = (write_csv(tmp_path / f"{name}.csv", some_rows(n)) for name, n in (("train", 100), ("test", 9), ("val", 40)))
    splits = load(train=train, test=test)
    assert [len(part) for part in of(splits)] == [70, 12, 18, 9]
    np.testing.assert_array_equal(splits.test.x, encoded([text for text, _ in some_rows(9)]))
    given = load(None, "source.split.of=val", "source.split.fractions={val: 0.5, calib: 0.5}", train=train, val=val, test=test)
    assert [len(part) for part in of(given)] == [100, 20, 20, 9]
    whole = load(train=train, val=val, calib=test, test=f"[{test},{val}]")
    assert [len(part) for part in of(whole)] == [100, 40, 9, 49]


def test_rows_can_be_split_by_a_column_by_time_and_by_group(tmp_path):
    rows = [
        [text, label, name, f"2026-01-{1 + n // 3:02}", f"user {n % 15}"]
        for n, (text, label) in enumerate(some_rows())
        for name in [SPLITS[n // 15]]
    ]
    path = write_csv(tmp_path / "a.csv", rows, ("text", "label", "part", "when", "who"))
    for by, column in (("column", "part"), ("time", "when")):
        splits = load(
            path,
            f"source.split.by={by}",
            f"source.split.column={column}",
            "source.split.fractions={train: 0.25, val: 0.25, calib: 0.25, test: 0.25}",
        )
        assert [len(part) for part in of(splits)] == [15] * 4
        np.testing.assert_array_equal(splits.test.x, encoded([row[0] for row in rows[45:]]))
    test = write_csv(tmp_path / "test.csv", some_rows(9))  # has no column to split by, and needs none
    splits = load(None, "source.split.by=group", "source.split.column=who", train=path, test=test)
    who = {encoded([row[0]])[0].tobytes(): row[4] for row in rows}
    groups = [{who[x.tobytes()] for x in part.x} for part in of(splits)[:3]]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 15


def test_a_json_object_of_splits_with_rows_of_no_class(tmp_path):
    """The shape of clinc150: lists of [text, label], and lists of requests that belong to no class."""
    rows = some_rows()
    value = {
        "train": rows,
        "val": rows[:12],
        "test": rows[:6],
        "oos_val": [["so what", "oos"]] * 2,
        "oos_test": [["hm", "oos"]] * 3,
    }
    path = write_json(tmp_path / "data.json", value)
    how = ["text=0", "source.split.of=val", "source.split.fractions={val: 0.5, calib: 0.5}"]
    splits = load(path, *how, "source.keys={train: [train], val: [val], test: [test]}", label=1)
    assert [len(part) for part in of(splits)] == [60, 6, 6, 6]
    keys = "source.keys={train: [train], val: [val, oos_val], test: [test, oos_test]}"
    splits = load(path, *how, keys, "source.rule.no_class=[oos]", label=1)
    assert [len(part) for part in of(splits)] == [60, 7, 7, 9]
    assert splits.taxonomy.ids == ("pay", "play", "rain")
    target_NK, mask_NK = splits.test.labels.dense()
    assert target_NK.sum(axis=1).tolist() == [1] * 6 + [0] * 3
    assert mask_NK.all()
    with pytest.raises(
        DataError, match=r"data\.json, 'oos_val', row 0: labels outside the taxonomy of 3 classes: 'oos' in 2 places"
    ):
        load(path, *how, keys, label=1)
    with pytest.raises(DataError, match=r"name the lists of each split in data\.source\.keys"):
        load(path, *how, label=1)


def test_unquoted_columns_with_numbered_labels(tmp_path):
    """The shape of goemotions: no header, texts that begin with a quote, label numbers with commas, and a file of names."""
    names = tmp_path / "labels.txt"
    names.write_text("pay\nplay\nrain\n")
    lines = [f'"{text}\t{n % 3}{",0" if n % 3 == 2 else ""}\tid{n}' for n, (text, _) in enumerate(some_rows())]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    how = ["text=0", "source.reader.header=false", "source.rule.many=true", "source.rule.separator=','"]
    how.append(f"source.rule.names_file={names}")
    splits = load(tmp_path / "a.tsv", "source.reader.quoting=none", *how, label=1)
    assert splits.taxonomy.ids == ("pay", "play", "rain")
    assert sum(len(part) for part in of(splits)) == 60
    counts_K = sum(part.labels.num_positives_K() for part in of(splits))
    assert counts_K.tolist() == [40, 20, 20]
    assert all((part.labels.num_positives_K() > 0).all() for part in of(splits))
    with pytest.raises(DataError, match="quoting=none"):
        load(tmp_path / "a.tsv", *how, label=1)


def test_line_breaks_in_quotes_a_byte_order_mark_and_a_line_above_the_header(tmp_path):
    rows = [[f"{text}\nand more", label] for text, label in some_rows()]
    path = write_csv(tmp_path / "a.csv", rows)
    path.write_text("\ufeffexported today\r\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    splits = load(path, "source.reader.skip_lines=1")
    known = {x.tobytes() for x in encoded([text for text, _ in rows])}
    assert {x.tobytes() for part in of(splits) for x in part.x} == known


def test_latin_1_bytes_are_named_and_taken_when_said(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + "".join(f"école {text},{label}\n" for text, label in some_rows()).encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv, line 2 is not utf-8 text .*encoding=latin-1 takes any byte"):
        load(path)
    known = {x.tobytes() for x in encoded([f"école {text}" for text, _ in some_rows()])}
    assert {x.tobytes() for part in of(load(path, "source.reader.encoding=latin-1")) for x in part.x} == known


def test_ragged_rows_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,b\nc,d,e\n")
    with pytest.raises(DataError, match=r"a\.csv, line 3 \(row 1\): 3 cells; the header has 2"):
        load(path)


def test_several_text_columns_are_joined(tmp_path):
    rows = [[f"title {n}", text, label] for n, (text, label) in enumerate(some_rows())]
    splits = load(
        write_csv(tmp_path / "a.csv", rows, ("title", "body", "label")), "text=[title,body]", "source.reader.joiner=' | '"
    )
    known = {x.tobytes() for x in encoded([f"{title} | {text}" for title, text, _ in rows])}
    assert {x.tobytes() for part in of(splits) for x in part.x} == known


def test_json_lists_are_many_labels_and_paths_have_parents(tmp_path):
    rows = [{"text": text, "label": [f"all/{label}", "extra"][: 1 + n % 2]} for n, (text, label) in enumerate(some_rows())]
    path = write_json(tmp_path / "a.json", rows)
    splits = load(path, "source.rule.many=true")
    assert [(spec.id, spec.parent) for spec in splits.taxonomy] == [
        ("all/pay", "all"), ("all/play", "all"), ("all/rain", "all"), ("extra", "")
    ]  # fmt: skip
    added = load(path, "source.rule.many=true", "source.rule.add_parents=true")
    assert added.taxonomy.ids == ("all", "all/pay", "all/play", "all/rain", "extra")
    assert all(part.labels.num_positives_K()[0] == len(part) for part in of(added))
    with pytest.raises(
        DataError, match=r"row 1 has 2 labels, 'all/play', 'extra'; for many a row set data\.source\.rule\.many=true"
    ):
        load(path)


def test_rows_that_are_left_out_and_empty_texts_are_told(tmp_path, caplog):
    path = write_csv(tmp_path / "a.csv", [*some_rows(), ["no label", ""], ["  ", "pay"]])
    with pytest.raises(DataError, match=r"a\.csv, line 62 has no label, nor have 0 more"):
        load(path)
    with caplog.at_level(logging.WARNING):
        splits = load(path, "source.rule.no_label=leave_out")
    assert sum(len(part) for part in of(splits)) == 61
    assert [record.message for record in caplog.records] == [
        "1 of 62 rows of all are left out for their labels",
        "1 rows have an empty text; a model sees all of them alike",
    ]


def test_a_class_without_a_row_is_part_of_the_taxonomy(tmp_path):
    splits = load(write_csv(tmp_path / "a.csv", some_rows()), "source.classes=[pay,play,rain,snow]")
    assert splits.train.labels.num_positives_K()[3] == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["text=body"], r"a\.csv, line 2 has no column 'body'; it has 'text', 'label' \(data\.text, data\.label and split\.column"),
        (["source.classes=pay"], r"data\.source\.classes is 'pay'; expected a list, such as \[pay\]"),
        (["source.reader.names=text"], r"reader\.names is 'text'; expected a list"),
        (["source.reader.format=xml"], r"reader\.format is 'xml'; expected delimited, json, jsonl or null"),
        (["source.keys.train=[train]"], r"keys is for lists within a JSON file; .*a\.csv is delimited"),
        (["source.keys.extra=[a]"], r"data\.source\.keys names extra; expected train, val, calib, test"),
        (["files.train=b.csv"], r"give either data\.path=FILE .*; got path=.*, files for \['train'\] and keys for none"),
        (["source.split.by=chance"], r"split\.by is 'chance'; expected one of stratified"),
        (["source.split.fractions.val=null"], r"split\.fractions must be numbers above 0"),
        (["source.split.by=time", "source.split.column=when"], r"a\.csv, line 2 has no column 'when'"),
        (["source.split.also=1"], "split has 'also'"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, overrides, message):
    with pytest.raises(DataError, match=message):
        load(write_csv(tmp_path / "a.csv", some_rows()), *overrides)


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv", some_rows())
    with pytest.raises(DataError, match="got path=None, files for none"):
        load()
    with pytest.raises(DataError, match=r"files for \['test'\]"):
        load(test=path)
    with pytest.raises(DataError, match=r"split\.of is 'val', which has no rows of its own; expected one of train, test"):
        load(None, "source.split.of=val", train=path, test=path)
    with pytest.raises(DataError, match=r"split\.fractions must be positive for train, val, calib, got"):
        load(None, "source.split.fractions.val=0", train=path, test=path)
    with pytest.raises(DataError, match=r"a\.data ends in none of \.csv"):
        load(write_csv(tmp_path / "a.data", some_rows()))
    with pytest.raises(DataError, match="holds no rows for all; expected at least one"):
        load(write_json(tmp_path / "empty.json", []))
    with pytest.raises(DataError, match="row 0, column 'text' holds None; expected a text"):
        load(write_json(tmp_path / "null.json", [{"text": None, "label": "a"}]))


def test_a_delimiter_can_be_said(tmp_path):
    path = write_csv(tmp_path / "a.data", some_rows(), header=None, delimiter=";")
    how = ["source.reader.format=delimited", "source.reader.delimiter=';'", "source.reader.header=false"]
    assert len(load(path, *how, "text=0", label=1).train) == 36
    assert len(load(path, *how, "source.reader.names=[text,label]").train) == 36


def test_texts_that_outgrow_the_memory_are_encoded_when_they_are_asked_for(tmp_path):
    path = write_csv(tmp_path / "a.csv", some_rows())
    held, lazy = load(path), load(path, "source.memory_mib=0")
    for part, expected in zip(of(lazy), of(held), strict=True):
        assert isinstance(expected.x, np.ndarray)
        assert not isinstance(part.x, np.ndarray)
        assert (part.x.shape, part.x.dtype, len(part)) == (expected.x.shape, np.float32, len(expected))
        for rows in (slice(1, 4), slice(0, 0), np.array([3, 0, 3])):
            np.testing.assert_array_equal(part.x[rows], expected.x[rows])


def test_the_encoder_knows_columns_that_are_not_called_text(tmp_path):
    rows = [[f"title {n}", f"body {n}", "ab"[n % 2]] for n in range(40)]
    path = write_csv(tmp_path / "a.csv", rows, header=["title", "body", "label"])
    for text, names in (("[title,body]", ("title", "body")), ("body", ("body",))):
        splits = load(path, f"text={text}", "source.reader.joiner=' / '")
        assert (splits.encoder.columns, splits.encoder.joiner) == (names, " / ")
        assert splits.input.encoder["columns"] == list(names)
    assert "columns" not in load(write_csv(tmp_path / "b.csv", some_rows())).input.encoder
