import shutil
from dataclasses import replace

import numpy as np
import pytest

from ovr.data.images import EncodedRows, load_images
from ovr.data.label_cells import LabelRule
from ovr.data.lazy import CheckedRows
from ovr.data.splits import standardization
from ovr.errors import DataError
from ovr.input.image import ImageEncoder

Image = pytest.importorskip("PIL.Image", reason="pip install 'ovr[images]'")

FRACTIONS = {"train": 0.5, "val": 0.25, "calib": 0.125, "test": 0.125}
COLOURS = {"cat": (250, 0, 0), "dog": (0, 250, 0)}


RULE = {
    "many": False,
    "separator": None,
    "names_file": None,
    "no_class": [],
    "no_label": "refuse",
    "outside": "refuse",
    "hierarchy": "/",
    "add_parents": False,
}
MANY = LabelRule(**{**RULE, "many": True, "separator": ";"})


def load(path, *, by="stratified", column=None, fractions=FRACTIONS, **changes):
    settings = {
        "path_column": "path",
        "target": "label",
        "rule": LabelRule(**RULE),
        "classes": [],
        "size": [4, 6],
        "mode": "rgb",
        "fit": "stretch",
        "resample": "bilinear",
        "background": 255,
        "split": {"by": by, "column": column, "fractions": fractions, "seed": 0},
        "memory_mib": 16,
    }
    return load_images(path=str(path), **{**settings, **changes})


def write(path, colour, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """Eight images a class, no two alike."""
    for name, colour in COLOURS.items():
        for n in range(8):
            write(tmp_path / "root" / name / f"{n}.png", tuple(value - n for value in np.maximum(colour, n)))
    return tmp_path / "root"


def ids_of(splits, name):
    rows = getattr(splits, name)
    return [[splits.taxonomy[k].id for k in np.flatnonzero(row)] for row in rows.labels.dense()[0]]


def test_a_folder_a_class(folder):
    splits = load(folder)
    assert splits.taxonomy.ids == ("cat", "dog")
    assert splits.input.shape == (3, 4, 6)
    assert splits.encoder == ImageEncoder(4, 6)
    assert [len(getattr(splits, name)) for name in FRACTIONS] == [8, 4, 2, 2]
    for name in FRACTIONS:
        rows = getattr(splits, name)
        assert rows.x.dtype == np.float32
        for x, ids in zip(rows.x, ids_of(splits, name), strict=True):
            assert x[:, 0, 0].argmax() == ("cat", "dog").index(ids[0])


def test_rows_of_training_are_what_the_encoder_makes_of_the_same_files(folder):
    splits = load(folder, size=[3, 5], fit="pad")
    made = splits.encoder.encode(sorted(folder.rglob("*.png")))
    kept = np.concatenate([getattr(splits, name).x for name in FRACTIONS])
    assert {row.tobytes() for row in made} == {row.tobytes() for row in kept}


def test_what_images_were_made_from_is_told(folder, table, tmp_path):
    (whole,) = load(folder).origin.files
    assert (whole.name, whole.num_files) == (folder.name, len([file for file in folder.rglob("*") if file.is_file()]))
    origin = load(table).origin
    assert origin.files[0].name == table.name
    assert origin.files[1].num_files > 1
    assert all(len(numbers) for numbers in origin.row_numbers.values())


def test_folders_in_folders_are_classes_below_classes(folder):
    shutil.move(folder / "cat", folder / "animal" / "cat")
    splits = load(folder)
    assert [(spec.id, spec.parent) for spec in splits.taxonomy] == [("animal/cat", "animal"), ("dog", "")]


def test_a_folder_a_split_and_what_is_missing_comes_off_train(folder):
    for name in COLOURS:
        (folder / "train").mkdir(exist_ok=True)
        (folder / "test" / name).mkdir(parents=True)
        shutil.move(folder / name, folder / "train" / name)
        shutil.move(folder / "train" / name / "7.png", folder / "test" / name / "7.png")
    with pytest.raises(DataError, match=r"holds folders test, train: add data\.split\.by=file"):
        load(folder)
    splits = load(folder, by="file")
    assert [len(getattr(splits, name)) for name in FRACTIONS] == [8, 4, 2, 2]
    assert {int(x.max()) for x in splits.test.x} == {243}
    with pytest.raises(DataError, match=r"no row is val, calib; such rows come off train by split\.fractions, which lacks calib"):
        load(folder, by="file", fractions={"train": 0.8, "val": 0.2})
    with pytest.raises(DataError, match=r"split\.fractions must be numbers above 0"):
        load(folder, by="file", fractions={**FRACTIONS, "val": 0})
    shutil.move(folder / "train", folder / "val")
    with pytest.raises(DataError, match=r"the file's split: no row is train; the rows are val, test"):
        load(folder, by="file")


def test_every_missing_or_damaged_file_is_named_at_once(folder, tmp_path):
    (folder / "cat" / "1.png").write_bytes(b"")
    write(folder / "dog" / "2.png", (0, 250, 0), size=(400, 300))
    (folder / "dog" / "2.png").write_bytes((folder / "dog" / "2.png").read_bytes()[:300])
    table = tmp_path / "images.csv"
    lines = [f"root/{file.relative_to(folder)},{file.parent.name}" for file in sorted(folder.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *lines, "root/none.png,cat"]) + "\n")
    for memory_mib in (16, 0):  # decoded, and by their headers
        with pytest.raises(DataError, match=r"2 of 16 images cannot be used: .*1\.png is no image of .*; .*2\.png is damaged: "):
            load(folder, memory_mib=memory_mib)
        with pytest.raises(DataError, match=r"3 of 17 images .*, line 18: .*none\.png cannot be read: No such file"):
            load(table, memory_mib=memory_mib)


def test_files_of_no_class_or_no_image_are_named(folder):
    (folder / "cat" / ".hidden").write_text("")
    (folder / "cat" / "Thumbs.db").write_text("")
    load(folder)
    write(folder / "lost.png", (0, 0, 0))
    with pytest.raises(DataError, match=r"in no folder of a class \(expected .*/class/file\): .*lost\.png"):
        load(folder)
    (folder / "cat" / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"holds files that are no images .*notes\.txt"):
        load(folder)
    (folder / "cat" / "notes.txt").unlink()
    with pytest.raises(DataError, match=r"holds folders cat, dog; with data\.split\.by=file expected"):
        load(folder, by="file")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image; expected"):
        load(folder / "empty")
    with pytest.raises(DataError, match=r"data\.split\.by=column needs a table, and .* is a folder"):
        load(folder, by="column", column="split")


@pytest.fixture
def table(folder, tmp_path):
    """Each image in the split that its number says, and labelled with its class and whether its number is even."""
    names = ["train"] * 4 + ["val", "calib", "test", "test"]
    rows = [f"root/{name}/{n}.png,{name};{'even' if n % 2 == 0 else ''},{names[n]}" for name in COLOURS for n in range(8)]
    (tmp_path / "images.csv").write_text("\n".join(["path,label,part", *rows]) + "\n")
    return tmp_path / "images.csv"


def test_a_table_of_paths_with_many_labels_and_a_column_of_splits(table):
    splits = load(table, by="column", column="part", rule=MANY)
    assert splits.taxonomy.ids == ("cat", "dog", "even")
    assert [len(getattr(splits, name)) for name in FRACTIONS] == [8, 2, 2, 4]
    assert ids_of(splits, "test") == [["cat", "even"], ["cat"], ["dog", "even"], ["dog"]]
    assert len(load(table, rule=MANY).train) == 8


def test_a_group_of_images_is_in_one_split(table):
    table.write_text(table.read_text().replace(",train", ",a").replace(",val", ",b").replace(",calib", ",c").replace(",test", ",d"))
    splits = load(table, by="group", column="part", rule=MANY)
    assert sum(len(getattr(splits, name)) for name in FRACTIONS) == 16
    assert sorted(len(getattr(splits, name)) for name in FRACTIONS) == [2, 2, 4, 8]


def test_what_a_table_lacks_is_named(table):
    text = table.read_text()
    with pytest.raises(DataError, match=r"has columns \['path', 'label', 'part'\]; missing file"):
        load(table, path_column="file")
    with pytest.raises(DataError, match=r"line 2: labels outside the taxonomy of 1 classes: 'cat'"):
        load(table, rule=MANY, classes=["even"])
    with pytest.raises(DataError, match=r"data\.source\.classes is 'even'; expected a list"):
        load(table, rule=MANY, classes="even")
    with pytest.raises(DataError, match=r"split\.column is None with split\.by=column; expected the name of a column"):
        load(table, by="column")
    with pytest.raises(DataError, match=r"by=file is for folders"):
        load(table, by="file")
    table.write_text(text.replace("calib", "holdout"))
    with pytest.raises(DataError, match=r"csv, line 7: column 'part' holds 'holdout', which names no split"):
        load(table, by="column", column="part", rule=MANY)
    table.write_text(text.replace("cat;even", "", 1).replace("root/dog/3.png", ""))
    with pytest.raises(DataError, match=r"images\.csv, line 13 has no path"):
        load(table)
    table.write_text(text.replace("cat;even", "").replace("dog;,", ",", 1))
    with pytest.raises(DataError, match=r"images\.csv, line 2 has no label, nor have 4 more; set data\.source\.rule\.no_label"):
        load(table, rule=MANY)
    table.write_text("path,label\n")
    with pytest.raises(DataError, match="has a header but no rows"):
        load(table)


def test_files_may_lie_anywhere_and_a_row_may_have_no_label(table):
    text = table.read_text().replace("cat;even", "").replace("root/", f"{table.parent}/root/../root/")
    table.write_text(text)
    splits = load(table, by="column", column="part", rule=replace(MANY, no_label="negative"))
    assert ids_of(splits, "calib") == [["cat"], ["dog"]]
    assert ids_of(splits, "val") == [[], ["dog", "even"]]
    splits = load(table, by="column", column="part", rule=replace(MANY, no_label="leave_out"))
    assert ids_of(splits, "val") == [["dog", "even"]]
    assert len(splits.train) == 6


@pytest.fixture
def arrays(rng):
    return {
        "x": rng.integers(256, size=(16, 4, 6, 3), dtype=np.uint8),
        "y": np.arange(16) % 2 + 3,
        "part": np.array(["train", "train", "val", "calib", "calib", "val", "test", "test"] * 2),
    }


def test_an_npz_of_arrays(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    splits = load(tmp_path / "a.npz", by="column", column="part", size=None)
    assert splits.taxonomy.ids == ("3", "4")
    np.testing.assert_array_equal(splits.val.x, arrays["x"][[2, 5, 10, 13]].transpose(0, 3, 1, 2))
    assert ids_of(splits, "val") == [["3"], ["4"], ["3"], ["4"]]
    assert load(tmp_path / "a.npz", size=[2, 3]).input.shape == (3, 2, 3)
    assert load(tmp_path / "a.npz", size=None, mode="grey").input.shape == (1, 4, 6)


def test_an_npz_with_many_labels_a_row(tmp_path, arrays):
    target_NK = np.arange(16)[:, None] % [1, 2, 3] == 0
    np.savez(tmp_path / "a.npz", **{**arrays, "y": target_NK})
    splits = load(tmp_path / "a.npz", by="column", column="part", size=None, classes=["all", "even", "third"])
    np.testing.assert_array_equal(splits.calib.labels.dense()[0], target_NK[[3, 4, 11, 12]])
    assert load(tmp_path / "a.npz").taxonomy.ids == ("0", "1", "2")
    with pytest.raises(DataError, match=r"y has 3 columns, and 2 classes are named"):
        load(tmp_path / "a.npz", classes=["all", "even"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((16, 4, 6), np.float32)}, r"x is float32 \(16, 4, 6\); expected uint8 .* for data=features"),
        ({"x": np.zeros((16, 3, 4, 6), np.uint8)}, r"x is uint8 \(16, 3, 4, 6\); expected .*channels last"),
        ({"x": np.zeros((15, 4, 6), np.uint8)}, r"x has 15 rows, y 16"),
        ({"y": np.zeros((16, 2))}, r"y is float64 \(16, 2\); expected \(N,\) of integers or text"),
        ({"y": np.array([{}] * 16)}, r"cannot be read as npz: it holds pickled objects"),
        ({"y": None}, r"holds arrays \['part', 'x'\]; missing y"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, arrays, changes, message):
    kept = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(tmp_path / "a.npz", **kept)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.npz", size=None)


def test_a_damaged_npz_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a\.npz cannot be read as npz"):
        load(tmp_path / "a.npz")
    with pytest.raises(DataError, match="by=file is for folders"):
        load(tmp_path / "a.npz", by="file")


def test_the_size_must_be_said_for_files(folder):
    with pytest.raises(DataError, match=r"add data\.size=\[HEIGHT,WIDTH\]"):
        load(folder, size=None)
    with pytest.raises(DataError, match=r"data\.size is 28; expected \[HEIGHT,WIDTH\]"):
        load(folder, size=28)
    with pytest.raises(DataError, match="is -1; expected a whole number of at least 0"):
        load(folder, memory_mib=-1)
    with pytest.raises(DataError, match=r"split\.by=time needs a table, and .* is a folder"):
        load(folder, by="time", column="day")


def test_above_the_limit_of_memory_rows_are_made_when_they_are_asked_for(folder, monkeypatch):
    held = load(folder)
    decoded = []
    pixels = ImageEncoder.pixels
    monkeypatch.setattr(ImageEncoder, "pixels", lambda self, row: decoded.append(row) or pixels(self, row))
    lazy = load(folder, memory_mib=0)
    assert not decoded
    for name in FRACTIONS:
        x, expected = getattr(lazy, name).x, getattr(held, name).x
        assert isinstance(x, CheckedRows)
        assert (x.shape, x.dtype, len(x)) == (expected.shape, expected.dtype, len(expected))
        np.testing.assert_array_equal(x[:2], expected[:2])
        order = np.arange(len(x))[::-1].copy()
        np.testing.assert_array_equal(x[order], expected[order])
        assert x[:0].shape == (0, *expected.shape[1:])
    for per in ("channel", "feature", "none"):
        for made, expected in zip(standardization(lazy.train, per=per), standardization(held.train, per=per), strict=True):
            np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_pixels_that_fit_as_bytes_only_are_held_so(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **{**arrays, "x": np.tile(arrays["x"], (1, 80, 60, 1))})  # 5 MiB of bytes, 21 of float32
    splits = load(tmp_path / "a.npz", by="column", column="part", size=None)
    assert isinstance(splits.train.x.rows, EncodedRows)
    assert splits.train.x.rows.images.dtype == np.uint8
    held = load(tmp_path / "a.npz", by="column", column="part", size=None, memory_mib=100)
    np.testing.assert_array_equal(splits.train.x[1:3], held.train.x[1:3])


def test_a_file_that_is_damaged_after_the_check_stops_the_run_by_name(folder):
    lazy = load(folder, memory_mib=0)
    shutil.rmtree(folder / "dog")
    with pytest.raises(DataError, match=r"an image was changed or cannot be decoded: row 0 \(.*dog.*\) cannot be read"):
        lazy.train.x[:]


def test_many_problems_are_counted(folder, monkeypatch):
    monkeypatch.setattr("ovr.runtime.images.MAX_SHOWN", 3)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"16 of 16 images .*; and 13 more$"):
        load(folder)


def test_a_folder_of_another_kind_and_nothing_at_all_are_told_apart(folder, tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").touch()
    with pytest.raises(DataError, match=r"mnist holds IDX files, .* data=idx data\.root=.*mnist"):
        load(tmp_path / "mnist")
    for name in ("none", "none.csv", "none.txt"):
        with pytest.raises(DataError, match=r"none(\.\w+)? cannot be read: there is no such file or folder"):
            load(tmp_path / name)


def test_a_table_of_another_dialect_is_read(table):
    text = table.read_text().replace(",", "|")
    other = table.with_suffix(".txt")
    other.write_text("made by hand\n" + text)
    dialect = {"delimiter": "|", "skip_lines": 1, "encoding": "utf-8"}
    expected, got = load(table), load(other, dialect=dialect)
    np.testing.assert_array_equal(got.train.x[:], expected.train.x[:])
    with pytest.raises(DataError, match=r"\.txt is none of .*; say its delimiter, such as 'data\.source\.dialect\.delimiter="):
        load(other)


def test_an_error_names_few_files(folder):
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"16 of 16 images cannot be used: .*; and 11 more$") as error:
        load(folder)
    assert str(error.value).count(".png") == 5
