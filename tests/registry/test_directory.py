"""The registry of plain files: what lies where, and that nothing is ever half done."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ovr.core.bundle import open_bundle
from ovr.errors import ArtifactError
from ovr.registry import lock
from ovr.registry.aliases import find, promote
from ovr.registry.directory import Directory
from ovr.registry.lock import locked_file

BY = {"who": "ann", "why": "because"}


@pytest.fixture
def store(tmp_path):
    return Directory(str(tmp_path / "registry"))


def tree(path):
    return sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if "/bundle/" not in each.as_posix())


def test_files_lie_where_the_page_says_and_share_the_bundles_bytes(store, bundle_of):
    bundle = bundle_of(1)
    store.register(bundle, "Größe/1", **BY)
    promote(store, "Größe/1", 1, "champion", **BY)
    (folder,) = (each for each in store.path.iterdir() if not each.name.startswith("."))
    assert tree(folder) == ["aliases.json", "versions", "versions/1", "versions/1/bundle", "versions/1/version.json"]
    assert (folder / "versions/1/bundle/manifest.json").stat().st_ino == (bundle.path / "manifest.json").stat().st_ino
    assert json.loads((folder / "aliases.json").read_text())["model"] == {"champion": 1}
    shutil.rmtree(bundle.path)
    open_bundle(folder / "versions/1/bundle")


def refuse(source, target):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_other_file_systems_get_copies(store, bundle_of, monkeypatch):
    monkeypatch.setattr(os, "link", refuse)
    bundle = bundle_of(1)
    kept = store.bundle_path(store.register(bundle, "pets", **BY))
    assert (kept / "manifest.json").stat().st_ino != (bundle.path / "manifest.json").stat().st_ino
    assert open_bundle(kept).bundle_sha256 == bundle.bundle_sha256


def test_a_bundle_that_changes_while_it_is_registered_is_not_kept(store, bundle_of):
    bundle, other = bundle_of(1), bundle_of(2)
    (bundle.path / "report" / "metrics.json").write_bytes(b"[]")
    with pytest.raises(ArtifactError, match=r"report/metrics\.json was changed"):
        store.register(bundle, "pets", **BY)
    shutil.rmtree(bundle.path)
    shutil.copytree(other.path, bundle.path)
    with pytest.raises(ArtifactError, match="changed while it was registered"):
        store.register(bundle, "pets", **BY)
    assert tree(store.path) == [".pets.versions"]
    assert store.models() == []


def test_a_registry_within_the_bundle_is_refused(bundle_of):
    bundle = bundle_of(1)
    with pytest.raises(ArtifactError, match="lies within the bundle"):
        Directory(str(bundle.path / "registry")).register(bundle, "pets", **BY)
    open_bundle(bundle.path)


def test_files_that_were_changed_by_hand_are_told(store, bundle_of):
    store.register(bundle_of(1), "pets", **BY)
    promote(store, "pets", 1, "champion", **BY)
    aliases, version = store.path / "pets" / "aliases.json", store.path / "pets" / "versions" / "1" / "version.json"
    kept = aliases.read_text()
    for text, message in (
        ("{", "cannot be read as JSON"),
        ('{"schema_version":9}', "has schema_version 9"),
        ('{"schema_version":1,"model":{}}', "cannot be read: KeyError"),
        (kept.replace('"who"', '"whom"'), "a move of the registry has the keys"),
    ):
        aliases.write_text(text)
        with pytest.raises(ArtifactError, match=message):
            store.aliases("pets")
    aliases.write_text(kept.replace('"model":{"champion":1}', '"model":{"champion":5}'))
    with pytest.raises(ArtifactError, match="alias 'champion' of 'pets' names version 5, which is not in"):
        find(store, "pets", "champion")
    shutil.copytree(version.parent, version.parents[1] / "2")
    with pytest.raises(ArtifactError, match="versions/2 holds version 1 of 'pets': it was moved"):
        store.versions("pets")


def test_a_writer_waits_for_the_one_before(tmp_path, monkeypatch, caplog):
    real, calls = lock.fcntl.flock, []

    def busy_once(descriptor, how):
        calls.append(how)
        if len(calls) == 1:
            raise BlockingIOError
        real(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", busy_once)
    with locked_file(tmp_path / "l"):
        assert calls == [lock.fcntl.LOCK_EX | lock.fcntl.LOCK_NB, lock.fcntl.LOCK_EX]
    assert "another process holds" in caplog.text
    assert (tmp_path / "l").read_bytes() == b""


def test_many_writers_at_once_and_writers_killed_at_any_point(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.registry.many_writers", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    at_once, register, move = (line.split() for line in done.stdout.splitlines())
    assert at_once == ["versions", "8", "moves", "40", "won", "10"]
    assert int(register[1]) > 30
    assert int(register[2]) > 0
    assert int(move[1]) >= 5
    assert int(move[2]) > 0


def test_a_disk_that_is_full_leaves_what_was_there(store, bundle_of, monkeypatch):
    """Writes beyond a limit fail as on a full disk, at every size of the limit."""
    monkeypatch.setattr(os, "link", refuse)  # copies, which take room
    first, second = bundle_of(1), bundle_of(2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (0, 10, 20, 50, 100, 200, 400, 800):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(OSError, match="File too large"):
                store.register(first, "pets", **BY)
            assert tree(store.path) == [".pets.versions"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert store.register(first, "pets", **BY).version == 1
    assert store.register(second, "pets", **BY).version == 2


@pytest.fixture
def small_disk(tmp_path):
    """Return a file system of 512 KiB of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", path], capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield path
    subprocess.run(["umount", path], check=True)


def test_on_a_small_disk_that_fills_up_and_is_then_read_only(small_disk, bundle_of):
    store = Directory(str(small_disk / "registry"))
    store.register(bundle_of(1), "pets", **BY)
    promote(store, "pets", 1, "champion", **BY)
    (small_disk / "filler").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 16384))
    before, third = tree(store.path), bundle_of(3)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left on device"):
            store.register(third, "pets", **BY)
        assert tree(store.path) == before
    with pytest.raises(OSError, match="No space left on device"):
        fill_and_promote(store, small_disk)
    assert find(store, "pets", "champion").version == 1
    assert len(store.moves("pets")) == 1
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert find(store, "pets", "champion").version == 1
    with pytest.raises(OSError, match="Read-only file system"):
        promote(store, "pets", 1, "candidate", **BY)
    with pytest.raises(OSError, match="Read-only file system"):
        store.register(third, "pets", **BY)


def fill_and_promote(store, disk):
    (disk / "more").write_bytes(b"x" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
    promote(store, "pets", 1, "candidate", **BY)
