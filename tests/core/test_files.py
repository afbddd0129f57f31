"""Files and directories that appear whole or not at all."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ovr.core import files
from ovr.core.files import canonical_json, place, read_json, sha256_bytes, sha256_file, staged_directory, sweep, write_file
from ovr.errors import ArtifactError


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def leftover(path, pid, host=None):
    """Return the name that a writer of `path` with that pid stages under."""
    return path.with_name(f".{path.name}.tmp-{files._host() if host is None else host}-{pid}-0123abcd")


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_writers_killed_at_any_point_leave_the_old_state_or_the_new(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "tests.core.killed_writers", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == 0, result.stderr
    bundle, file = (line.split() for line in result.stdout.splitlines())
    assert int(bundle[1]) > 30
    assert int(bundle[2]) > 0
    assert int(file[1]) >= 3


def test_digests_are_those_of_hashlib(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 7)
    for data in (b"", b"1234567", b"12345678"):
        (tmp_path / "f").write_bytes(data)
        assert sha256_file(tmp_path / "f") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_equal_values_have_one_canonical_text():
    assert (
        canonical_json({"b": [1, 0.5], "a": "é"}) == canonical_json({"a": "é", "b": [1, 0.5]}) == '{"a":"é","b":[1,0.5]}'.encode()
    )
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        canonical_json({"f1": float("nan")})


def test_what_is_not_json_is_refused_with_the_path(tmp_path):
    with pytest.raises(ArtifactError, match=r"x\.json does not exist"):
        read_json(tmp_path / "x.json")
    for content in (b"{", b"\xff", b"[" * 200_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"x\.json cannot be read as JSON"):
            read_json(tmp_path / "x.json")
    with pytest.raises(ArtifactError, match="cannot be read as JSON"):
        read_json(tmp_path)


def test_json_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    (tmp_path / "x.json").write_bytes(b"[1,2,3,4,5,6]")
    with pytest.raises(ArtifactError, match="is 13 bytes; at most 10 are read as JSON"):
        read_json(tmp_path / "x.json")


def test_json_of_others_is_as_large_as_what_it_describes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FOREIGN_JSON_VALUES", 4)
    monkeypatch.setattr(files, "FOREIGN_JSON_BYTES", 8)
    (tmp_path / "x.json").write_bytes(b"[1,2,3,4,5,6]")
    with pytest.raises(ArtifactError, match="is 13 bytes; at most 12 are read as JSON"):
        read_json(tmp_path / "x.json", beside_bytes=1)
    with pytest.raises(ArtifactError, match="has some 6 values; at most 5 are read as JSON"):
        read_json(tmp_path / "x.json", beside_bytes=8)
    assert read_json(tmp_path / "x.json", beside_bytes=16) == [1, 2, 3, 4, 5, 6]


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    for content in (b"one", b"two"):
        write_file(tmp_path / "f", content)
        assert (tmp_path / "f").read_bytes() == content
    assert names(tmp_path) == ["f"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_file(tmp_path / "f", b"old")
    with pytest.raises(TypeError):
        write_file(tmp_path / "f", "text")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_a_directory_appears_when_the_block_ends(tmp_path):
    final = tmp_path / "new" / "d"
    with staged_directory(final) as staging:
        (staging / "f").write_bytes(b"x")
        assert not final.exists()
    assert (final / "f").read_bytes() == b"x"
    assert names(final.parent) == ["d"]


def test_a_directory_vanishes_when_the_block_raises(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged_directory(tmp_path / "d") as staging:
        stop(staging)
    assert names(tmp_path) == []


def stop(staging):
    (staging / "sub").mkdir()
    (staging / "sub" / "f").write_bytes(b"x")
    raise KeyboardInterrupt


def test_a_directory_may_be_staged_elsewhere(tmp_path):
    final = tmp_path / "repository" / "1"
    with staged_directory(final, beside=tmp_path / "staging") as staging:
        assert staging.parent == tmp_path / "staging"
        assert names(final.parent) == []
    assert names(final.parent) == ["1"]
    assert names(tmp_path / "staging") == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_is_there_is_never_overwritten(tmp_path, make):
    make(tmp_path / "d")
    with pytest.raises(ArtifactError, match="exists already and is never overwritten"), staged_directory(tmp_path / "d"):
        pytest.fail("the block must not start")


def test_nothing_is_made_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "d", tmp_path / "file" / "d" / "e"):
        with pytest.raises(ArtifactError, match=r"cannot be made: .*file is no directory; choose another"), staged_directory(path):
            pytest.fail("the block must not start")
    assert names(tmp_path) == ["file"]


def test_the_first_of_two_writers_wins(tmp_path):
    def write(content):
        with staged_directory(tmp_path / "d") as staging:
            (staging / "f").write_bytes(content)
            if content == b"slow":
                write(b"fast")

    with pytest.raises(ArtifactError, match="appeared while it was being written; the other writer's version is kept"):
        write(b"slow")
    assert (tmp_path / "d" / "f").read_bytes() == b"fast"
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize("other", ["directory", "file"])
def test_the_first_wins_even_between_the_last_look_and_the_rename(tmp_path, monkeypatch, other):
    final = tmp_path / "d"
    real = os.path.lexists
    looks = []

    def appears_after_the_last_look(path):
        looks.append(path)
        answer = real(path)
        if looks.count(final) == 2:
            if other == "file":
                final.write_bytes(b"fast")
            else:
                final.mkdir()
                (final / "f").write_bytes(b"fast")
        return answer

    monkeypatch.setattr(os.path, "lexists", appears_after_the_last_look)
    with pytest.raises(ArtifactError, match="appeared while it was being written"), staged_directory(final) as staging:
        (staging / "f").write_bytes(b"slow")
    assert (final if other == "file" else final / "f").read_bytes() == b"fast"
    assert names(tmp_path) == ["d"]


def test_of_many_writers_at_once_one_wins_whole(tmp_path):
    outcomes = []

    def write(number):
        try:
            with staged_directory(tmp_path / "d") as staging:
                for part in range(5):
                    (staging / str(part)).write_text(str(number))
            outcomes.append(number)
        except ArtifactError:
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = {number for number in outcomes if number is not None}
    assert {(tmp_path / "d" / str(part)).read_text() for part in range(5)} == {str(winner)}
    assert names(tmp_path) == ["d"]


def test_only_what_dead_writers_of_the_same_name_left_is_swept(tmp_path, dead_pid):
    path = tmp_path / "d"
    for file in (leftover(path, dead_pid), leftover(path, 999_999_999)):
        file.write_bytes(b"half")
    directory = leftover(path, dead_pid).with_name(leftover(path, dead_pid).name.replace("0123abcd", "0123abce"))
    directory.mkdir()
    (directory / "f").write_bytes(b"half")
    kept = [
        leftover(path, os.getpid()),
        leftover(path, 1),
        leftover(path, dead_pid, host="00000000"),
        leftover(tmp_path / "e", dead_pid),
        tmp_path / ".d.tmp-notes",
        tmp_path / f"d.tmp-{dead_pid}-0123abcd",
    ]
    for file in kept:
        file.write_bytes(b"x")
    sweep(path)
    assert names(tmp_path) == sorted(file.name for file in kept)
    sweep(tmp_path / "missing" / "d")


def test_a_writer_sweeps_before_it_writes(tmp_path, dead_pid):
    for final, write in (
        (tmp_path / "f", lambda: write_file(tmp_path / "f", b"x")),
        (tmp_path / "d", lambda: make(tmp_path / "d")),
    ):
        leftover(final, dead_pid).write_bytes(b"half")
        write()
    assert names(tmp_path) == ["d", "f"]


def make(path):
    with staged_directory(path):
        pass


def test_parts_are_written_or_shared(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"shared")
    place(tmp_path / "d", {"a/b": b"bytes", "c": source})
    assert (tmp_path / "d" / "a" / "b").read_bytes() == b"bytes"
    assert (tmp_path / "d" / "c").stat().st_ino == source.stat().st_ino


def test_parts_are_copied_where_links_cannot_be_made(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source = tmp_path / "source"
    source.write_bytes(b"copied")
    place(tmp_path, {"d/c": source})
    assert (tmp_path / "d" / "c").read_bytes() == b"copied"
    assert (tmp_path / "d" / "c").stat().st_ino != source.stat().st_ino
