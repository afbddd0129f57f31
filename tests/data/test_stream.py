import numpy as np
import pytest

from ovr.data.shards import ParquetShards, RowGroups
from ovr.data.splits import SPLIT_NAMES, standardization
from ovr.data.stream import load_stream
from ovr.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FRACTIONS = {"train": 0.6, "val": 0.1, "calib": 0.15, "test": 0.15}
NONE = dict.fromkeys(SPLIT_NAMES)


def write(folder, x, y, *, num_files=4, row_group_size=13, name="part"):
    """Write the rows to files, as lists of values."""
    folder.mkdir(exist_ok=True)
    for number, row_B in enumerate(np.array_split(np.arange(len(x)), num_files)):
        columns = {
            "x": pa.array(list(x[row_B]), pa.list_(pa.float32(), x.shape[1])),
            "y": pa.array([y[row] for row in row_B]),
        }
        pq.write_table(pa.table(columns), folder / f"{name}-{number:03}.parquet", row_group_size=row_group_size)
    return str(folder / f"{name}-*.parquet")


@pytest.fixture
def load(tmp_path):
    def load(**changes):
        settings = {
            "embedding": "x",
            "target": "y",
            "shape": [],
            "classes": [],
            "split": {"by": "stratified", "fractions": FRACTIONS, "seed": 0},
            "buffer_rows": 40,
            "cache_dir": str(tmp_path / "kept"),
        }
        return load_stream(**{**settings, **changes, "files": {**NONE, **changes["files"]}})

    return load


@pytest.fixture
def x(rng):
    """Rows that differ in their first value."""
    x = rng.normal(size=(200, 3)).astype(np.float32)
    x[:, 0] = np.arange(200)
    return x


@pytest.fixture
def y():
    return np.arange(200) % 4


def shards(folder, x, y, *, buffer_rows=40, **how):
    write(folder, x, y, **how)
    files = sorted(folder.glob("*.parquet"))
    return ParquetShards(RowGroups.of(files, ["x"], ["y"]), shape=(x.shape[1],), buffer_rows=buffer_rows)


def test_shards_are_one_array(tmp_path, x, y, rng):
    rows = shards(tmp_path / "s", x, y)
    assert (rows.shape, len(rows)) == ((200, 3), 200)
    np.testing.assert_array_equal(rows[:], x)
    np.testing.assert_array_equal(rows[37:120], x[37:120])
    for number_B in (rng.permutation(200), rng.integers(200, size=50), np.zeros(0, np.int64)):
        np.testing.assert_array_equal(rows[number_B], x[number_B])
    assert rows.place(57).endswith("part-001.parquet, row 7")


def test_in_local_order_a_group_is_read_once_an_epoch_and_few_are_held(tmp_path, x, y, rng):
    rows = shards(tmp_path / "s", x, y)
    num_groups = len(rows.groups.group_G)
    assert num_groups == 16
    order = rows.locality.ordered(rng.permutation(200), rng)
    for start in range(0, 200, 7):
        np.testing.assert_array_equal(rows[order[start : start + 7]], x[order[start : start + 7]])
        assert sum(map(len, rows._kept.values())) <= 40
    assert rows.num_reads <= num_groups + 3  # a batch at a change of buffers may have pushed out what a later one needs


def test_more_files_than_may_be_open_are_read(tmp_path, x, y, monkeypatch):
    monkeypatch.setattr("ovr.data.shards.MAX_OPEN_FILES", 2)
    rows = shards(tmp_path / "s", x, y, num_files=9, buffer_rows=1)
    for _ in range(2):
        np.testing.assert_array_equal(rows[:], x)
    assert len(rows._open) == 2


def test_splits_come_off_the_training_files_and_are_copied_once(tmp_path, load, x, y, caplog):
    files = {"train": write(tmp_path / "s", x, y)}
    splits = load(files=files)
    parts = [getattr(splits, name) for name in SPLIT_NAMES]
    assert [len(part) for part in parts] == [120, 20, 30, 30]
    numbers = [part.x[:][:, 0].astype(int) for part in parts]
    assert sorted(np.concatenate(numbers)) == list(range(200))
    for part, number_B in zip(parts, numbers, strict=True):
        np.testing.assert_array_equal(part.x[:], x[number_B])
        np.testing.assert_array_equal(part.labels.dense()[0].argmax(axis=1), y[number_B])
        assert (splits.taxonomy.ids, part.labels.num_heads) == (("0", "1", "2", "3"), 4)
    assert isinstance(splits.val.x.rows.array, np.memmap)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert load(files=files).val.x[:].tolist() == splits.val.x[:].tolist()
    assert {path: path.stat().st_mtime_ns for path in before if path.suffix != ".lock"}.items() <= before.items()
    other = load(files=files, split={"by": "stratified", "fractions": FRACTIONS, "seed": 1})
    assert other.val.x[:].tolist() != splits.val.x[:].tolist()


def test_the_data_card_is_told_of_files_rule_and_rows(tmp_path, load, x, y):
    files = {"train": write(tmp_path / "s", x, y), "test": write(tmp_path / "t", x, y, num_files=1)}
    origin = load(files=files).origin
    assert [(file.name, file.num_files) for file in origin.files] == [("s", 4), ("t", 1)]
    assert origin.files == load(files=files).origin.files
    assert (origin.rule.by, list(origin.rule.fractions)) == ("stratified", ["train", "val", "calib"])
    assert sorted(np.concatenate([origin.row_numbers[name] for name in ("train", "val", "calib")])) == list(range(200))
    assert len(origin.row_numbers["test"]) == 200
    for name in SPLIT_NAMES:
        row = int(origin.row_numbers[name][7])
        file = tmp_path / ("t/part-000.parquet" if name == "test" else f"s/part-{row // 50:03}.parquet")
        assert origin.where[name](7) == f"{file}, row {row if name == 'test' else row % 50}"


def test_files_of_each_split_are_taken_as_they_are(tmp_path, load, x, y):
    files = {
        name: write(tmp_path / name, x[start : start + 50], y[start : start + 50])
        for start, name in zip(range(0, 200, 50), SPLIT_NAMES, strict=True)
    }
    splits = load(files=files)
    for start, name in zip(range(0, 200, 50), SPLIT_NAMES, strict=True):
        np.testing.assert_array_equal(getattr(splits, name).x[:], x[start : start + 50])
    assert splits.train.x.locality.buffer_rows == 40
    some = load(files={"train": [files["train"], files["val"]], "test": files["test"]})
    assert [len(getattr(some, name)) for name in SPLIT_NAMES] == [70, 12, 18, 50]


def test_moments_are_those_of_the_training_rows_and_are_kept(tmp_path, load, x, y):
    files = {"train": write(tmp_path / "s", x, y)}
    splits = load(files=files)
    train = splits.train.x[:]
    shift, scale = standardization(splits.train, per="feature")
    np.testing.assert_allclose(shift, train.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scale, 1 / train.std(axis=0), rtol=1e-5)
    again = load(files=files)
    np.testing.assert_array_equal(standardization(again.train, per="feature")[0], shift)
    assert again.train.x.rows.rows.num_reads == 0


def test_rows_are_split_by_the_groups_of_a_column(tmp_path, load, x, y):
    (tmp_path / "s").mkdir()
    for number, row_B in enumerate(np.array_split(np.arange(200), 4)):
        columns = {"p": x[row_B, 0], "q": x[row_B, 1], "who": [f"w{row // 5}" for row in row_B], "y": y[row_B]}
        pq.write_table(pa.table(columns), tmp_path / "s" / f"part-{number}.parquet", row_group_size=13)
    split = {"by": "group", "column": "who", "fractions": FRACTIONS, "seed": 0}
    splits = load(files={"train": str(tmp_path / "s" / "*.parquet")}, embedding=[], split=split)
    assert splits.input.columns == ("p", "q")
    groups = [set((getattr(splits, name).x[:][:, 0] // 5).tolist()) for name in SPLIT_NAMES]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40


def test_a_changed_file_is_counted_again(tmp_path, load, x, y):
    files = {"train": write(tmp_path / "s", x, y)}
    load(files=files)
    write(tmp_path / "s", x, y + 1)
    assert load(files=files).taxonomy.ids == ("1", "2", "3", "4")


def test_rows_may_be_images_and_labels_lists(tmp_path, load, rng):
    x = rng.normal(size=(100, 12)).astype(np.float32)
    target_NK = rng.random((100, 3)) < 0.5
    lists = [[f"c{k}" for k in np.flatnonzero(row)] for row in target_NK]
    splits = load(files=dict.fromkeys(SPLIT_NAMES, write(tmp_path / "s", x, lists)), shape=[3, 2, 2])
    assert splits.input.shape == (3, 2, 2)
    np.testing.assert_array_equal(splits.train.x[5:8], x[5:8].reshape(3, 3, 2, 2))
    np.testing.assert_array_equal(splits.test.labels.dense()[0], target_NK)
    other = load(files={"train": str(tmp_path / "s" / "*.parquet")}, shape=[2, 6])
    again = load(files={"train": str(tmp_path / "s" / "*.parquet")}, shape=[12])
    assert [part.val.x.shape[1:] for part in (other, again)] == [(2, 6), (12,)]
    assert standardization(again.train, per="feature")[0].shape == (12,)
    with pytest.raises(DataError, match=r"has 12 values a row; data\.source\.shape=\[5\] takes 5"):
        load(files=dict.fromkeys(SPLIT_NAMES, str(tmp_path / "s" / "*.parquet")), shape=[5])


def test_an_empty_file_among_others_is_passed_over_but_not_alone(tmp_path, load, x, y):
    pattern = write(tmp_path / "s", x, y)
    write(tmp_path / "s", x[:0], y[:0], num_files=1, name="part-aaa")
    assert len(load(files={"train": pattern, "val": pattern, "calib": pattern, "test": pattern}).train) == 200
    with pytest.raises(DataError, match=r"part-aaa-000\.parquet have no rows; expected at least one"):
        load(files={"train": str(tmp_path / "s" / "part-aaa*")})


def test_a_value_that_is_not_finite_is_named_with_its_file(tmp_path, load, x, y):
    x[77, 1] = np.nan
    splits = load(files=dict.fromkeys(SPLIT_NAMES, write(tmp_path / "s", x, y)))
    with pytest.raises(DataError, match=r"part-001\.parquet, row 27, column 1 holds nan; every value must be finite"):
        standardization(splits.train, per="feature")
    with pytest.raises(DataError, match=r"part-001\.parquet, row 27, column 1 holds nan"):
        splits.val.x[np.array([77])]


def test_what_cannot_be_used_is_refused(tmp_path, load, x, y):
    pattern = write(tmp_path / "s", x, y)
    with pytest.raises(DataError, match=r"takes data\.files\.train=PATTERN; got files for test"):
        load(files={"test": pattern})
    with pytest.raises(DataError, match=r"data\.files\.train: there is no file .*none"):
        load(files={"train": str(tmp_path / "none*")})
    with pytest.raises(DataError, match=r"data\.files\.train names a file twice"):
        load(files={"train": [pattern, pattern]})
    with pytest.raises(DataError, match="buffer_rows must be a whole number of at least 1, got 0"):
        load(files={"train": pattern}, buffer_rows=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cache_dir .*file cannot be written"):
        load(files={"train": pattern}, cache_dir=str(tmp_path / "file"))
    wide = write(tmp_path / "wide", np.hstack([x, x]), y)
    with pytest.raises(DataError, match=r"wide/part-000\.parquet has 6 values a row in a list x; .*part-000\.parquet has 3 values"):
        load(files={"train": [pattern, wide]})
    with pytest.raises(DataError, match=r"wide/part-000\.parquet has rows of .*s/part-000\.parquet has"):
        load(files={"train": pattern, "val": wide})
    other = write(tmp_path / "other", x, y + 1)
    with pytest.raises(DataError, match=r"other/part-000\.parquet to part-003\.parquet, row 3: labels outside the taxonomy"):
        load(files={"train": pattern, "val": other})


def test_what_is_kept_and_damaged_is_named(tmp_path, load, x, y):
    files = {"train": write(tmp_path / "s", x, y)}
    load(files=files)
    (index,) = (tmp_path / "kept").glob("*.index.npz")
    index.write_bytes(index.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"index\.npz, which is kept from an earlier run, is damaged .*; delete it"):
        load(files=files)


def test_a_file_that_was_changed_under_a_run_is_noticed(tmp_path, x, y):
    rows = shards(tmp_path / "s", x, y)
    write(tmp_path / "s", x, y, row_group_size=20)
    with pytest.raises(DataError, match=r"part-000\.parquet, row 0 begins a row group of 20 rows; it had 13: the file was changed"):
        rows[:5]
