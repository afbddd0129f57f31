import gzip
import struct

import numpy as np
import pytest

from ovr.data.idx import load_idx, read_idx
from ovr.errors import DataError

FRACTIONS = {"train": 0.8, "val": 0.1, "calib": 0.1}


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path, rng):
    for name, num_rows in (("train", 100), ("t10k", 20)):
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(rng.integers(256, size=(num_rows, 5, 4)))))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(num_rows) % 3))
    return tmp_path


def load(folder, names=()):
    return load_idx(root=str(folder), class_names=names, fractions=FRACTIONS, seed=0)


def test_images_and_labels_are_read_gzipped_or_not(folder):
    splits = load(folder, ["shirt", "bag", "boot"])
    assert [spec.name for spec in splits.taxonomy] == ["shirt", "bag", "boot"]
    assert splits.taxonomy.ids == ("0", "1", "2")
    assert splits.input.shape == (1, 5, 4)
    assert [len(splits.train), len(splits.val), len(splits.calib), len(splits.test)] == [80, 10, 10, 20]
    np.testing.assert_array_equal(splits.test.x[:, 0], read_idx(folder / "t10k-images-idx3-ubyte"))
    np.testing.assert_array_equal(splits.test.labels.dense()[0].argmax(axis=1), np.arange(20) % 3)


def test_the_files_and_the_rule_are_told(folder):
    origin = load(folder).origin
    assert [file.name for file in origin.files] == [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte",
    ]
    assert (origin.rule.by, origin.rule.fractions) == ("stratified", FRACTIONS)
    assert {name: len(numbers) for name, numbers in origin.row_numbers.items()} == {"train": 80, "val": 10, "calib": 10, "test": 20}
    assert origin.where["test"](4) == f"{folder / origin.files[2].name}, row 4"
    assert origin.where["calib"](4) == f"{folder / origin.files[0].name}, row {origin.row_numbers['calib'][4]}"


def test_damaged_files_are_named(folder):
    with pytest.raises(DataError, match="label 2 at row 2 is outside the taxonomy of 2 classes"):
        load(folder, ["shirt", "bag"])
    labels = folder / "train-labels-idx1-ubyte"
    for content, message in (
        (b"", "is empty"),
        (b"\x1f\x8b\x08\x00", "is not an IDX file"),
        (idx(np.arange(99) % 3)[:-1], r"holds 98 values; its header says \(99,\)"),
        (idx(np.arange(99) % 3), r"images \(100, 5, 4\) and labels \(99,\)"),
    ):
        labels.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load(folder)
    labels.unlink()
    with pytest.raises(DataError, match="does not exist, nor does"):
        load(folder)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be unpacked"):
        load(folder)
    whole = bytearray(gzip.compress(idx(np.arange(100) % 3)))
    whole[12:20] = b"\xff" * 8
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(whole)
    with pytest.raises(DataError, match="cannot be unpacked: Error -3"):
        load(folder)


def test_the_training_files_are_split_in_three(folder):
    with pytest.raises(DataError, match="must name train, val and calib, got train, test; t10k is the test split"):
        load_idx(root=str(folder), class_names=(), fractions={"train": 0.5, "test": 0.5}, seed=0)
