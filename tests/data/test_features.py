import json

import numpy as np
import pytest

from ovr.data.features import load_features
from ovr.data.splits import SPLIT_NAMES
from ovr.errors import DataError

FRACTIONS = {"train": 0.6, "val": 0.1, "calib": 0.15, "test": 0.15}
NONE = dict.fromkeys(SPLIT_NAMES)
SETTINGS = {
    "path": None,
    "labels": None,
    "files": NONE,
    "label_files": NONE,
    "embedding": "x",
    "target": "y",
    "classes": [],
    "label_numbers": "ids",
    "split": {"by": "stratified", "fractions": FRACTIONS, "seed": 0},
}


def load(**changes):
    return load_features(**{**SETTINGS, **{name: str(v) if hasattr(v, "exists") else v for name, v in changes.items()}})


@pytest.fixture
def x(rng):
    """Rows that differ in their first value."""
    x = rng.normal(size=(60, 4))
    x[:, 0] = np.arange(60)
    return x


@pytest.fixture
def y():
    return np.arange(60) % 3


def saved(path, array):
    np.save(path, array)
    return path


def check_rows_and_labels(splits, x, target_NK):
    """Every row is in one split, with its own labels."""
    parts = [getattr(splits, name) for name in SPLIT_NAMES]
    numbers = [part.x[: len(part)].reshape(len(part), -1)[:, 0].astype(int) for part in parts]
    assert sorted(np.concatenate(numbers)) == list(range(len(x)))
    for part, number_B in zip(parts, numbers, strict=True):
        np.testing.assert_array_equal(part.x[: len(part)], x[number_B].astype(np.float32))
        np.testing.assert_array_equal(part.labels.dense()[0], target_NK[number_B])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_npy_files_stay_on_the_disk(tmp_path, x, y, dtype):
    splits = load(path=saved(tmp_path / "x.npy", x.astype(dtype)), labels=saved(tmp_path / "y.npy", y))
    assert isinstance(splits.train.x.rows.rows.array, np.memmap)
    assert (splits.taxonomy.ids, splits.input.shape) == (("0", "1", "2"), (4,))
    check_rows_and_labels(splits, x.astype(dtype), np.eye(3, dtype=bool)[y])


def test_rows_of_any_shape_are_taken(tmp_path, y):
    x = np.broadcast_to(np.arange(60).reshape(60, 1, 1, 1), (60, 2, 3, 3))
    splits = load(path=saved(tmp_path / "x.npy", x), labels=saved(tmp_path / "y.npy", y))
    assert splits.input.shape == (2, 3, 3)
    check_rows_and_labels(splits, x, np.eye(3, dtype=bool)[y])


def test_an_npz_has_rows_and_labels(tmp_path, x, y):
    np.savez_compressed(tmp_path / "d.npz", emb=x, label=np.array(["a", "b", "c"])[y])
    splits = load(path=tmp_path / "d.npz", embedding="emb", target="label")
    assert splits.taxonomy.ids == ("a", "b", "c")
    check_rows_and_labels(splits, x, np.eye(3, dtype=bool)[y])


def test_labels_are_a_matrix_or_lists_of_ids(tmp_path, x, rng):
    target_NK = rng.random((60, 5)) < 0.4
    rows = saved(tmp_path / "x.npy", x)
    check_rows_and_labels(load(path=rows, labels=saved(tmp_path / "y.npy", target_NK.astype(np.int8))), x, target_NK)
    (tmp_path / "y.jsonl").write_text("".join(json.dumps(np.flatnonzero(row).tolist()) + "\n" for row in target_NK))
    check_rows_and_labels(load(path=rows, labels=tmp_path / "y.jsonl"), x, target_NK)


def test_splits_without_a_file_are_split_off_the_training_file(tmp_path, x, y):
    rows, labels = saved(tmp_path / "x.npy", x), saved(tmp_path / "y.npy", y)
    files, label_files = ({**NONE, "train": str(file), "test": str(file)} for file in (rows, labels))
    splits = load(files=files, label_files=label_files)
    assert [len(getattr(splits, name)) for name in SPLIT_NAMES] == [42, 7, 11, 60]
    np.testing.assert_array_equal(splits.test.x[:], x.astype(np.float32))
    assert not set(splits.train.x[:][:, 0]) & set(splits.calib.x[:][:, 0])
    whole = load(files=dict.fromkeys(SPLIT_NAMES, str(rows)), label_files=dict.fromkeys(SPLIT_NAMES, str(labels)))
    assert [len(getattr(whole, name)) for name in SPLIT_NAMES] == [60] * 4


def test_the_data_card_is_told_of_files_rule_and_rows(tmp_path, x, y):
    rows, labels = saved(tmp_path / "x.npy", x), saved(tmp_path / "y.npy", y)
    origin = load(path=rows, labels=labels).origin
    assert [(file.name, file.size_bytes) for file in origin.files] == [(p.name, p.stat().st_size) for p in (rows, labels)]
    assert origin.rule.seed == 0
    assert sorted(np.concatenate(list(origin.row_numbers.values()))) == list(range(60))
    for name in SPLIT_NAMES:
        assert origin.where[name](2) == f"{rows}, row {origin.row_numbers[name][2]}"
    whole = load(files=dict.fromkeys(SPLIT_NAMES, str(rows)), label_files=dict.fromkeys(SPLIT_NAMES, str(labels)))
    assert (len(whole.origin.files), whole.origin.rule) == (2, None)
    others = load(
        files={**dict.fromkeys(SPLIT_NAMES), "train": rows, "calib": (other := saved(tmp_path / "z.npy", x))},
        label_files={**dict.fromkeys(SPLIT_NAMES), "train": labels, "calib": labels},
    ).origin.where
    assert others["calib"](3) == f"{other}, row 3"
    assert others["val"](3).startswith(f"{rows}, row ")


def test_multi_label_rows_are_spread_class_by_class(tmp_path, rng):
    target_NK = rng.random((400, 4)) < [0.9, 0.5, 0.1, 0.05]
    x = np.arange(400.0).reshape(400, 1)
    splits = load(path=saved(tmp_path / "x.npy", x), labels=saved(tmp_path / "y.npy", target_NK))
    check_rows_and_labels(splits, x, target_NK)
    rare = [getattr(splits, name).labels.num_positives_K()[3] for name in SPLIT_NAMES]
    np.testing.assert_allclose(rare, target_NK[:, 3].sum() * np.array(list(FRACTIONS.values())), atol=1.5)


def parquet(path, x, y, *, kind=None, names=None, **settings):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    if names:
        columns = {name: pa.array(x[:, d]) for d, name in enumerate(names)}
    else:
        columns = {"x": pa.array(list(x), kind or pa.list_(pa.float32(), x.shape[1]))}
    pq.write_table(pa.table({**columns, "y": pa.array(y)}), path, **{"row_group_size": 17, **settings})
    return path


@pytest.mark.parametrize("kind", ["fixed float16", "list double", "large list int"])
def test_a_parquet_has_a_column_of_lists(tmp_path, x, y, kind):
    pa = pytest.importorskip("pyarrow")
    kinds = {
        "fixed float16": pa.list_(pa.float16(), 4),
        "list double": pa.list_(pa.float64()),
        "large list int": pa.large_list(pa.int32()),
    }
    rows = {"fixed float16": x.astype(np.float16), "list double": x, "large list int": x.astype(int)}[kind]
    splits = load(path=parquet(tmp_path / "d.parquet", rows, y, kind=kinds[kind]))
    assert splits.input.columns == ()
    check_rows_and_labels(splits, rows, np.eye(3, dtype=bool)[y])


def test_a_parquet_has_columns_of_numbers(tmp_path, x, y):
    file = parquet(tmp_path / "d.parquet", x, np.array(["a", "b", "c"])[y], names=["p", "q", "r", "s"])
    splits = load(path=file, embedding=[])
    assert splits.input.columns == ("p", "q", "r", "s")
    check_rows_and_labels(splits, x, np.eye(3, dtype=bool)[y])
    some = load(path=file, embedding=["r", "p"])
    assert some.input.columns == ("r", "p")
    assert some.train.x[0, 0] == np.float32(x[int(some.train.x[0, 1]), 2])


def test_a_parquet_has_lists_of_labels(tmp_path, x, rng):
    target_NK = rng.random((60, 5)) < 0.4
    lists = [[f"c{k}" for k in np.flatnonzero(row)] for row in target_NK]
    check_rows_and_labels(load(path=parquet(tmp_path / "d.parquet", x, lists)), x, target_NK)
    parquet(tmp_path / "y.parquet", x, lists)
    check_rows_and_labels(load(path=saved(tmp_path / "x.npy", x), labels=tmp_path / "y.parquet"), x, target_NK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [[1.0, 2.0]] * 59 + [[1.0]]}, "row 59, column 'x' has 1 values; expected 2 values"),
        ({"x": [[1.0, 2.0]] * 18 + [None] * 42}, "row 18, column 'x' is missing; expected 2 values"),
        ({"x": [[1.0, 2.0]] * 59 + [[1.0, None]]}, "row 59, column 1 holds nan"),
        ({"x": ["a"] * 60}, "column 'x' is of type string; expected one column of lists of numbers"),
        ({"x": [["a"]] * 60}, "column 'x' is of type list<"),
        ({"x": [None] * 60}, "column 'x' is of type null"),
        ({"y": [0] * 59 + [None]}, r"row 59: a label is missing"),
        ({"y": [[0]] * 20 + [None] * 40}, r"row 20: the list of labels is missing"),
        ({"y": [0.5] * 60}, r"row 0: a label is missing or is neither text nor a whole number"),
        ({"z": [0] * 60, "y": None}, r"has columns \['x', 'z'\]; expected one named 'y'"),
    ],
)
def test_a_parquet_that_cannot_be_used_is_refused_with_row_and_column(tmp_path, change, message):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"x": [[1.0, 2.0]] * 60, "y": [0] * 60, **change}
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=17)
    with pytest.raises(DataError, match=rf"d\.parquet.*{message}"):
        load(path=tmp_path / "d.parquet")


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_rows_are_split_by_a_column(tmp_path, x, y, kind):
    names = np.array(["train", "train", "train", "val", "calib", "test"])[np.arange(60) % 6]
    if kind == "npz":
        np.savez(tmp_path / "d.npz", x=x, y=y, part=names)
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        columns = {f"f{d}": x[:, d] for d in range(4)}
        pq.write_table(pa.table({**columns, "part": names, "y": y}), tmp_path / "d.parquet")
    split = {**SETTINGS["split"], "by": "column", "column": "part"}
    splits = load(path=tmp_path / f"d.{kind}", embedding="x" if kind == "npz" else [], split=split)
    check_rows_and_labels(splits, x, np.eye(3, dtype=bool)[y])
    for name in SPLIT_NAMES:
        assert set(names[getattr(splits, name).x[:, 0].astype(int)]) == {name}
    both = {**NONE, "train": str(tmp_path / f"d.{kind}"), "test": str(tmp_path / f"d.{kind}")}
    with pytest.raises(DataError, match="column 'part' gives rows of train, val, calib, test; expected train, val, calib, which"):
        load(files=both, embedding="x" if kind == "npz" else [], split=split)


def test_files_that_cannot_be_read_are_refused(tmp_path, x, y):
    labels = saved(tmp_path / "y.npy", y)
    with pytest.raises(DataError, match=r"y\.npy holds rows alone; give their labels as data\.labels"):
        load(path=labels)
    with pytest.raises(DataError, match=r"none\.npy cannot be read as an array: No such file"):
        load(path=tmp_path / "none.npy", labels=labels)
    (tmp_path / "bad.npy").write_bytes(b"text")
    with pytest.raises(DataError, match=r"bad\.npy cannot be read as an array"):
        load(path=tmp_path / "bad.npy", labels=labels)
    whole = saved(tmp_path / "x.npy", x).read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"short\.npy cannot be read as an array"):
        load(path=tmp_path / "short.npy", labels=labels)
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"object\.npy cannot be read as an array: .*[Oo]bject"):
        load(path=tmp_path / "object.npy", labels=labels)
    np.savez(tmp_path / "d.npz", other=x)
    with pytest.raises(DataError, match=r"d\.npz has arrays other; expected one named 'x'"):
        load(path=tmp_path / "d.npz")
    (tmp_path / "d.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"d\.npz cannot be read as an array"):
        load(path=tmp_path / "d.npz")
    (tmp_path / "one.npz").write_bytes(whole)
    with pytest.raises(DataError, match=r"one\.npz is an npy file, or none, whatever its name says"):
        load(path=tmp_path / "one.npz")
    with pytest.raises(DataError, match=r"x\.csv is of another kind than \.npy, \.npz, \.parquet"):
        load(path=tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"y\.txt is of another kind of labels"):
        load(path=tmp_path / "x.npy", labels=tmp_path / "y.txt")
    pytest.importorskip("pyarrow")
    (tmp_path / "bad.parquet").write_bytes(b"text")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read as Parquet"):
        load(path=tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"takes data\.path=FILE, or data\.files\.train=FILE"),
        ({"path": "x.npy", "files": {**NONE, "train": "x.npy"}}, "got path='x.npy' and files for train"),
        ({"files": {**NONE, "test": "x.npy"}}, "and files for test"),
        ({"label_numbers": "rows"}, "label_numbers is 'rows'; expected 'ids'"),
    ],
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        load(**changes)


def test_rows_that_do_not_fit_are_refused(tmp_path, x, y):
    rows, labels = saved(tmp_path / "x.npy", x), saved(tmp_path / "y.npy", y)
    with pytest.raises(DataError, match=r"x\.npy has 60 rows, and .*z\.npy has labels of 59; expected one for each row"):
        load(path=rows, labels=saved(tmp_path / "z.npy", y[1:]))
    with pytest.raises(DataError, match=r"flat\.npy holds an array of shape \(60,\) and dtype float64; expected numbers of shape"):
        load(path=saved(tmp_path / "flat.npy", x[:, 0]), labels=labels)
    other = saved(tmp_path / "other.npy", x[:, 1:])
    label_files = {**NONE, "train": str(labels), "test": str(labels)}
    with pytest.raises(DataError, match=r"other\.npy has rows of shape \(3,\); .*x\.npy has \(4,\)"):
        load(files={**NONE, "train": str(rows), "test": str(other)}, label_files=label_files)
    x[7, 2] = np.nan
    np.savez(tmp_path / "d.npz", x=x, y=y)
    with pytest.raises(DataError, match=r"d\.npz: row 7, column 2 holds nan"):
        load(path=tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"by": "moon"}, "split.by is 'moon'"),
        ({"by": "file"}, "name them in data.files"),
        ({"by": "group", "column": "g"}, r"x\.npy has no column 'g' to split by"),
        ({"fractions": {"train": 1.0}}, "has no share for val, calib, test"),
        ({"fractions": {**FRACTIONS, "val": 0}}, "must be numbers above 0"),
        ({"fractions": {**FRACTIONS, "val": "few"}}, "has no share for val"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(tmp_path, x, y, split, message):
    with pytest.raises(DataError, match=message):
        load(
            path=saved(tmp_path / "x.npy", x),
            labels=saved(tmp_path / "y.npy", y),
            split={**SETTINGS["split"], **split},
        )


def test_a_row_on_the_disk_that_is_not_finite_is_named_when_it_is_read(tmp_path, x, y):
    x[7, 2] = np.inf
    splits = load(path=saved(tmp_path / "x.npy", x), labels=saved(tmp_path / "y.npy", y))
    (name,) = (name for name in SPLIT_NAMES if 7 in getattr(splits, name).x.rows.number_B)
    with pytest.raises(DataError, match=rf"{name} split: .*x\.npy, row 7, column 2 holds inf; every value must be finite"):
        getattr(splits, name).x[:]
