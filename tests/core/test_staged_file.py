import pytest

from ovr.core.files import staged_directory, staged_file


def test_a_file_appears_when_the_block_ends_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_bytes(b"old")
    with staged_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["answers.csv"]


def test_an_error_in_the_block_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_bytes(b"old")
    with pytest.raises(KeyError, match="stop"), staged_file(path) as file:
        stop(file)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["answers.csv"]


def test_a_full_disk_names_the_file(tmp_path):
    def write_to_a_full_disk(*_):
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    for staged, path in ((staged_file, tmp_path / "answers.csv"), (staged_directory, tmp_path / "bundle")):
        with pytest.raises(OSError, match="No space left on device") as caught, staged(path) as place:
            write_to_a_full_disk(place)
        assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def stop(file):
    file.write(b"half")
    raise KeyError("stop")
