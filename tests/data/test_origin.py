import hashlib

import pytest

from ovr.data.origin import Origin, SourceFile, source_files, source_folder
from ovr.data.splitting import SplitRule
from ovr.errors import DataError


def test_a_file_is_told_once_by_name_size_and_digest(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x,y\n")
    (tmp_path / "b.csv").write_bytes(b"")
    got = source_files([tmp_path / "a.csv", None, str(tmp_path / "b.csv"), str(tmp_path / "a.csv")])
    assert got == (
        SourceFile("a.csv", hashlib.sha256(b"x,y\n").hexdigest(), 4),
        SourceFile("b.csv", hashlib.sha256(b"").hexdigest(), 0),
    )
    with pytest.raises(DataError, match=r"gone\.csv cannot be read: No such file"):
        source_files([tmp_path / "gone.csv"])


def test_a_folder_is_told_by_what_lies_in_it_in_any_order(tmp_path):
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    files = [tmp_path / "cat/1.png", tmp_path / "dog/1.png"]
    one, other = source_folder(tmp_path, files), source_folder(tmp_path, files[::-1])
    assert one == other
    assert (one.name, one.size_bytes, one.num_files) == (tmp_path.name, 18, 2)
    (tmp_path / "cat/1.png").write_bytes(b"dog/1.png")
    assert source_folder(tmp_path, files).sha256 != one.sha256
    with pytest.raises(DataError, match=r"2\.png cannot be read"):
        source_folder(tmp_path, [tmp_path / "cat/2.png"])


def test_an_origin_is_kept_as_plain_values():
    rule = SplitRule("time", "day", {"train": 0.5, "test": 0.5})
    assert Origin((SourceFile("a", "0f", 3),), rule).to_json() == {
        "files": [{"name": "a", "sha256": "0f", "size_bytes": 3, "num_files": 1}],
        "split": {"by": "time", "column": "day", "fractions": {"train": 0.5, "test": 0.5}, "seed": 0},
    }
    assert Origin().to_json() == {"files": [], "split": None}
