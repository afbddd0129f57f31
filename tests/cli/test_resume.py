"""Runs of `ovr predict` that end before their time, and those that go on with what they left."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.cli.main import main
from tests.bundles import small_bundle
from tests.cli.batch import command, error_of_late, probs
from tests.cli.test_main import error_of


def begun(arguments, journal, num_parts):
    """Start a run in a process of its own, wait until so many parts are there, and kill it."""
    process = subprocess.Popen([sys.executable, "-m", "ovr", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > num_parts):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.03))
    process.send_signal(signal.SIGKILL)
    process.stderr.read()
    process.stderr.close()
    return process.wait()


@pytest.mark.parametrize(("output", "moments"), [("y.parquet", (2, 6)), pytest.param("y.csv", (4,), marks=pytest.mark.exhaustive)])
def test_a_run_that_is_killed_goes_on_and_gives_the_same_bytes(numbers, tmp_path, capsys, output, moments):
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(400_000, 6)))
    whole, resumed = tmp_path / f"whole{Path(output).suffix}", tmp_path / output
    more = ["part_rows=4096", "workers=2"]
    assert main(command(numbers, tmp_path / "x.npy", whole, *more)) == 0
    arguments = command(numbers, tmp_path / "x.npy", resumed, *more, "resume=true")
    journal = tmp_path / f"_{output}.partial" / "journal.jsonl"
    killed = [begun(arguments, journal, num_parts) for num_parts in moments]
    assert -signal.SIGKILL in killed
    assert not resumed.exists()
    assert main(arguments) == 0
    assert "rows are done already" in capsys.readouterr().out
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["x.npy", output, whole.name])


@pytest.fixture
def unfinished(numbers, tmp_path, capsys, monkeypatch):
    """A run that stopped at a bad row, after 1,024 rows."""
    monkeypatch.setattr("ovr.cli.scoring.CHUNK_ROWS", (16, 512))
    x = np.random.default_rng(2).normal(size=(2_000, 6))
    x[1_999, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    arguments = command(numbers, tmp_path / "x.npy", tmp_path / "y.csv", "part_rows=512")
    assert "1999 of the first 2000 rows passed" in error_of_late(capsys, *arguments)
    assert not (tmp_path / "y.csv").exists()
    return arguments


def test_what_is_unfinished_is_neither_lost_nor_mixed_with_another_run(unfinished, numbers, tmp_path, capsys):
    assert "y.csv was begun and not finished: 1536 rows are in " in error_of(capsys, *unfinished)
    goes_on = [*unfinished, "resume=true", "on_error=skip"]
    error = error_of(capsys, *goes_on, "probabilities=false")
    assert "was begun with something else than this run has (options probabilities: True, now False); resume=true needs" in error
    other = small_bundle(tmp_path / "other", seed=1).path
    assert "(model bundle_sha256: '" in error_of(capsys, *goes_on, f"bundle={other}")
    changed = np.load(tmp_path / "x.npy")
    stat = (tmp_path / "x.npy").stat()
    np.save(tmp_path / "x.npy", changed + 1)
    os.utime(tmp_path / "x.npy", ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert "(input sha256: '" in error_of(capsys, *goes_on)
    np.save(tmp_path / "x.npy", changed)
    assert "(input changed_ns: " in error_of(capsys, *goes_on)
    os.utime(tmp_path / "x.npy", ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert main(goes_on) == 0
    np.testing.assert_array_equal(probs(tmp_path / "y.csv"), EdgePredictor(numbers).predict_proba(changed[:1_999]))


def test_parts_that_are_not_whole_are_made_again_and_a_journal_that_is_none_is_refused(unfinished, tmp_path, capsys):
    folder = tmp_path / "_y.csv.partial"
    goes_on = [*unfinished, "resume=true", "on_error=skip"]
    journal = (folder / "journal.jsonl").read_bytes()
    (folder / "journal.jsonl").write_bytes(journal[:5] + b"\n" + journal)
    assert "journal.jsonl cannot be read" in error_of(capsys, *goes_on)
    (folder / "journal.jsonl").write_bytes(journal[:-4])  # as a kill may leave it: the last part counts for nothing
    lines = (folder / "rows.csv").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 1_536
    (folder / "rows.csv").write_bytes(b"".join(lines[: 1 + 1_024])[:-1])  # all of the first part and not of the second
    assert main(goes_on) == 0
    assert ": 512 rows are done already" in capsys.readouterr().out
    assert main([*unfinished[:3], f"output={tmp_path / 'z.csv'}", "on_error=skip", "part_rows=512"]) == 0
    assert (tmp_path / "y.csv").read_bytes() == (tmp_path / "z.csv").read_bytes()


def test_a_run_that_is_killed_when_its_output_has_its_name_has_nothing_left_to_do(unfinished, tmp_path, capsys, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(_):
        raise Killed

    goes_on = [*unfinished, "resume=true", "on_error=skip"]
    with monkeypatch.context() as patch:
        patch.setattr("ovr.runtime.batch.parts.Journal.discard", kill)
        with pytest.raises(Killed):
            main(goes_on)
    whole = (tmp_path / "y.csv").read_bytes()
    before = (tmp_path / "y.csv").stat()
    capsys.readouterr()
    assert main(goes_on) == 0
    assert "1999 predictions in " in capsys.readouterr().out
    after = (tmp_path / "y.csv").stat()
    assert (tmp_path / "y.csv").read_bytes() == whole
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not (tmp_path / "_y.csv.partial").exists()


def test_parts_of_chunks_of_another_size_are_not_gone_on_with(unfinished, tmp_path, capsys, monkeypatch):
    goes_on = [*unfinished, "resume=true", "on_error=skip"]
    with monkeypatch.context() as patch:
        patch.setattr("ovr.cli.scoring.CHUNK_ROWS", (16, 1024))
        assert "(chunk_rows: 512, now 1024); resume=true needs the same" in error_of(capsys, *goes_on)
    assert main(goes_on) == 0
    assert len((tmp_path / "y.csv").read_text().splitlines()) == 2_000


def test_parquet_begun_without_empty_rows_does_not_go_on_with_them(numbers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ovr.cli.scoring.CHUNK_ROWS", (16, 512))
    x = np.ones((2_000, 6))
    x[1_999, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    arguments = command(numbers, tmp_path / "x.npy", tmp_path / "y.parquet", "part_rows=512")
    error_of_late(capsys, *arguments)
    error = error_of(capsys, *arguments, "resume=true", "on_error=empty")
    assert "was begun with something else than this run has (empty_rows: False, now True); resume=true needs the same" in error
    assert main([*arguments, "resume=true", "on_error=skip"]) == 0
    np.testing.assert_array_equal(probs(tmp_path / "y.parquet"), EdgePredictor(numbers).predict_proba(x[:1_999]))


def test_an_unfinished_run_is_begun_anew_on_purpose_and_two_do_not_write_one_output(unfinished, tmp_path, capsys):
    import fcntl

    with (tmp_path / "_y.csv.partial" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"another process is writing {tmp_path / 'y.csv'}" in error_of(capsys, *unfinished, "resume=true")
    assert main([*unfinished, "overwrite=true", "on_error=empty"]) == 0
    assert "done already" not in capsys.readouterr().out
    assert len((tmp_path / "y.csv").read_text().splitlines()) == 2_001
    assert not (tmp_path / "_y.csv.partial").exists()


def test_a_file_that_changes_while_it_is_read_gives_no_output(numbers, x, tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "x.npy", x)
    told = iter(({"sha256": "1"}, {"sha256": "2"}))
    monkeypatch.setattr("ovr.cli.predict.identity", lambda *_, **__: next(told))
    error = error_of_late(capsys, *command(numbers, tmp_path / "x.npy", tmp_path / "y.csv"))
    assert "x.npy was changed while it was read; remove" in error
    assert not (tmp_path / "y.csv").exists()
